"""Videos through measures: each is decoded once, and what is known of it is not measured again.

    known = Known(out / "scores.jsonl")
    tables = score(contenders, suite, measures, seeds, known, tell)
    tables[0]["sharpness"].values                    # [P, S]

A row of `scores.jsonl` is one number: the video's SHA-256, the prompt (and its image's), the measure
and its backbone's. It is appended as soon as it is known, so a run that is killed loses nothing.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from curation.video import VideoError, clip_frames, probe
from eval import inputs
from eval.contenders import Contender
from eval.measures.measure import Measure, Video
from eval.stats import Scores
from eval.suite import Prompt, Suite

VERSION = 1  # of all measures: what older ones found is measured again


class Known:
    """Numbers that were measured before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple, float] = {}
        if not path.is_file():
            return
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):  # a run was killed in the middle of a line
            with path.open("r+b") as file:
                file.truncate(end)
        for line in data[:end].decode("utf-8").splitlines():
            *key, value = json.loads(line)
            self.rows[tuple(key)] = np.nan if value is None else float(value)

    def add(self, key: tuple, value: float) -> None:
        self.rows[key] = value
        row = [*key, None if np.isnan(value) else value]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@dataclass
class Table:
    """All that was measured of one contender.

    Attributes:
        scores: by measure.
        broken: videos that can't be read, and why.
    """

    scores: dict[str, Scores] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


def score(
    contenders: Sequence[Contender],
    suite: Suite,
    measures: Sequence[Measure],
    seeds: int,
    known: Known,
    tell: Callable[[int], None] = lambda count: None,
) -> list[Table]:
    """Measures every video of every contender.

    Args:
        tell: is told of each video that is done.
    """
    tables = []
    for one in contenders:
        table, shape = Table(), (len(suite.prompts), seeds)
        values = {measure.name: np.full(shape, np.nan) for measure in measures}
        for (i, j), path in sorted(one.videos.items()):
            prompt = suite.prompts[i]
            wanted = [measure for measure in measures if applies(measure, prompt, suite)]
            try:
                found = measured(path, prompt, wanted, known)
            except VideoError as error:
                table.broken.append(f"{path.name}: {error}")
                found = {}
            for name, value in found.items():
                values[name][i, j] = value
            tell(1)
        texts = tuple(prompt.text for prompt in suite.prompts)
        table.scores = {
            measure.name: Scores(texts, values[measure.name], measure.higher_is_better is not False)
            for measure in measures
        }
        tables.append(table)
    return tables


def applies(measure: Measure, prompt: Prompt, suite: Suite) -> bool:
    """Whether a prompt is for a measure: VBench names the dimensions that each of its prompts is
    for; what is no dimension of the suite is measured on all."""
    named = {name for one in suite.prompts for name in one.dimensions}
    return measure.dimension not in named or measure.dimension in prompt.dimensions


def measured(
    path: Path, prompt: Prompt, measures: Sequence[Measure], known: Known
) -> dict[str, float]:
    """By measure.

    Raises:
        VideoError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise VideoError(f"can't be read: {error.strerror}") from error
    question = prompt.text
    if prompt.image is not None:
        question += f" {inputs.sha256(prompt.image)}"
    found, video = {}, None
    for measure in measures:
        through = measure.backbone[1] if measure.backbone else None
        key = (VERSION, sha256, question, measure.name, through)
        if key not in known.rows:
            if video is None:
                frames, fps = clip_frames(path), float(probe(path).fps)
                image = None if prompt.image is None else inputs.picture(prompt.image)
                video = Video(frames, fps, prompt.text, prompt.asked, image)
            known.add(key, measure(video))
        found[measure.name] = known.rows[key]
    return found
