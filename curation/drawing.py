"""What rendered video is drawn with: shapes, grounds, ways and glyphs, as arrays.

`random` is always a `numpy.random.RandomState`; lengths are pixels; x runs right, y down.
"""

import functools
import itertools

import cv2
import numpy as np
from noto_cjk_sans_otc import FONT_PATH
from PIL import Image, ImageDraw, ImageFont

GROUNDS = ("plain", "gradient", "clouds", "stripes", "checks")
INKS = {  # of text and of the ground under it: Chinese name, RGB
    "white": ("白色", (248, 248, 248)),
    "black": ("黑色", (16, 16, 16)),
    "red": ("红色", (200, 30, 30)),
    "yellow": ("黄色", (250, 220, 60)),
    "orange": ("橙色", (245, 150, 40)),
    "pink": ("粉色", (250, 190, 205)),
    "light blue": ("浅蓝色", (175, 215, 245)),
    "light green": ("浅绿色", (180, 230, 180)),
    "dark blue": ("深蓝色", (22, 34, 110)),
    "dark green": ("深绿色", (14, 74, 40)),
    "purple": ("紫色", (96, 32, 130)),
    "brown": ("棕色", (92, 56, 28)),
}


def line(
    random, room, step: tuple[int, int], size: int, frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end, relative to the middle, of a straight way inside ± room along `step`."""
    span = 2 * np.abs(step) @ np.broadcast_to(room, 2)
    # a twelfth of the frame a frame is as fast as a viewer can follow
    length = min(span, size / 12 * (frames - 1)) * random.uniform(0.45, 1)
    offset = random.uniform(-1, 1, 2) * (np.broadcast_to(room, 2) - np.abs(step) * length / 2)
    way = np.multiply(step, length)
    return offset - way / 2, offset + way / 2


def coverage(shape: str, radius: float, tilt: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of each pixel that the shape covers, from the signed distance to its edge.

    All shapes of one radius have the area of the circle; the triangle stands on its base.
    """
    if shape == "circle":
        return np.clip(0.5 + radius - np.hypot(x, y), 0, 1)
    sides = {"square": 4, "triangle": 3}[shape]
    inner = radius * np.sqrt(np.pi / (sides * np.tan(np.pi / sides)))
    angles = np.pi / 2 + tilt + 2 * np.pi * np.arange(sides) / sides  # of the edges' normals
    edges = [x * np.cos(angle) + y * np.sin(angle) for angle in angles]
    return np.clip(0.5 + inner - functools.reduce(np.maximum, edges), 0, 1)


def texture(random, kind: str, size: int) -> np.ndarray:
    """float [size, size] in 0–1: how much of the second tone is where."""
    y, x = np.mgrid[:size, :size] / size
    angle, period = random.uniform(0, 2 * np.pi), random.uniform(0.06, 0.2)
    along = x * np.cos(angle) + y * np.sin(angle)
    if kind == "plain":
        return np.zeros((size, size))
    if kind == "gradient":
        return (along - along.min()) / np.ptp(along)
    if kind == "clouds":
        coarse = random.rand(*[random.randint(4, 14)] * 2)
        return np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)
    if kind == "stripes":
        return 0.5 + 0.5 * np.sin(2 * np.pi * along / period)
    return (x // period + y // period) % 2


def _lab(color) -> np.ndarray:
    pixel = np.array(color, np.float32).reshape(1, 1, 3) / 255
    return cv2.cvtColor(pixel, cv2.COLOR_RGB2LAB)[0, 0]


def ground(random, size: int, colors: list) -> tuple[str, np.ndarray]:
    """A pale or grey ground, float [H, W, 3], from which all the colors stand out."""
    kind = GROUNDS[random.randint(len(GROUNDS))]
    while True:
        tones = random.uniform(30, 235, (2, 1)) + random.uniform(-14, 14, (2, 3))
        if kind != "gradient":
            tones[1] = tones[0] + random.choice([-1, 1]) * random.uniform(10, 24)
        tones = tones.clip(0, 255)
        # CIE 1976 color difference; 50 is far beyond any confusion
        if min(np.linalg.norm(_lab(a) - _lab(b)) for a in tones for b in colors) > 50:
            weight = texture(random, kind, size)[..., None]
            return kind, tones[0] * (1 - weight) + tones[1] * weight


def inks(random) -> tuple[str, str]:
    """Names of the text's color and of the ground's, legible on each other (BT.601 luma)."""
    while True:
        pair = [list(INKS)[i] for i in random.permutation(len(INKS))[:2]]
        ink, paper = (np.dot(INKS[name][1], (0.299, 0.587, 0.114)) for name in pair)
        if abs(ink - paper) > 110:
            return pair[0], pair[1]


@functools.lru_cache(maxsize=256)
def font(size: int) -> ImageFont.FreeTypeFont:
    """The face for Simplified Chinese of the packaged Noto Sans CJK collection."""
    for index in itertools.count():
        face = ImageFont.truetype(
            str(FONT_PATH), size, index=index, layout_engine=ImageFont.Layout.BASIC
        )
        if face.getname()[0] == "Noto Sans CJK SC":
            return face
    raise AssertionError("unreachable: truetype raises OSError after the last face")


def written(lines: list[str], size: float, room: np.ndarray) -> np.ndarray:
    """The lines as a mask, float32 [h, w] in 0–1, as large as `size` and `room` (x, y) allow."""
    while True:
        face = font(max(8, int(size)))
        layout = {"font": face, "spacing": size * 0.25, "align": "center"}
        left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(
            (0, 0), "\n".join(lines), **layout
        )
        if (right - left <= room[0] and bottom - top <= room[1]) or size <= 8:
            break
        size *= 0.94
    # two empty pixels around, or a shift by a part of a pixel would cut the edge
    mask = Image.new("L", (int(right - left) + 5, int(bottom - top) + 5))
    ImageDraw.Draw(mask).multiline_text((2 - left, 2 - top), "\n".join(lines), fill=255, **layout)
    return np.asarray(mask, np.float32) / 255
