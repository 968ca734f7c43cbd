"""Watermarks: an overlay that stays where it is while the scene behind it moves.

Dekel et al. 2017, On the Effectiveness of Visible Watermarks, section 3.1, finds a watermark shared
by many pictures as the gradients that they have in common. Here the pictures are one clip's frames,
so what a camera holds still is common to them as well; hence the further conditions below.
"""

import cv2
import numpy as np

from curation.border import window
from curation.scorer import Clip, Column, scorer

FRAMES = 16  # spread over the clip
SOFT = 8.0  # grey levels a pixel: gradients below it count little
STAYS = 0.55  # consistency from which a pixel belongs to an overlay
MOVING = 0.3  # share of the textured cells that must move, or nothing can be told
CHANGES = 6.0  # grey levels (standard deviation) from which a pixel changes
TEXTURE = 3.0  # grey levels a pixel: mean gradient from which there is something to see
LARGEST = 0.25  # of the frame; a larger one is scenery
FEWEST = 20  # edge pixels at short side 180


def _over_time(gray: np.ndarray) -> tuple[np.ndarray, ...]:
    """Statistics of n frames, uint8 [n, h, w], each float32 [h, w] (`common` [2, h, w]).

    Returns:
        consistency: length of the mean soft unit gradient, 0–1; near 1 where every frame has a
            strong gradient in one direction.
        common: the mean gradient, grey levels a pixel.
        energy: the mean gradient's length before averaging, grey levels a pixel.
        change: standard deviation of the local mean, grey levels.
    """
    n, shape = len(gray), gray.shape[1:]
    units, common = np.zeros((2, *shape), np.float32), np.zeros((2, *shape), np.float32)
    energy, first, second = (np.zeros(shape, np.float32) for _ in range(3))
    for frame in gray:
        frame = cv2.GaussianBlur(frame, (3, 3), 0)
        slopes = [cv2.Sobel(frame, cv2.CV_32F, dx, 1 - dx, ksize=3, scale=0.25) for dx in (1, 0)]
        length = cv2.magnitude(*slopes)
        cv2.accumulate(length, energy)
        weight = 1 / (length + SOFT)
        for axis, slope in enumerate(slopes):
            cv2.accumulate(slope, common[axis])
            cv2.accumulateProduct(slope, weight, units[axis])
        cv2.accumulate(frame, first)
        cv2.accumulateSquare(frame, second)
    change = np.sqrt(np.maximum(second / n - (first / n) ** 2, 0))
    return cv2.magnitude(*units) / n, common / n, energy / n, change


def _moving(common: np.ndarray, energy: np.ndarray, cell: int = 8) -> float:
    """Share of the textured cells in which less than half of the gradients persists."""
    size = (max(1, energy.shape[1] // cell), max(1, energy.shape[0] // cell))
    stays = cv2.resize(cv2.magnitude(*common), size, interpolation=cv2.INTER_AREA)
    energy = cv2.resize(energy, size, interpolation=cv2.INTER_AREA)
    textured = energy > TEXTURE
    return float(np.mean(stays[textured] < 0.5 * energy[textured])) if textured.any() else 0.0


def _variety(common: np.ndarray) -> float:
    """How varied the directions of gradients [2, m] are: 0 a straight edge, 1 all alike."""
    unit = common / (np.linalg.norm(common, axis=0) + 1e-6)
    return float(2 * np.linalg.eigvalsh(unit @ unit.T / unit.shape[1])[0])


def _around(evidence: np.ndarray, box: tuple[int, int, int, int], margin: int) -> float:
    """Mean of `evidence` around a box."""
    x, y, w, h = box
    top, left = max(0, y - margin), max(0, x - margin)
    around = evidence[top : y + h + margin, left : x + w + margin]
    ring = np.ones(around.shape, bool)
    ring[max(0, y - 2 - top) : y + h + 2 - top, max(0, x - 2 - left) : x + w + 2 - left] = False
    return float(around[ring].mean()) if ring.any() else 0.0


def overlays(gray: np.ndarray) -> tuple[float, list[tuple[float, tuple[int, int, int, int]]]]:
    """Everything that might be an overlay, best first.

    Args:
        gray: uint8 [n, h, w] without borders, n ≥ 2.

    Returns:
        The share of the scene that moves, and (score, (x, y, w, h)) in the frames' pixels. A
        score is the product of four figures of 0–1: consistency; twice the variety of directions
        (a rail along which the camera pans has one); how freely the surroundings move;
        the root of its share of all that persists (a still scene has persistent edges everywhere).
    """
    consistency, common, energy, change = _over_time(gray)
    moving = _moving(common, energy)
    # What changes moves. A flat ground shows nothing: it moves as likely as the rest does, twice.
    free = np.where(change > CHANGES, 1.0, np.where(energy < TEXTURE, moving**2, 0.0))
    edges = (consistency > STAYS).astype(np.uint8)
    height, width = edges.shape
    join = max(2, min(height, width) // 30)  # letters of one mark lie no farther apart
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        cv2.dilate(edges, np.ones((join, join), np.uint8))
    )
    found = []
    for label, (x, y, w, h, _) in enumerate(stats[1:], start=1):
        part = np.s_[y : y + h, x : x + w]
        mine = (edges[part] > 0) & (labels[part] == label)
        rows, columns = np.flatnonzero(mine.any(1)), np.flatnonzero(mine.any(0))
        if mine.sum() < FEWEST:
            continue
        box = (
            int(x + columns[0]),
            int(y + rows[0]),
            int(columns[-1] - columns[0] + 1),
            int(rows[-1] - rows[0] + 1),
        )
        if box[2] * box[3] > LARGEST * height * width:
            continue
        score = float(consistency[part][mine].mean())
        score *= min(1.0, 2 * _variety(common[(slice(None), *part)][:, mine]))
        score *= min(1.0, 1.25 * _around(free, box, 2 * join))
        score *= float(np.sqrt(mine.sum() / edges.sum()))
        found.append((score, box))
    return moving, sorted(found, reverse=True)


@scorer(
    "basic",
    version="1",
    source="after Dekel et al. 2017, section 3.1",
    video_only=True,
    watermark=Column("0–1", "an overlay stays while the scene moves; NULL if it hardly moves"),
    watermark_box=Column("pixels", "x, y, w, h of the likeliest overlay", "INTEGER[]"),
)
def watermark(clip: Clip) -> dict:
    """Logos, burned-in clocks, frames of a game, subtitles that last as long as the clip.

    Worth: over moving scenes a logo of 16 % of the height scores 0.1–0.85, median 0.5 (AUC 0.99
    against the clip without it), one of 8 % 0.05 and up, median 0.3 (0.99); without, real clips lie
    under 0.12, but for one shaky close-up at 0.4. Under a still camera a logo can't be told from
    scenery: NULL. What moves with the camera (a dashboard, a helmet) is an overlay too, and the box
    takes in what persists beside the mark; marks that come and go are missed.
    """
    nothing = {"watermark": None, "watermark_box": None}
    chosen = np.unique(np.linspace(0, len(clip.gray) - 1, FRAMES).round().astype(int))
    height, width = clip.gray.shape[1:]
    rows, columns = window(clip, height, width)
    gray = np.ascontiguousarray(clip.gray[chosen, rows, columns])
    if min(gray.shape[1:]) < 32:
        return nothing
    moving, found = overlays(gray)
    if moving < MOVING:
        return nothing
    if not found:
        return {"watermark": 0.0, "watermark_box": None}
    score, (x, y, w, h) = found[0]
    sx, sy = clip.width / width, clip.height / height
    box = [(x + columns.start) * sx, (y + rows.start) * sy, w * sx, h * sy]
    return {"watermark": score, "watermark_box": [round(value) for value in box]}
