"""Videos through measures: each is decoded once, and what is known of it is not measured again.

    known = Known(out / "scores.jsonl")
    tables = score(contenders, suite, measures, seeds, known, tell)
    tables[0]["sharpness"].values                    # [P, S]

A row of `scores.jsonl` is one number: the video's SHA-256, the prompt (its image's), the measure
and its backbone's. It is appended as soon as it is known, so a run that is killed loses nothing.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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

VERSION = 2  # of all measures: what older ones found is measured again


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
        seconds: by measure, of each video that was measured now.
    """

    scores: dict[str, Scores] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)


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
    texts, shape = tuple(prompt.text for prompt in suite.prompts), (len(suite.prompts), seeds)
    jobs = [
        (k, key, path, suite.prompts[key[0]])
        for k, one in enumerate(contenders)
        for key, path in sorted(one.videos.items())
    ]
    wanted = {
        prompt.text: [one for one in measures if applies(one, prompt, suite)] for *_, prompt in jobs
    }
    tables = [Table() for _ in contenders]
    values = [{one.name: np.full(shape, np.nan) for one in measures} for _ in contenders]
    with ThreadPoolExecutor(1) as reader:  # the next video is decoded while one is measured
        ahead = deque(jobs)

        def read_next() -> Future | None:
            if not ahead:
                return None
            *_, path, prompt = ahead.popleft()
            return reader.submit(opened, path, prompt, wanted[prompt.text], known)

        coming = read_next()
        for k, key, path, prompt in jobs:
            future, coming = coming, read_next()
            try:
                video, keys = future.result()
                for measure, known_as in zip(wanted[prompt.text], keys, strict=True):
                    if known_as not in known.rows:
                        began = time.perf_counter()
                        known.add(known_as, measure(video))
                        spent = tables[k].seconds.setdefault(measure.name, [])
                        spent.append(time.perf_counter() - began)
                    values[k][measure.name][key] = known.rows[known_as]
            except VideoError as error:
                tables[k].broken.append(f"{path.name}: {error}")
            tell(1)
    for table, found in zip(tables, values, strict=True):
        table.scores = {
            one.name: Scores(texts, found[one.name], one.higher_is_better is not False)
            for one in measures
        }
    return tables


def applies(measure: Measure, prompt: Prompt, suite: Suite) -> bool:
    """Whether a prompt is for a measure: VBench names the dimensions that each of its prompts is
    for; what is no dimension of the suite is measured on all."""
    return measure.dimension not in suite.dimensions or measure.dimension in prompt.dimensions


def opened(
    path: Path, prompt: Prompt, measures: Sequence[Measure], known: Known
) -> tuple[Video | None, list[tuple]]:
    """A video, decoded unless every measure of it is known; what each measure is kept under.

    Raises:
        VideoError: it can't be read.
    """
    try:
        sha256 = inputs.sha256(path)
    except OSError as error:
        raise VideoError(f"can't be read: {error.strerror}") from error
    question = asking(prompt)
    keys = [
        (VERSION, sha256, question, one.name, one.backbone[1] if one.backbone else None)
        for one in measures
    ]
    if all(key in known.rows for key in keys):
        return None, keys
    frames, fps = clip_frames(path), float(probe(path).fps)
    image = None if prompt.image is None else inputs.picture(prompt.image)
    return Video(frames, fps, prompt.text, prompt.asked, image), keys


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
