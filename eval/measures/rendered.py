"""Does a video show what a rendered prompt says: the color, shape and direction of one thing?

    follows(frames, "a red circle moving left")  # {"color": True, "shape": True, …, "all": True}

Pixels are measured, no network of ours or others': the one thing that stands out of the ground is
found by its chroma and followed (`thing`), its outline is compared with drawn ones (`outline`), its
color by its hue, its direction by where it goes. Where no such thing is found nothing is right. How
often the judge itself is right, on true renderings and on damaged ones:
`python tests/benchmarks/judging.py`.

Frames are uint8 [T, H, W, 3], RGB.
"""

import re
from dataclasses import dataclass

import cv2
import numpy as np

from eval.measures import outline
from eval.measures.thing import Thing, find

# What curation renders, restated: name → Chinese name and RGB, Chinese name, Chinese name and step
COLORS = {
    "red": ("红色", (219, 36, 36)),
    "green": ("绿色", (30, 160, 64)),
    "blue": ("蓝色", (36, 76, 219)),
    "yellow": ("黄色", (242, 205, 30)),
}
SHAPES = {"circle": "圆形", "square": "正方形", "triangle": "三角形"}
DIRECTIONS = {
    "left": ("向左", (-1, 0)),
    "right": ("向右", (1, 0)),
    "up": ("向上", (0, -1)),
    "down": ("向下", (0, 1)),
}

HUE = 22.0  # degrees in CIE Lab, where the four lie 52 to 154 apart: orange and violet are others
PALE = 25.0  # CIE Lab chroma; the four have 67 to 86
FORM = 0.12  # of the patch that the best outline may leave over; stars and half circles leave more
UNSURE = 0.005  # a shape by no more than this is a guess
WAY = 0.05  # of the short side; what is rendered goes at least 0.17 in 9 frames
ASLANT = 0.5  # of the way along its axis: farther aside, it is no direction
JUMP = 5.5  # times its mean speed: what goes faster for a frame was put elsewhere


@dataclass(frozen=True)
class Judgement:
    """What a video shows; None where it can't be said."""

    color: str | None = None
    shape: str | None = None
    direction: str | None = None
    # 0 (the next best is as good) to 1 (it is out of the question), 0 where nothing is said
    color_margin: float = 0.0
    shape_margin: float = 0.0
    direction_margin: float = 0.0
    thing: Thing | None = None


def judge(frames: np.ndarray) -> Judgement:
    """Says color, shape and direction of the one thing that stands out in uint8 [T, H, W, 3].

    A single frame shows no direction.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"frames are uint8 [T, H, W, 3], not {frames.dtype} {frames.shape}")
    found = find(frames)
    if found is None:
        return Judgement()
    unexplained, height = outline.fit(found.patch)
    first, second = sorted(unexplained, key=unexplained.__getitem__)[:2]
    shape, shape_margin = first, 1 - unexplained[first] / max(unexplained[second], 1e-9)
    if unexplained[first] > FORM or shape_margin < UNSURE:
        shape, shape_margin = None, 0.0
    color, color_margin = _color(found, height)
    direction, direction_margin = _direction(found, min(frames.shape[1:3]))
    return Judgement(color, shape, direction, color_margin, shape_margin, direction_margin, found)


def wanted(prompt: str) -> dict[str, str]:
    """Color, shape and, unless it is a picture's, direction that a prompt asks for, in English.

    Reads what curation renders, "a red circle moving left" or "一个红色的圆形向左移动", and its
    simple variants: "A red circle moves to the left.", "红色圆形往左移动".

    Raises:
        ValueError: no color or shape, or several of something: only one thing is judged.
    """
    asked = {aspect: _asked(prompt, aspect) for aspect in ("color", "shape")}
    if _named(prompt)["direction"]:
        asked["direction"] = _asked(prompt, "direction")
    return asked


def things(prompt: str) -> int:
    """How many colored shapes a prompt names: "a red circle and a blue square" are 2."""
    text = prompt.casefold()
    return len(re.findall("|".join([*SHAPES, *(zh[-2:] for zh in SHAPES.values())]), text))


def follows(frames: np.ndarray, prompt: str) -> dict[str, bool]:
    """What of a prompt the video shows: color, shape, direction (if asked for), and all of them."""
    asked, seen = wanted(prompt), judge(frames)
    right = {aspect: getattr(seen, aspect) == name for aspect, name in asked.items()}
    return right | {"all": all(right.values())}


def follows_from(first: np.ndarray, frames: np.ndarray, prompt: str) -> dict[str, bool]:
    """Image-to-video: does the thing of the given image go where the prompt says?

    It must begin where the image shows it and have its color there: another thing that goes there
    is not the image's. Only the direction is read of the prompt.

    Args:
        first: uint8 [H, W, 3], the image given, of the video's aspect ratio.
    """
    asked, before, after = _asked(prompt, "direction"), judge(first[None]), judge(frames)
    right = False
    if before.thing and after.thing and before.color == after.color:
        scale = frames.shape[1] / first.shape[0]
        start = (before.thing.centres[0] + 0.5) * scale - 0.5
        away = np.hypot(*(_line(after.thing)[0] - start))
        right = bool(away <= before.thing.radius * scale) and after.direction == asked
    return {"direction": right, "all": right}


def _named(prompt: str) -> dict[str, set[str]]:
    """Aspect → all of it that a prompt names."""
    text = prompt.casefold()
    words = set(re.findall("[a-z]+", text))
    ways = DIRECTIONS.items()
    return {
        # 红 of 红色 and 方形 of 正方形 suffice
        "color": {name for name, (zh, _) in COLORS.items() if name in words or zh[0] in text},
        "shape": {name for name, zh in SHAPES.items() if name in words or zh[-2:] in text},
        "direction": {name for name, _ in ways if words & {name, f"{name}ward", f"{name}wards"}}
        | {name for name, (zh, _) in ways if re.search(f"[向往朝]{zh[1]}", text)},
    }


def _asked(prompt: str, aspect: str) -> str:
    names = _named(prompt)[aspect]
    if len(names) != 1:
        found = ", ".join(sorted(names)) or "none"
        raise ValueError(f"{prompt!r}: one {aspect} is judged, and this names {found}")
    return names.pop()


def _lab(color) -> np.ndarray:
    pixel = np.clip(np.asarray(color, np.float32), 0, 255).reshape(1, 1, 3) / 255
    return cv2.cvtColor(pixel, cv2.COLOR_RGB2LAB)[0, 0]


def _hue(lab: np.ndarray) -> float:
    return float(np.degrees(np.arctan2(lab[2], lab[1])))


def _color(found: Thing, height: float) -> tuple[str | None, float]:
    """The nearest of the colors by hue, which a cast or a dimmer light changes least."""
    # blur has mixed the ground into it: unmixed by as much as the outline has lost
    pure = found.ground + (found.color - found.ground) * np.clip(height, 1, 1.8)
    lab = _lab(pure)
    away = {
        name: abs((_hue(lab) - _hue(_lab(rgb)) + 180) % 360 - 180)
        for name, (_, rgb) in COLORS.items()
    }
    first, second = sorted(away, key=away.__getitem__)[:2]
    if np.hypot(lab[1], lab[2]) < PALE or away[first] > HUE:
        return None, 0.0
    return first, 1 - away[first] / away[second]


def _line(found: Thing) -> np.ndarray:
    """Start and end [2, 2] (x, y) of the straight way through its centres, by least squares."""
    design = np.stack([np.ones(len(found.times)), found.times], axis=1)
    line = np.linalg.lstsq(design, found.centres, rcond=None)[0]
    return design[[0, -1]] @ line


def _direction(found: Thing, short: int) -> tuple[str | None, float]:
    if len(found.times) < 2:
        return None, 0.0
    start, end = _line(found)
    along = {name: float((end - start) @ step) for name, (_, step) in DIRECTIONS.items()}
    first, second = sorted(along, key=along.__getitem__, reverse=True)[:2]
    speeds = np.hypot(*np.diff(found.centres, axis=0).T) / np.diff(found.times)
    mean = along[first] / (found.times[-1] - found.times[0])
    if (
        along[first] < WAY * short
        or along[second] > ASLANT * along[first]
        or speeds.max() > JUMP * mean
    ):
        return None, 0.0
    return first, 1 - max(0.0, along[second]) / along[first]
