"""Step 1, fundamental dimensions: is this clip large, clear, lit and photographed?

The step's other scores stand in `border`, `overlay` (watermark) and `text` (text area, nsfw), which
this module imports, so that importing it registers them all.
"""

import cv2
import numpy as np

from curation import overlay, text  # noqa: F401  they register their scores
from curation.border import picture, window
from curation.scorer import Clip, Column, scorer
from curation.text import looked_at


def _luma(clip: Clip) -> list[np.ndarray]:
    """Luma of at most four samples within the borders, uint8 [h, w]."""
    rows, columns = window(clip, *clip.rgb.shape[1:3])
    return [
        cv2.cvtColor(np.ascontiguousarray(rgb[rows, columns]), cv2.COLOR_RGB2GRAY)
        for rgb in looked_at(clip)
    ]


@scorer(
    "basic",
    version="1",
    source="the container's facts",
    duration_s=Column("s", "length, the last frame's own included; 0 for an image"),
    short_side=Column("pixels", "short side of the picture within the borders", "INTEGER"),
    aspect_ratio=Column("≥ 1", "long side over short side of the picture within the borders"),
    bits_per_pixel=Column("bits", "of the source's stream, a pixel and frame"),
)
def size(clip: Clip) -> dict:
    """Facts of size. Few bits a pixel mean heavy compression, the more so the older the codec."""
    _, _, width, height = picture(clip)
    short, long = sorted((width, height))
    return {
        "duration_s": clip.duration_s,
        "short_side": short,
        "aspect_ratio": long / short,
        "bits_per_pixel": 8 * clip.bytes / (len(clip.gray) * clip.width * clip.height),
    }


@scorer(
    "basic",
    version="1",
    source="histogram of luma over every frame, short side 180",
    luma_mean=Column("0–1", "mean luma within the borders, gamma-coded as stored"),
    overexposed=Column("0–1", "share of pixels within 2 % of white"),
    underexposed=Column("0–1", "share of pixels within 15 % of black"),
)
def exposure(clip: Clip) -> dict:
    """Light. A white page is overexposed and a night underexposed too: facts of tone."""
    rows, columns = window(clip, *clip.gray.shape[1:])
    gray = np.ascontiguousarray(clip.gray[:, rows, columns])
    counts = cv2.calcHist([gray.reshape(-1, gray.shape[-1])], [0], None, [256], [0, 256]).ravel()
    share = counts.astype(np.float64) / counts.sum()
    return {
        "luma_mean": float(share @ np.arange(256)) / 255,
        "overexposed": float(share[250:].sum()),
        "underexposed": float(share[:39].sum()),
    }


def _cell_means(image: np.ndarray, grid: int) -> np.ndarray:
    """uint8 [h, w] → float64 [grid, grid]: the means of its cells, what is left over left out."""
    h, w = (side // grid for side in image.shape)
    image = image[: grid * h, : grid * w]
    rows = image.reshape(grid, h, grid * w).sum(1, dtype=np.uint32)
    return rows.reshape(grid, grid, w).sum(2) / (h * w)


def _lost_to_blur(gray: np.ndarray, grid: int = 8, span: int = 9) -> float:
    """How much of its detail an image loses when it is blurred: much, if it was sharp.

    Crete et al. 2007, equations 1–6, in grid × grid cells: the share of the neighbours' differences
    that a mean over `span` pixels removes. The upper quarter of the textured cells speaks, so that
    neither a soft ground behind a sharp subject nor a line of text decides.

    Args:
        gray: uint8 [h, w].

    Returns:
        0–1; 0 where nothing has texture.
    """
    if min(gray.shape) <= grid:
        return 0.0
    total, lost = 0.0, 0.0
    for axis, kernel in ((0, (1, span)), (1, (span, 1))):
        pair = (np.s_[1:], np.s_[:-1]) if axis == 0 else (np.s_[:, 1:], np.s_[:, :-1])
        soft = cv2.blur(gray, kernel)
        sharp_step = cv2.absdiff(gray[pair[0]], gray[pair[1]])
        soft_step = cv2.absdiff(soft[pair[0]], soft[pair[1]])
        lost_step = cv2.subtract(sharp_step, soft_step)  # saturates at 0
        cells = [_cell_means(steps, grid) for steps in (sharp_step, lost_step)]
        total, lost = total + cells[0], lost + cells[1]
    textured = total > 0.5  # grey levels a pixel
    if not textured.any():
        return 0.0
    return float(np.percentile(lost[textured] / total[textured], 75))


@scorer(
    "basic",
    version="1",
    source="Crete et al. 2007, The blur effect, by cells",
    sharpness=Column("0–1", "share of fine differences that a blur would remove"),
)
def sharpness(clip: Clip) -> dict:
    """Median over at most four samples, at long side 640 or the source's if smaller.

    Worth: real clips lie at 0.46–0.84, the same with a blur of 1.2 % of the short side at
    0.15–0.49 (AUC 0.99), of 0.6 % at 0.23–0.63 (0.97). Blur finer than a pixel at 640 is not seen,
    so an upscaled 360p passes (bits_per_pixel tells more); a soft clip gains up to 0.15 at half its
    size; grain passes for detail and adds about 0.2 (the column noise tells).
    """
    return {"sharpness": float(np.median([_lost_to_blur(gray) for gray in _luma(clip)]))}


def _drawn(gray: np.ndarray, cell: int = 8, flat: int = 2, shaded: int = 40) -> float:
    """Flat cells against shaded ones: drawings have hard edges on flat ground, and little between.

    Args:
        gray: uint8 [h, w].
        flat: a cell is flat up to this range of grey levels; a good codec keeps it.
        shaded: up to this range it holds what nature is full of: grain, shading, soft texture.
    """
    rows, columns = (side // cell * cell for side in gray.shape)
    if not rows or not columns:
        return 0.0
    cells = np.ones((cell, cell), np.uint8)
    center = np.s_[cell // 2 : rows : cell, cell // 2 : columns : cell]
    spread = cv2.subtract(cv2.dilate(gray, cells)[center], cv2.erode(gray, cells)[center])
    f = float(np.mean(spread <= flat))
    m = float(np.mean((spread > flat) & (spread <= shaded)))
    return f * f / (f + 2 * m) if f else 0.0


@scorer(
    "basic",
    version="1",
    source="flat against shaded 8×8 cells; ours",
    synthetic=Column("0–1", "screen recording, slide, flat graphics"),
)
def synthetic(clip: Clip) -> dict:
    """Median over at most four samples of long side 640.

    Worth: slides, charts, editors, windows and flat cartoons lie above 0.25, mostly above 0.5, real
    and animated film under 0.1 (AUC 0.99). Photographic rendering and generated video look like
    film and score 0; a photographed or noisy screen is missed; a picture clipped to black or white
    over much of its area reaches 0.5 (over- and underexposed tell).
    """
    return {"synthetic": float(np.median([_drawn(gray) for gray in _luma(clip)]))}


def preload() -> None:
    """Loads the two networks into this process now rather than at their first clip."""
    text.text_detector()
    text.nsfw_classifier()
