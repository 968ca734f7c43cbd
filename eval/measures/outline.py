"""Which outline a patch shows: circle, square or triangle, by fitting drawn ones (least squares).

A patch is float [SIDE, SIDE]: the share of each cell that the thing covers, centred on it and
scaled so that the circle of its area has radius 1. Every outline has that area, so none wins by its
size, and area outlives blur where corners do not. Corners are drawn sharp and rounded: a codec
rounds them and leaves the edges sharp, which no blur explains, and a square without its corners
would be nearer to the circle than to the square.
"""

import functools
import itertools

import cv2
import numpy as np

SHAPES = ("circle", "square", "triangle")
SIDE, REACH = 41, 2.1  # cells a side; half the patch's side in radii (a corner is at 1.56)
STEP = 2 * REACH / (SIDE - 1)
SIDES = {"square": 4, "triangle": 3}
TILTS = np.linspace(-0.32, 0.32, 13)  # radians; what is rendered stays within 0.26
ODD = 3.0  # times what a polygon at another tilt leaves over, or damage would look like those
ROUNDED = (0, 0.2, 0.4)  # corners, in inner radii; with more, circles are taken for squares
BLURS = (0.05, 0.1, 0.16, 0.23, 0.31, 0.4, 0.52, 0.66)  # standard deviations, in radii


def fit(patch: np.ndarray) -> tuple[dict[str, float], float]:
    """What each outline leaves unexplained, and how high the best one stands.

    Returns:
        shape → share of the patch's sum of squares (above its ground) that the best tilt, rounding
        and blur of that shape leave over, 0–1; and the best one's height: above 1 where blur has
        lowered the middle of a small thing below its true height.
    """
    bases, heights, handicaps, names = _drawn()
    flat = patch.reshape(-1).astype(np.float32)
    whole = float(((flat - np.median(flat)) ** 2).sum())
    parts = np.einsum("kpn,n->kp", bases, flat, optimize=True)
    left = handicaps * np.maximum(0, flat @ flat - (parts**2).sum(1)) / max(whole, 1e-9)
    left = left.clip(0, 1)
    best = int(left.argmin())
    unexplained = {shape: float(left[names == shape].min()) for shape in SHAPES}
    return unexplained, float(heights[best] @ parts[best])


def coverage(shape: str, tilt: float, blur: float, rounded: float = 0) -> np.ndarray:
    """float [SIDE, SIDE]: a shape of the unit circle's area, its middle in the middle.

    A triangle of tilt 0 stands on its base; tilt turns it clockwise (y runs down).

    Args:
        blur: standard deviation of the Gaussian over it, in radii.
        rounded: radius of its corners, from 0 (sharp) to below 1 (a circle), in its inner radii.
    """
    fine = 5
    ticks = (np.arange(SIDE * fine) - (SIDE * fine - 1) / 2) * STEP / fine
    x, y = ticks[None], ticks[:, None]
    if shape == "circle":
        inside = np.hypot(x, y) <= 1
    else:
        # the points no farther than the corners' radius from a smaller polygon; t r² is the area of
        # a regular one of inner radius r, 2 t r its outline
        sides = SIDES[shape]
        t, r = sides * np.tan(np.pi / sides), 1 - rounded
        inner = np.sqrt(np.pi / (t * r**2 + 2 * t * r * rounded + np.pi * rounded**2))
        normals = np.pi / 2 + tilt + 2 * np.pi * np.arange(sides) / sides
        smaller = np.all([x * np.cos(a) + y * np.sin(a) <= r * inner for a in normals], axis=0)
        beyond = (~smaller).astype(np.uint8)
        away = cv2.distanceTransform(beyond, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        inside = (away - 0.5) * STEP / fine <= rounded * inner  # from cell to cell, not to the edge
    sharp = cv2.resize(inside.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(sharp, (0, 0), blur / STEP, borderType=cv2.BORDER_CONSTANT)


@functools.cache
def _drawn() -> tuple[np.ndarray, ...]:
    """Orthonormal bases [K, 5, SIDE²] of every drawn outline, what gives its height, its shape.

    Beside the outline itself a base spans its derivatives by x, y and radius, and a constant: a
    centre or a radius that is a little off, and a ground that is not quite 0, cost nothing.
    """
    ticks = np.linspace(-REACH, REACH, SIDE)
    bases, heights, handicaps, names = [], [], [], []
    for shape in SHAPES:
        turns = np.pi / SIDES.get(shape, 1)  # at twice that it looks as at 0
        others = np.arange(TILTS[-1] + 0.09, turns, 0.1)
        for tilt in (*TILTS, *others, *-others) if shape in SIDES else (0.0,):
            for rounded, blur in itertools.product(ROUNDED if shape in SIDES else (0,), BLURS):
                cover = coverage(shape, tilt, blur, rounded)
                by_y, by_x = np.gradient(cover, STEP)
                by_radius = ticks[None] * by_x + ticks[:, None] * by_y
                columns = [cover, by_x, by_y, by_radius, np.ones_like(cover)]
                q, r = np.linalg.qr(np.stack([one.reshape(-1) for one in columns], axis=1))
                bases.append(q.T)
                heights.append(np.linalg.inv(r)[0])
                handicaps.append(ODD if abs(tilt) > TILTS[-1] else 1)
                names.append(shape)
    return np.float32(bases), np.float32(heights), np.float32(handicaps), np.array(names)
