"""A clip's pictures without their black borders, which distort colour, contrast and layout.

Step 1 finds the borders (`border_box`) and runs first; where it did not run, nothing is cut off.
"""

import numpy as np

from curation.scorer import Clip

GRID = 8  # `curation.video` cuts the native centre on the codec's grid


def inside(image: np.ndarray, box: list[int] | None, scale: float, corner=(0, 0)) -> np.ndarray:
    """The part of a picture that lies within a box; all of it if there is no box.

    Args:
        image: [h, w, …].
        box: x, y, w, h in source pixels, as `border_box`.
        scale: pixels of the picture a source pixel.
        corner: x, y of the picture's upper left corner, in source pixels.
    """
    if box is None or box[2] <= 0 or box[3] <= 0:
        return image
    # A pixel that a border reaches into is left out: the start rounds up, the end down.
    x0, y0 = (max(0, int(np.ceil((box[i] - corner[i]) * scale))) for i in (0, 1))
    x1, y1 = (max(0, int((box[i] + box[i + 2] - corner[i]) * scale)) for i in (0, 1))
    part = image[y0:y1, x0:x1]
    return part if part.size else image


def samples(clip: Clip) -> list[np.ndarray]:
    """k × uint8 [H, W, 3] RGB: the samples within the borders."""
    box, scale = clip.scores.get("border_box"), clip.rgb.shape[2] / clip.width
    return [np.ascontiguousarray(inside(image, box, scale)) for image in clip.rgb]


def native(clip: Clip) -> list[np.ndarray]:
    """k × uint8 [h, w]: the samples' luma in source pixels, within the borders."""
    height, width = clip.native[0].shape
    corner = ((clip.width - width) // 2 // GRID * GRID, (clip.height - height) // 2 // GRID * GRID)
    box = clip.scores.get("border_box")
    return [np.ascontiguousarray(inside(image, box, 1.0, corner)) for image in clip.native]
