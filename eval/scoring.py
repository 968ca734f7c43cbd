"""Videos through measures: each is decoded once, and what is known of it is not measured again.

    known = Known(out / "scores.jsonl")
    tables = score(contenders, suite, measures, seeds, known, tell)
    tables[0]["sharpness"].values                    # [P, S]

A row of `scores.jsonl` is one number: the video's SHA-256, the prompt (its image's), the measure
and its backbone's. It is appended as soon as it is known, so a run that is killed loses nothing.
"""

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
from eval.vbench_package import Package, asks

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
        sha256 = inputs.sha256(path)
    except OSError as error:
        raise VideoError(f"can't be read: {error.strerror}") from error
    found, video, question = {}, None, asking(prompt)
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


def asking(prompt: Prompt) -> str:
    """What a number is kept under: the prompt, and its picture's hash."""
    return prompt.text if prompt.image is None else f"{prompt.text} {inputs.sha256(prompt.image)}"


def packaged(
    package: Package,
    dimensions: Sequence[str],
    contenders: Sequence[Contender],
    suite: Suite,
    known: Known,
    tables: Sequence[Table],
    folder: Path,
) -> list[Measure]:
    """Adds to the tables what VBench's own package measures; it is not asked again what is known.

    Args:
        folder: where it works, one folder a contender.

    Returns:
        What the new columns are.
    """
    for one, table in zip(contenders, tables, strict=True):
        shape = next(iter(table.scores.values())).values.shape
        hashes = {key: inputs.sha256(path) for key, path in one.videos.items() if path.is_file()}

        def key_of(name: str, key: tuple[int, int], hashes: dict = hashes) -> tuple:
            question = asking(suite.prompts[key[0]])
            return VERSION, hashes[key], question, f"vbench/{name}", package.identity

        for name in dimensions:
            asked = [key for key in hashes if asks(name, suite.prompts, key[0])]
            if any(key_of(name, key) not in known.rows for key in asked):
                videos = {key: one.videos[key] for key in asked}
                found = package.measure([name], suite.prompts, videos, folder / one.identity)
                table.broken += found.broken
                table.broken += [f"vbench {which}: {why}" for which, why in found.failed.items()]
                for key, value in found.values.get(name, {}).items():
                    known.add(key_of(name, key), value)
            values = np.full(shape, np.nan)
            for key in asked:
                values[key] = known.rows.get(key_of(name, key), np.nan)
            table.scores[name] = Scores(tuple(p.text for p in suite.prompts), values)
    return [
        Measure(
            name,
            _elsewhere,
            "0–1",
            None if name == "dynamic_degree" else True,
            f"{name}, by VBench's own package",
            (package.identity, "its weights tell no hash"),
        )
        for name in dimensions
    ]


def _elsewhere(video: Video) -> float:
    raise NotImplementedError("VBench's package measures files, in a process of its own")
