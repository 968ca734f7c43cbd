"""A source of which half is bad: blurred, frozen, shaky, letterboxed, or a copy of another.

    render(folder, 2000, exclude=["red-circle-left"])

Every clip has the caption of what was rendered, the bad ones too. A copy is encoded anew, shifted
by a pixel, from one of a few clips.
"""

import json
from pathlib import Path

import cv2
import numpy as np

from curation import synthetic
from recipes.schema import Synthetic

SEED = 3
SHARE = 0.5  # of bad clips, as many of each kind
COPIED = 10  # clips that all copies are of


def blurred(frames: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(one, (0, 0), frames.shape[1] / 20) for one in frames])


def frozen(frames: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    return np.repeat(frames[len(frames) // 2 :][:1], len(frames), axis=0)


def shaky(frames: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Each frame shifted on its own, by a tenth of its side on average."""
    shaken, size = [], frames.shape[2:0:-1]
    for frame, shift in zip(frames, random.randn(len(frames), 2) * size[0] / 10, strict=True):
        move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
        shaken.append(cv2.warpAffine(frame, move, size, borderMode=cv2.BORDER_REFLECT))
    return np.stack(shaken)


def letterboxed(frames: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Black above and below, as of a film of 16:9 in a square."""
    bar = round(frames.shape[1] * (1 - 9 / 16) / 2)
    boxed = frames.copy()
    boxed[:, :bar] = boxed[:, -bar:] = 0
    return boxed


def copied(frames: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    return np.roll(frames, random.randint(-1, 2, 2), axis=(1, 2))


FAULTS = (blurred, frozen, shaky, letterboxed, copied)


def render(folder: Path, count: int, exclude: list[str], size: int = 64) -> None:
    """Writes the clips that are not there yet; which are bad, and how, follows from their number.

    A file's name says its fault, and no step of curation looks at names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = Synthetic(size=size, frames=9, seed=SEED, exclude=exclude)
    period = round(1 / SHARE)
    for number in range(count):
        fault = FAULTS[number // period % len(FAULTS)] if number % period == 0 else None
        path = folder / f"{number:06d}-{fault.__name__ if fault else 'clean'}.mp4"
        if path.exists():
            continue
        original = number // (period * len(FAULTS)) % COPIED if fault is copied else number
        scene = synthetic.shapes(original, config)
        frames = scene.frames
        if fault:
            frames = fault(frames, np.random.RandomState([SEED, number]))
        captions = [{"text": text, "language": name} for name, text in scene.captions.items()]
        path.with_suffix(".json").write_text(json.dumps({"captions": captions}), "utf-8")
        part = path.with_suffix(".part")
        synthetic.encode(frames, part)
        part.replace(path)


def kept(catalog: Path) -> dict[str, str]:
    """Of each kind of clip, how many are kept."""
    import duckdb

    with duckdb.connect(str(catalog), read_only=True) as rows:
        found = rows.execute(
            "SELECT regexp_extract(v.name, '[0-9]+-([a-z]+)', 1) AS kind, "
            "count(*) FILTER (WHERE d.kept), count(*) FROM decisions d "
            "JOIN clips c USING (clip_id) JOIN videos v USING (video_id) "
            "GROUP BY kind ORDER BY kind"
        ).fetchall()
    return {kind: f"{count} of {total}" for kind, count, total in found}
