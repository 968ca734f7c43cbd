"""Optical flow of a clip, and the part of it that one moving camera explains.

`flows` looks at pairs of frames (DIS optical flow, Kroeger et al., ECCV 2016), `cameras` fits each
pair's flow with one planar camera. Legend: p pairs of frames, g cells (8×8 pixels) of a picture.
Flow is in pixels of the picture that is looked at; divide by `Flows.side` for short sides.
"""

from dataclasses import dataclass

import cv2
import numpy as np

FAST = cv2.DISOPTICAL_FLOW_PRESET_FAST
COARSE = cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST
CELL = 8
# Pixels, fine and coarse. Smaller pictures are enlarged to it: to be seen in as many cells as
# others, and because DIS reads outside its pyramid in tiny ones and crashes (opencv#14554).
LEAST = {True: 144, False: 72}
STRIP = 4.0  # of a longer strip only the middle, 4:1, is looked at: it crashes in such too
FADE = 0.02  # of the light: a greater change between frames is taken out
LOST = 0.5  # of a pair's change unexplained: the next frame is tried instead

TEXTURE = 3.0  # grey levels a pixel, at half size, for which a cell's flow is half believed
FLAT = 0.08  # a cell without texture votes so much for a camera that stands still
DOUBT = 0.9  # of a standing camera's error: a moving one, which fits anything, must leave less
RIM = 2.0  # the picture's edge counts this much more: subjects stand in the middle
NOISE = (0.3, 3.0)  # grey levels, the range in which a pair's noise is looked for
SIGMAS = (16.0, 4.0, 1.0, 0.5, 0.3)  # pixels, scale of the robust fit as it closes in
SLACK = 0.15  # of the camera's own motion, by which depth makes a rigid scene leave a plane's
GUESSES = 12  # shifts that the fit may start from

PLANAR = 8  # parameters of a plane seen by a moving camera
SIMILAR = 4  # of shift, zoom and turn


@dataclass(frozen=True)
class Flows:
    """The flow of p pairs over g cells."""

    flow: np.ndarray  # float64 [2, p, g], pixels, x and y
    trust: np.ndarray  # float64 [p, g], 0–1: texture that can be followed and stays in the picture
    seconds: np.ndarray  # float64 [p], between the two frames
    change: np.ndarray  # float64 [p], grey levels², how much the frames differ beyond noise
    unexplained: np.ndarray  # float64 [p], what of it is left after motion compensation
    side: float  # short side of the picture, pixels
    size: tuple[int, int]  # width and height that the cells cover, pixels


def flows(
    gray: np.ndarray,
    times: np.ndarray,
    pairs: list[tuple[int, int]],
    fps: float,
    fine: bool = True,
) -> Flows:
    """Measures the flow between pairs of frames.

    A pair whose change motion can't explain, as when it moves too fast, is measured again between
    its first frame and the very next one.

    Args:
        gray: uint8 [n, h, w], n ≥ 2, black borders cut away.
        times: float64 [n], seconds, rising.
        pairs: indices i < j of the frames that are compared, at least one pair.
        fps: mean frame rate; bounds the time between frames whose stamps are broken.
        fine: smooths the flow (variational refinement) at twice the cost; without it weak texture
            leaves holes in it.
    """
    look = _Look(gray, fine)
    rows = []
    for i, j in pairs:
        row = look.pair(i, j)
        if j > i + 1 and row[3] > LOST * row[2]:
            near = look.pair(i, i + 1)
            if near[3] * row[2] < row[3] * near[2]:
                row, j = near, i + 1
        rows.append((*row, max(times[j] - times[i], 0.5 * (j - i) / fps)))
    flow, trust, change, unexplained, seconds = (np.array(c) for c in zip(*rows, strict=True))
    flow = flow.transpose(1, 0, 2)
    trust = trust * inside(flow, look.size)
    return Flows(flow, trust, seconds, change, unexplained, look.side, look.size)


class _Look:
    """Looks at pairs of frames of one clip."""

    def __init__(self, gray: np.ndarray, fine: bool):
        h, w = gray.shape[1:]
        cut = min(w, int(STRIP * h)), min(h, int(STRIP * w))
        scale = max(1.0, LEAST[fine] / min(cut))
        self.side = scale * min(cut)
        self.size = tuple(int(scale * side) // CELL * CELL for side in cut)
        cut = [min(round(side / scale), most) for side, most in zip(self.size, (w, h), strict=True)]
        left, top = (w - cut[0]) // 2, (h - cut[1]) // 2
        self.gray = gray[:, top : top + cut[1], left : left + cut[0]]
        self.half = self.size[0] // 2, self.size[1] // 2
        self.at = np.stack(np.indices(self.half[::-1])[::-1], -1).astype(np.float32)
        self.dis = cv2.DISOpticalFlow_create(FAST if fine else COARSE)

    def frame(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The picture, and the picture at half its size."""
        frame = self.gray[index]
        if frame.shape != self.size[::-1]:
            frame = cv2.resize(frame, self.size, interpolation=cv2.INTER_LINEAR)
        frame = np.ascontiguousarray(frame)
        return frame, cv2.resize(frame, self.half, interpolation=cv2.INTER_AREA)

    def pair(self, i: int, j: int) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Flow [2, g], trust [g], change and what is unexplained of it, of one pair."""
        (full0, half0), (full1, half1) = _matched(self.frame(i), self.frame(j))
        dense = self.dis.calc(full0, full1, None)
        at = self.at + dense[::2, ::2] / 2
        moved = cv2.remap(half1, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        change, left = _spread(half0, half1), _spread(half0, moved)
        noise = np.clip(quantile(left, 0.2), NOISE[0] ** 2, NOISE[1] ** 2)
        dx, dy = cv2.spatialGradient(half0)
        slope = _cells(dx.astype(np.float32) ** 2 + dy.astype(np.float32) ** 2) / 64
        # A textured cell that changes no more than noise does has not moved.
        seen = np.clip((change / noise - 2) / 3, 0, 1)
        trust = slope**2 / (slope**2 + (TEXTURE**2 + noise) ** 2) * np.maximum(seen, 0.3)
        flow = dense[CELL // 2 :: CELL, CELL // 2 :: CELL].reshape(-1, 2).T * (seen > 0)
        change, left = (np.maximum(v - 2 * noise, 0).mean() for v in (change, left))
        return flow, trust, change, left


def _matched(one: tuple, other: tuple) -> tuple[tuple, tuple]:
    """Two frames, the lighter dimmed to the other's light: a fade moves nothing."""
    before, after = (_cells(frame[1].astype(np.float32)) + 1 for frame in (one, other))
    gain = float(np.median(after / before))
    if gain > 1 + FADE:
        return one, tuple(cv2.convertScaleAbs(frame, alpha=1 / gain) for frame in other)
    if gain < 1 - FADE:
        return tuple(cv2.convertScaleAbs(frame, alpha=gain) for frame in one), other
    return one, other


def cameras(found: Flows) -> np.ndarray:
    """The flow [2, p, g] of each pair's camera: what most of the picture does, its edge above all.

    A picture's flat parts vote weakly for a camera that stands still: a shape that moves over a
    plain ground is a subject, though nothing else moves or could.
    """
    _, motion = fitted(found)
    rim = _rim(found.size)
    vote, still = found.trust * rim, FLAT * (1 - found.trust) * rim
    sigma = SIGMAS[-1]
    moving = (vote * _bounded(found.flow - motion, _width(sigma, motion))).sum(1)
    moving += (still * _bounded(motion, sigma)).sum(1)
    standing = (vote * _bounded(found.flow, sigma)).sum(1)
    return motion * (moving < DOUBT * standing)[:, None]


def fitted(found: Flows, kind: int = PLANAR) -> tuple[np.ndarray, np.ndarray]:
    """Fits each pair's flow with one camera.

    Robust least squares, reweighted as Geman and McClure do, from the best of a few guesses.

    Args:
        kind: PLANAR, the eight parameters of Bergen et al., "Hierarchical model-based motion
            estimation", ECCV 1992, planar surface flow, or SIMILAR, the first four.

    Returns:
        its parameters [p, kind], of positions in short sides from the middle and of flow in
        pixels: shift x, shift y, zoom, turn, then the others of the plane; and its flow [2, p, g].
    """
    u, v = _design(found)[:, :kind]
    products = np.einsum("kg,lg->gkl", u, u) + np.einsum("kg,lg->gkl", v, v)
    products = products.reshape(len(products), -1)
    rim = _rim(found.size)
    vote, still = found.trust * rim, FLAT * (1 - found.trust) * rim
    ridge = np.diag([0, 0, *[1e-3] * (kind - 2)]) * vote.sum(1)[:, None, None] + 1e-9 * np.eye(kind)
    flow = found.flow
    best = _start(flow, vote, kind)
    motion = np.stack([best @ u, best @ v])
    for sigma in SIGMAS:
        pull = vote * (1 - _bounded(flow - motion, _width(sigma, motion))) ** 2
        # Flat cells pull towards a standstill only while the camera nearly stands.
        total = pull + still * (1 - _bounded(motion, sigma)) ** 2
        normal = (total @ products).reshape(-1, kind, kind) + ridge
        right = (pull * flow[0]) @ u.T + (pull * flow[1]) @ v.T
        best = np.linalg.solve(normal, right[..., None])[..., 0]
        motion = np.stack([best @ u, best @ v])
    return best, motion


def explained(found: Flows, motion: np.ndarray, sigma: float = SIGMAS[-1]) -> np.ndarray:
    """Share of the texture that moves as `motion` [2, p, g] says, to sigma pixels; [p], 0–1."""
    vote = found.trust * _rim(found.size)
    error = _bounded(found.flow - motion, _width(sigma, motion))
    return 1 - (vote * error).sum(1) / (vote.sum(1) + 1e-9)


def _width(sigma: float, motion: np.ndarray) -> np.ndarray:
    return np.hypot(sigma, SLACK * np.hypot(*motion))


def _start(flow: np.ndarray, vote: np.ndarray, kind: int) -> np.ndarray:
    """Each pair's best guess [p, kind]: a standstill, or the shift of one of its textured cells."""
    p, g = vote.shape
    order = np.argsort(vote, axis=1)[:, g // 2 :]
    every = np.arange(p)
    best, least = np.zeros((2, p)), (vote * _bounded(flow, 4.0)).sum(1)
    for place in range(0, order.shape[1], max(1, order.shape[1] // GUESSES)):
        shift = flow[:, every, order[:, place]]
        cost = (vote * _bounded(flow - shift[..., None], 4.0)).sum(1)
        best = np.where(cost < least, shift, best)
        least = np.minimum(cost, least)
    return np.concatenate([best.T, np.zeros((p, kind - 2))], axis=1)


def inside(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which cells of flow [2, p, g] stay in the picture [p, g]; where the others go is unseen."""
    x, y = _places(size)
    x, y = x + flow[0], y + flow[1]
    return (x > 0) & (x < size[0]) & (y > 0) & (y < size[1])


def quantile(values: np.ndarray, share: float) -> np.ndarray:
    """Along the last axis; the nearest value above, far cheaper than numpy's."""
    place = min(int(share * values.shape[-1]), values.shape[-1] - 1)
    return np.partition(values, place, axis=-1)[..., place]


def _places(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.indices((size[1] // CELL, size[0] // CELL))
    return (x.ravel() + 0.5) * CELL, (y.ravel() + 0.5) * CELL


def _rim(size: tuple[int, int]) -> np.ndarray:
    x, y = _places(size)
    return 1 + (RIM - 1) * np.maximum(abs(2 * x / size[0] - 1), abs(2 * y / size[1] - 1)) ** 2


def _design(found: Flows) -> np.ndarray:
    """[2, 8, g]: the flow, x and y, that each parameter makes."""
    x, y = _places(found.size)
    x, y = (x - found.size[0] / 2) / found.side, (y - found.size[1] / 2) / found.side
    one, zero = np.ones_like(x), np.zeros_like(x)
    u = [one, zero, x, -y, x, y, x * x, x * y]
    v = [zero, one, y, x, -y, x, x * y, y * y]
    return np.stack([np.stack(u), np.stack(v)])


def _bounded(error: np.ndarray, sigma: float) -> np.ndarray:
    """Geman and McClure's error of vectors [2, …]: 0 for none, towards 1 for outliers."""
    squared = error[0] ** 2 + error[1] ** 2
    return squared / (squared + sigma**2)


def _cells(values: np.ndarray) -> np.ndarray:
    """Mean of float32 [h/2, w/2] over cells → float64 [g]."""
    size = values.shape[1] * 2 // CELL, values.shape[0] * 2 // CELL
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA).ravel().astype(np.float64)


def _spread(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Variance of the difference in each cell: change that is no mere change of light."""
    difference = np.subtract(one, other, dtype=np.float32)
    return np.maximum(_cells(difference**2) - _cells(difference) ** 2, 0)
