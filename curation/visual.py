"""Step 2, the classical part: colour, contrast, noise, compression, and a layout for duplicates.

All of it runs on a CPU from the frames alone. Black borders are left out wherever step 1 found
them. What needs CLIP (`quality`, `aesthetic`, its embedding) stands in `curation.semantics`.
"""

import cv2
import numpy as np

from curation import semantics  # noqa: F401  (registers what scorers=full adds)
from curation.crop import inside, native, samples
from curation.scorer import Clip, Column, scorer

EXTREMELY_COLORFUL = 109.0  # Hasler & Süsstrunk's word for this value of their measure
LOUD_NOISE = 25.5  # grey levels: a tenth of the range
NOISE_BLOCK = 16  # pixels
QUIETEST = 20, 0.928  # per cent of the blocks; what they read of plain white noise
NATIVE = 8  # samples of a clip, at most, whose source pixels are looked at
STEP = 8  # grey levels over two pixels: a faint but visible edge
EDGE = 4  # pixels: the shortest edge of an H.264 block, and how far its deblocking filter reaches
LONG = 32  # pixels: a straighter line is the scene's, for a block of H.264 has 16 at most
FEW_EDGES = 0.005  # of the picture: under so many, a share of edges is drawn towards 0

# The layout descriptor. The first three say how much of the similarity each part decides.
PICTURE, MOTION, COLOR = 0.72, 0.2, 0.08
SIDE = 32  # pixels of the square that a frame shrinks to
PHASES = 4  # equal parts of a clip
LOOKS = 8  # frames seen in each of them
FAINT = {"picture": 2.0, "motion": 60.0, "color": 150.0}  # norms; far below, a part counts for 0

_SECOND = np.array([4, -8, 4], np.float32)


def _few(pictures: list[np.ndarray], most: int) -> list[np.ndarray]:
    """At most so many, evenly spread: a clip is one shot, and its grain and its codec do not
    change with every sample."""
    count = min(most, len(pictures))
    return [pictures[i] for i in np.linspace(0, len(pictures) - 1, count).round().astype(int)]


def hasler(image: np.ndarray) -> float:
    """Colourfulness M̂(3) of Hasler & Süsstrunk 2003, §5: 0 is grey, 109 extremely colourful.

    Args:
        image: uint8 [h, w, 3] RGB.
    """
    red, green, blue = cv2.split(image)
    red_green = cv2.subtract(red, green, dtype=cv2.CV_16S)
    # Twice the yellow–blue axis keeps whole numbers.
    yellow_blue = cv2.addWeighted(red, 1, green, 1, 0, dtype=cv2.CV_16S)
    yellow_blue = cv2.addWeighted(yellow_blue, 1, blue, -2, 0, dtype=cv2.CV_16S)
    (mean_rg, spread_rg), (mean_yb, spread_yb) = (
        np.ravel(cv2.meanStdDev(axis)) for axis in (red_green, yellow_blue)
    )
    mean, deviation = np.hypot(mean_rg, mean_yb / 2), np.hypot(spread_rg, spread_yb / 2)
    return float(deviation + 0.3 * mean)


@scorer(
    "visual",
    version="1",
    source="Hasler & Süsstrunk, Measuring colourfulness in natural images, SPIE 5007, 2003",
    colorfulness=Column("0–1", "their measure over 109, which they call extremely colourful"),
)
def color(clip: Clip) -> dict:
    """0 is grey; their words: 0.14 slightly, 0.30 moderately, 0.41 averagely, 0.54 quite, 0.75
    highly colourful. Mean over the samples."""
    values = [hasler(image) for image in samples(clip)]
    return {"colorfulness": min(1.0, float(np.mean(values)) / EXTREMELY_COLORFUL)}


@scorer(
    "visual",
    version="1",
    source="5–95 % range of BT.601 luma (Peli, Contrast in complex images, 1990, for the choices)",
    contrast=Column("0–1", "luma between its 5th and 95th percentile"),
)
def contrast(clip: Clip) -> dict:
    """Percentiles, not extremes: a lamp alone makes no contrast. Mean over the samples."""
    values = []
    for image in samples(clip):
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        counts = cv2.calcHist([luma], [0], None, [256], [0, 256]).ravel()
        share = np.cumsum(counts, dtype=np.float64) / luma.size
        low, high = np.searchsorted(share, (0.05, 0.95))
        values.append((high - low) / 255)
    return {"contrast": float(np.mean(values))}


def immerkaer(luma: np.ndarray) -> float:
    """Standard deviation of white noise, grey levels, after Immerkær 1996, equations 2 and 4.

    His mask cancels planes and edges, but not texture: so the estimate is made in blocks of 16
    pixels and the quietest fifth decides, clipped blocks (near black or white) left out.

    Args:
        luma: uint8 [h, w]; under 18 pixels there is no estimate, and it is 0.
    """
    rows, columns = ((side - 2) // NOISE_BLOCK * NOISE_BLOCK for side in luma.shape)
    if rows <= 0 or columns <= 0:
        return 0.0
    # His mask is the second difference down of the second difference across; times 16, its largest
    # value (8 × 255) still fits 16 bits, and the means below keep four binary places.
    response = cv2.sepFilter2D(luma, cv2.CV_16S, _SECOND, _SECOND)
    inner = np.s_[1 : rows + 1, 1 : columns + 1]
    blocks = (columns // NOISE_BLOCK, rows // NOISE_BLOCK)
    magnitude = cv2.resize(np.abs(response[inner]), blocks, interpolation=cv2.INTER_AREA) / 16
    level = cv2.resize(luma[inner], blocks, interpolation=cv2.INTER_AREA)
    usable = magnitude[(level > 20) & (level < 235)]
    if usable.size < magnitude.size / 8:  # a title on black: the letters alone say nothing
        usable = magnitude
    percent, share = QUIETEST
    return float(np.sqrt(np.pi / 2) / 6 * np.percentile(usable, percent) / share)


@scorer(
    "visual",
    version="1",
    source="Immerkær, Fast noise variance estimation, CVIU 64(2), 1996; in blocks",
    noise=Column("0–1", "standard deviation of fine grain, a tenth of the luma range being 1"),
)
def noise(clip: Clip) -> dict:
    """White noise at source pixels. Grain that a codec has smeared reads lower than it was, and so
    does grain that was scaled up. Median over the samples."""
    values = [immerkaer(luma) for luma in _few(native(clip), NATIVE)]
    return {"noise": min(1.0, float(np.median(values)) / LOUD_NOISE)}


def block_edges(luma: np.ndarray) -> float:
    """Share of the edge pixels of a picture that look like the border of a codec's block.

    Such a pixel has a step of 8 levels or more exactly along one axis (no difference at all along
    the other) and lies on a line of 4 to 31 such pixels; and the step stands alone: four pixels to
    either side it is at most half as steep, which a blur is not. No grid is assumed. Of the ideas
    in Wang, Sheikh & Bovik 2000 it keeps the differences across borders; their fixed 8×8 grid is
    gone after scaling, after a crop, and in H.264, whose blocks are 4 to 16 pixels, move with the
    motion and are smoothed over.

    Args:
        luma: uint8 [h, w].
    """
    if min(luma.shape) < 3 * EDGE:
        return 0.0
    across = cv2.absdiff(luma[1:-1, 2:], luma[1:-1, :-2])
    down = cv2.absdiff(luma[2:, 1:-1], luma[:-2, 1:-1])
    edges = cv2.countNonZero(cv2.inRange(cv2.max(across, down), STEP, 255))
    found = _aligned(across, down, 1) + _aligned(down, across, 0)
    return found / (edges + FEW_EDGES * luma.size)


def _aligned(step: np.ndarray, other: np.ndarray, axis: int) -> int:
    """How many pixels are a block's border for a step taken along `axis`."""
    pad = [(EDGE, EDGE) if i == axis else (0, 0) for i in (0, 1)]
    # cv2 wants top, bottom, left, right
    padded = cv2.copyMakeBorder(step, *pad[0], *pad[1], cv2.BORDER_CONSTANT, value=0)
    size = step.shape[axis]
    before, after = (
        padded[:, start : start + size] if axis else padded[start : start + size]
        for start in (0, 2 * EDGE)
    )
    alone = cv2.compare(cv2.max(before, after), step >> 1, cv2.CMP_LE)
    strong = cv2.inRange(step, STEP, 255)
    straight = cv2.compare(other, 0, cv2.CMP_EQ)
    lines = strong & straight & alone
    found = cv2.countNonZero(cv2.erode(lines, _line(EDGE, axis)))
    long = cv2.erode(lines, _line(LONG, axis))
    # Grown again by what the shorter line leaves of it, so that both count the same pixels.
    return found - cv2.countNonZero(cv2.dilate(long, _line(LONG - EDGE + 1, axis)))


def _line(length: int, axis: int) -> np.ndarray:
    return np.ones((length, 1) if axis else (1, length), np.uint8)


@scorer(
    "visual",
    version="1",
    source="own measure, without a grid; after Wang, Sheikh & Bovik, ICIP 2000",
    blockiness=Column("0–1", "share of the edges that are a codec's block borders"),
)
def blocks(clip: Clip) -> dict:
    """0 to 0.02 in clean film, 0.01–0.06 in x264 at a constant rate factor of 45, 0.03–0.3 in
    MPEG-4 at its coarsest: the loop filter of H.264 hides most of its blocks, and milder H.264
    (a factor of 40 and less) is told from clean less surely (AUC 0.94). Drawings and screens with
    many short, sharp, straight edges read as blocky too; grain laid over a compressed picture hides
    its blocks. Mean over the samples."""
    values = [block_edges(luma) for luma in _few(native(clip), NATIVE)]
    return {"blockiness": float(np.mean(values))}


@scorer(
    "embeddings",
    version="1",
    source="own descriptor: low frequencies of the whitened DCT, over four parts of the clip",
    sets=("light",),
    model=Column("name", "what made the vector", "VARCHAR"),
    vector=Column("float32", "unit length; compare by dot product", "FLOAT[]"),
)
def layout(clip: Clip) -> dict:
    """A descriptor for near-duplicates, not for meaning: where it is bright, how that changes over
    the clip, and in what colours.

    It outlives another encoding, size, frame rate, letterbox, a mild change of light or colour and
    a few per cent cut off an end; not mirroring, a crop or another speed.
    """
    box, scale = clip.scores.get("border_box"), clip.gray.shape[2] / clip.width
    looks = np.linspace(clip.times[0], clip.times[-1], PHASES * LOOKS)
    indices = np.minimum(np.searchsorted(clip.times, looks - 1e-6), len(clip.times) - 1)
    small = {int(i): _square(inside(clip.gray[i], box, scale)) for i in indices}
    phases = np.stack([small[int(i)] for i in indices]).reshape(PHASES, LOOKS, SIDE, SIDE).mean(1)
    light = np.stack([cv2.dct(phase) * _WHITEN for phase in phases])
    picture = light.mean(0)
    change = light - picture

    small = np.mean([_square(picture) for picture in _few(samples(clip), PHASES)], axis=0)
    hue = cv2.cvtColor(small / 255, cv2.COLOR_RGB2YCrCb)[..., 1:] * 255 - 127.5
    tint = np.stack([cv2.dct(np.ascontiguousarray(hue[..., i])) for i in (0, 1)])
    parts = (
        (PICTURE, FAINT["picture"], picture[_LOW[16]]),
        (MOTION, FAINT["motion"], change[:, _LOW[8]]),
        (COLOR, FAINT["color"], tint[:, _LOW[4]]),
    )
    vector = np.concatenate([_weighted(*part) for part in parts])
    norm = np.linalg.norm(vector)
    # An evenly black clip has no layout: an axis of its own keeps it apart from all others.
    vector = np.append(vector / norm, 0.0) if norm > 0.05 else np.append(0 * vector, 1.0)
    return {"model": "layout-1", "vector": vector.astype(np.float32)}


def _weighted(weight: float, faint: float, part: np.ndarray) -> np.ndarray:
    part = part.ravel()
    return np.sqrt(weight) * part / (np.linalg.norm(part) + faint)


def _square(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


_U, _V = np.mgrid[:SIDE, :SIDE].astype(np.float32)
_WHITEN = np.hypot(_U, _V)  # natural pictures fall off as 1/f (Field 1987); 0 takes the mean away
_LOW = {n: n > _U + _V for n in (4, 8, 16)}
