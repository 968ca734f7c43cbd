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

import cv2
import numpy as np

from curation.video import VideoError, clip_frames, probe
from eval import inputs, memory
from eval.contenders import Contender
from eval.measures.measure import Measure, Video
from eval.stats import Scores
from eval.suite import Prompt, Suite
from eval.vbench_package import Package, asks
from recipes.keys import UsageError, one_line

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
        for line in data[:end].split(b"\n")[:-1]:
            try:
                *key, value = json.loads(line)
                self.rows[tuple(key)] = np.nan if value is None else float(value)
            except (ValueError, TypeError):  # damaged: what it told is measured again
                continue

    def add(self, key: tuple, value: float) -> None:
        self.rows[key] = value
        row = [*key, None if np.isnan(value) else value]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UsageError(f"{self.path}: can't be written ({error.strerror})") from error


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
            except (VideoError, UsageError) as error:
                tables[k].broken.append(f"{path.name}: {error}")
                tell(1)
                continue
            for measure, known_as in zip(wanted[prompt.text], keys, strict=True):
                if known_as not in known.rows:
                    began = time.perf_counter()
                    try:
                        value = measure(video)
                    except (cv2.error, ValueError, RuntimeError, UsageError) as error:
                        if memory.is_exhausted(error):  # the next video won't fit either
                            raise UsageError(f"{measure.name}: memory ran out") from error
                        # too small for a network, or asked for in another form: its number only
                        tables[k].broken.append(f"{path.name}: {measure.name}: {one_line(error)}")
                        continue
                    known.add(known_as, value)
                    spent = tables[k].seconds.setdefault(measure.name, [])
                    spent.append(time.perf_counter() - began)
                values[k][measure.name][key] = known.rows[known_as]
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
    return (
        not prompt.dimensions
        or measure.dimension not in suite.dimensions
        or measure.dimension in prompt.dimensions
    )


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
    """What a number is kept under: the prompt, what it is asked for, and its picture's hash."""
    parts = [prompt.text]
    if prompt.asked:
        parts.append(json.dumps(prompt.asked, sort_keys=True, ensure_ascii=False))
    if prompt.image is not None:
        parts.append(inputs.sha256(prompt.image))
    return " ".join(parts)


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

        asked = {name: [key for key in hashes if asks(name, suite, key[0])] for name in dimensions}
        unknown = {
            name: [key for key in keys if key_of(name, key) not in known.rows]
            for name, keys in asked.items()
        }
        lacking = [name for name, keys in unknown.items() if keys]
        if lacking:
            some = {key for keys in unknown.values() for key in keys}
            videos = {key: one.videos[key] for key in sorted(some)}
            found = package.measure(lacking, suite, videos, folder / one.identity)
            table.broken += dict.fromkeys(found.broken)
            table.broken += [f"vbench {name}: {why}" for name, why in found.failed.items()]
            for name, numbers in found.values.items():
                for key in unknown[name]:  # one without a number is not asked again
                    known.add(key_of(name, key), numbers.get(key, np.nan))
        for name, keys in asked.items():
            values = np.full(shape, np.nan)
            for key in keys:
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
