"""What the measures are worth: faults are planted into good videos, and each must move its own.

The good videos are the bundled films and drawn shapes whose prompts are known. A fault is noticed
where its measure moves the right way in nine of ten videos, and on average by more than its noise
floor; one that says right or wrong, where it falls by 0.54, since chance leaves some right.

The floor is what the mean moves by with other takes of the same, as with another seed of a
checkpoint: each film's later part, each drawing's thing elsewhere on another ground.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.video import clip_frames, probe
from eval.faults import FAULTS
from eval.measures import rendered
from eval.measures.measure import Measure, Video
from eval.stats import Scores, noise_floor
from eval.video_out import whole

FILMS = Path(__file__).parents[1] / "data" / "samples"
FRAMES, SIDE, DRAWN = 33, 256, 24
FILE = "self_test.json"


def run(measures: Sequence[Measure], out: Path) -> dict[str, Any]:
    """Plants every fault whose measure is there."""
    measured = {one.name: one for one in measures}
    films, drawings = references(), [drawn(number) for number in range(DRAWN)]
    others = references(FRAMES), [drawn(number, take=1) for number in range(DRAWN)]
    clean: dict[int, dict[str, np.ndarray]] = {}  # of films and of drawings, once for all faults
    floors: dict[str, float] = {}
    rows = []
    for name, fault in FAULTS.items():
        if fault.measure not in measured:
            continue
        videos = drawings if fault.measure.startswith("follows_") else films
        some = slice(None)
        if name == "mirror":
            some = [k for k, one in enumerate(videos) if one.prompt.endswith(("left", "right"))]
        if id(videos) not in clean:
            clean[id(videos)] = numbers(measures, videos)
        whole_ones = np.array(videos, dtype=object)[some]
        shown = [
            Video(fault.plant(one.frames), one.fps, one.prompt, one.asked) for one in whole_ones
        ]
        moved = {}
        for one, after in numbers(measures, shown).items():
            before = clean[id(videos)][one][some]
            there = np.isfinite(before) & np.isfinite(after)
            if there.any():
                moved[one] = moves(before[there], after[there])
        own = moved[fault.measure]
        if fault.measure not in floors:
            takes = (drawings, others[1]) if videos is drawings else (films, others[0])
            floors[fault.measure] = floor(measured[fault.measure], *takes)
        rows.append(
            {
                "fault": name,
                "says": fault.says,
                "measure": fault.measure,
                "falls": fault.falls,
                "floor": floors[fault.measure],
                "noticed": noticed(own, fault.falls, floors[fault.measure]),
                "moved": moved,
            }
        )
    found = {
        "videos": len(films),
        "drawings": len(drawings),
        "of": {one.name: one.backbone for one in measures},
        "faults": rows,
    }
    with whole(out / FILE) as part:
        part.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


def numbers(measures: Sequence[Measure], videos: Sequence[Video]) -> dict[str, np.ndarray]:
    """By measure, of each video."""
    return {one.name: np.array([one(video) for video in videos]) for one in measures}


def moves(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """How a measure moved: mean difference, in spreads of the good videos, and in which share of
    the videos that could move it did so that way."""
    difference = after - before
    delta = float(difference.mean())
    spread = float(before.std()) or 1.0
    same_way = np.sign(difference) == np.sign(delta)
    if set(np.unique(before)) <= {0.0, 1.0}:  # right or wrong: chance leaves some right
        share = float(abs(delta) / 0.6)
    else:
        share = float(same_way.mean())
    return {"delta": delta, "in_spreads": delta / spread, "share": min(1.0, share)}


def noticed(moved: dict[str, float], falls: bool, floor: float) -> bool:
    """Whether a measure moved the right way, almost always, and by more than chance does."""
    right_way = (moved["delta"] < 0) == falls
    return moved["share"] >= 0.9 and right_way and abs(moved["delta"]) > floor


def floor(measure: Measure, one: Sequence[Video], other: Sequence[Video]) -> float:
    """What the mean of a measure moves by at most, in 95 of 100 other takes of the same videos."""
    values = np.array([[measure(video) for video in pair] for pair in zip(one, other, strict=True)])
    return noise_floor(Scores(tuple(map(str, range(len(values)))), values))


def known(measures: Sequence[Measure], out: Path) -> dict[str, Any] | None:
    """What an earlier self-test of measures found, of those that are here; None where it was of
    another backbone, or there was none."""
    try:
        found = json.loads((out / FILE).read_text("utf-8"))
        was = {name: tuple(one) if one else None for name, one in found["of"].items()}
    except (OSError, ValueError, KeyError):
        return None
    here = {one.name: one.backbone for one in measures}
    if any(was[name] != here[name] for name in was.keys() & here.keys()):
        return None
    found["faults"] = [row for row in found["faults"] if row["measure"] in here]
    return found


def references(first: int = 0) -> list[Video]:
    """The bundled films, FRAMES of each from one on."""
    found = []
    for path in sorted(FILMS.glob("*.mp4")):
        frames = clip_frames(path, list(range(first, first + FRAMES)))
        found.append(Video(frames, float(probe(path).fps)))
    return found


def drawn(number: int, take: int = 0) -> Video:
    """A shape that moves as its prompt says, on grey; another take has it elsewhere."""
    random = np.random.RandomState(1000 * take + number)
    colors, shapes, ways = list(rendered.COLORS), list(rendered.SHAPES), list(rendered.DIRECTIONS)
    color, shape = colors[number % 4], shapes[number % 3]
    way = ways[number // 3 % 4]
    step = np.array(rendered.DIRECTIONS[way][1]) * SIDE / 2 / FRAMES
    middle = SIDE / 2 + random.uniform(-SIDE / 16, SIDE / 16, 2)
    ground = np.full((SIDE, SIDE, 3), random.randint(90, 170), np.uint8)
    frames = []
    for t in range(FRAMES):
        x, y = middle + step * (t - FRAMES / 2)
        frame = ground.copy()
        paint = rendered.COLORS[color][1]
        radius = SIDE * 0.13
        if shape == "circle":
            cv2.circle(frame, (round(x), round(y)), round(radius), paint, -1, cv2.LINE_AA)
        else:
            sides = {"square": 4, "triangle": 3}[shape]
            reach = radius * {4: 1.254, 3: 1.556}[sides]
            turns = np.pi * (0.25 if sides == 4 else -0.5) + 2 * np.pi * np.arange(sides) / sides
            corners = np.stack([x + reach * np.cos(turns), y + reach * np.sin(turns)], 1)
            cv2.fillPoly(frame, [corners.round().astype(np.int32)], paint, cv2.LINE_AA)
        frames.append(frame)
    return Video(np.stack(frames), 16, f"a {color} {shape} moving {way}")
