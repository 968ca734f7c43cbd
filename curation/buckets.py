"""Buckets: clips of one resolution, length and aspect ratio, which one batch can hold."""

import math
import re

RESOLUTIONS = {192: (336, 192), 256: (448, 256), 480: (832, 480), 720: (1280, 720)}  # at 16x9
FRAMES = (1, 17, 33, 49, 65, 81)
ASPECTS = ("21x9", "16x9", "4x3", "1x1", "3x4", "9x16", "9x21")


def bucket(width: int, height: int, length: int, cap: int | None = None) -> str:
    """The bucket that a clip fills without being enlarged on its short side.

    Args:
        width, height: of the cropped clip, source pixels.
        length: frames at 16 fps, of the form 4k+1.
        cap: largest resolution, e.g. 480 for a profile that trains no larger.

    Returns:
        e.g. `480p-81f-16x9`: resolution (short side; `0p` under 192 pixels), frames, aspect ratio.
    """
    fits = [r for r in RESOLUTIONS if r <= min(width, height, cap or math.inf)]
    frames = max(f for f in FRAMES if f <= max(1, length))
    ratio = math.log(width / height)
    aspect = min(ASPECTS, key=lambda name: abs(math.log(_ratio(name)) - ratio))
    return f"{max(fits, default=0)}p-{frames}f-{aspect}"


def bucket_size(name: str) -> tuple[int, int]:
    """A bucket's width and height: multiples of 16, their area at most that of its 16x9 size.

    480p is 832×480 and 720p 1280×720, as in Wan 2.1; other aspects have about as many pixels, so a
    square of 480p is 624×624.

    Raises:
        ValueError: no such bucket, or `0p`, which has no size.
    """
    found = re.fullmatch(r"(\d+)p-(\d+)f-(\d+x\d+)", name)
    if not found or int(found[1]) not in RESOLUTIONS or found[3] not in ASPECTS:
        raise ValueError(f"{name}: no bucket with a size of its own")
    aspect = _ratio(found[3])
    if aspect < 1:
        return bucket_size(f"{found[1]}p-{found[2]}f-{'x'.join(found[3].split('x')[::-1])}")[::-1]
    area = math.prod(RESOLUTIONS[int(found[1])])

    def misfit(size: tuple[int, int]) -> float:
        width, height = size
        return 1.5 * abs(math.log(width / height / aspect)) + math.log(area / (width * height))

    sides = range(16, area // 16, 16)
    heights = [h for h in sides if h * h <= area]
    return min(((w, h) for h in heights for w in range(h, area // h + 1, 16)), key=misfit)


def _ratio(aspect: str) -> float:
    width, height = aspect.split("x")
    return int(width) / int(height)
