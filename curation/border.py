"""Black borders: where the picture is, for every score that should not see the bars around it.

A border is black in every frame, reaches across a whole side, has its like opposite (unless it is
thin) and ends along a straight line behind which most of the picture is lit at some time. So the
brightest value that each pixel ever takes decides; fades, dark scenes and night skies do not. Up to
half of a line may carry a logo or subtitles.
"""

import math

import cv2
import numpy as np

from curation.scorer import Clip, Column, scorer

BLACK = 24  # grey level (0–255) that no border's brightest frame exceeds, codec noise included
DARK = 0.5  # share of a line that must be black; the rest may carry a logo or subtitles
STEP = 14  # grey levels by which the picture rises over the border
LIT = 0.6  # share of the black columns that must rise so just behind the edge
WIDEST = 0.4  # of a side that one bar may take (portrait video in a 16:9 frame: 0.34)
ALONE = 0.05  # of a side that a bar may take which has none opposite; more is a dark scene


def _thickness(peak: np.ndarray) -> int:
    """Rows of black at the top of `peak`, uint8 [h, w]: each pixel's brightest value."""
    height = len(peak)
    base = np.median(peak[0])
    bright = np.flatnonzero(np.mean(peak > min(base + STEP, BLACK), axis=1) > 1 - DARK)
    if not bright.size or not 0 < bright[0] <= WIDEST * height:
        return 0
    rows = int(bright[0])
    black = peak[:rows].max(axis=0) <= base + STEP
    behind = peak[rows : rows + max(3, height // 45), black] > base + STEP
    return rows if behind.any(axis=0).sum() >= LIT * max(black.sum(), 1) else 0


def _refined(peak: np.ndarray, rows: int, scale: float) -> int:
    """The edge at source size: `rows` was found where a row stands for `scale` rows of `peak`.

    The edge lies where the middle of the line has risen by a third of the step.
    """
    first, last = max(0, round((rows - 1) * scale) - 1), min(len(peak), round((rows + 1) * scale))
    if last - first < 2:
        return round(rows * scale)
    middle = np.median(peak[first : last + max(2, round(scale))], axis=1)
    threshold = middle[0] + (middle.max() - middle[0]) / 3
    if middle.max() - middle[0] < STEP / 2:  # the samples are darker than the frames were
        return round(rows * scale)
    return first + int(np.argmax(middle > threshold))


def picture(clip: Clip) -> tuple[int, int, int, int]:
    """What remains without the borders: x, y, w, h in source pixels, found once a clip."""
    if clip.scores.get("border_box") is not None:
        return tuple(clip.scores["border_box"])
    small = clip.gray.max(axis=0)
    fine = np.maximum.reduce(clip.native)
    if fine.shape != (clip.height, clip.width):  # only the centre of a large source is kept
        fine = cv2.cvtColor(clip.rgb.max(axis=0), cv2.COLOR_RGB2GRAY)
    edges = []
    for turns in range(4):  # top, right, bottom, left
        side, detail = np.rot90(small, turns), np.rot90(fine, turns)
        rows = _thickness(side)
        if rows:
            rows = _refined(detail, rows, detail.shape[0] / side.shape[0])
        edges.append(rows * (clip.width if turns % 2 else clip.height) / detail.shape[0])
    top, right, bottom, left = (round(edge) for edge in edges)
    if min(top, bottom) == 0 and max(top, bottom) > ALONE * clip.height:
        top = bottom = 0
    if min(left, right) == 0 and max(left, right) > ALONE * clip.width:
        left = right = 0
    return left, top, clip.width - left - right, clip.height - top - bottom


def window(clip: Clip, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns within the borders of a whole frame that was scaled to height × width.

    One more row or column is left out beside a border, for scaling has mixed it.
    """
    x, y, w, h = picture(clip)
    sx, sy = width / clip.width, height / clip.height
    rows = slice(math.ceil(y * sy) + (y > 0), int((y + h) * sy) - (y + h < clip.height))
    columns = slice(math.ceil(x * sx) + (x > 0), int((x + w) * sx) - (x + w < clip.width))
    return rows, columns


@scorer(
    "basic",
    version="1",
    source="brightest value of each pixel over the clip; ours",
    border_area=Column("0–1", "share of the frame under black borders"),
    border_box=Column("pixels", "x, y, w, h of what remains without them", "INTEGER[]"),
)
def border(clip: Clip) -> dict:
    """Letterbox and pillarbox; bars under 1/180 of the short side are not seen."""
    box = picture(clip)
    area = 1 - box[2] * box[3] / (clip.width * clip.height)
    return {"border_area": area, "border_box": list(box)}
