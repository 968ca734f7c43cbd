"""Which videos a command asks for: one job each, from one prompt or from a file of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipes.keys import UsageError, keys, nearest, one_line
from recipes.load import load
from recipes.sample import Sample

ROW = (
    *("prompt", "negative", "seed", "count", "task", "image", "last_image", "video", "size"),
    *("frames", "steps", "guidance", "shift", "strength", "given", "solver"),
)
STRIDE = 100_000  # between the first seeds of two prompts: more videos than any prompt has
MOVIE, PICTURE = ".mp4", ".png"


@dataclass(frozen=True)
class Job:
    """One video."""

    config: Sample  # the command's, with what the prompt's own line says
    seed: int
    out: Path  # without suffix, unless the command named the file

    @property
    def named(self) -> bool:
        """Whether the command named the file itself."""
        return self.out.suffix in (MOVIE, PICTURE)


def jobs(config: Sample) -> list[Job]:
    """Every video, in order.

    The seed of video j of prompt i is seed + 100000 i + j, so that a prompt's first videos stay
    the same when more are asked for, and prompts don't share their noise. A line's own `seed`
    stands for seed + 100000 i.

    Raises:
        UsageError: no prompt, two sources of them, a file that can't be read, or names that clash.
    """
    if (config.prompt is None) == (config.prompts is None):
        what = "both are given" if config.prompt is not None else "there is nothing to sample"
        raise UsageError(f'give prompt="..." or prompts=FILE: {what}')
    if config.count < 1 or config.batch < 1:
        raise UsageError(f"count={config.count}, batch={config.batch}: at least 1")
    rows = [("", {"prompt": config.prompt})]
    if config.prompts is not None:
        rows = list(read(config.prompts))
    out = Path(config.out).expanduser()
    found: list[Job] = []
    for i, (where, row) in enumerate(rows):
        name = named(row.pop("name", f"{i:04d}"), where)
        own = replace(config, **row)
        if own.count < 1:
            raise UsageError(f"{where}: count={own.count}: at least 1")
        first = own.seed if "seed" in row else config.seed + STRIDE * i
        for j in range(own.count):
            path = out / (name if own.count == 1 else f"{name}-{j}")
            found.append(Job(own, first + j, path))
    if out.suffix in (MOVIE, PICTURE):
        if len(found) > 1:
            raise UsageError(f"out={config.out}: {len(found)} videos need a folder")
        return [replace(found[0], out=out)]
    twice = {job.out.name.casefold(): job.out.name for job in found}
    if len(twice) < len(found):
        names = [job.out.name.casefold() for job in found]
        again = next(name for name in twice if names.count(name) > 1)
        raise UsageError(f"{config.prompts}: two videos would be called {twice[again]}")
    return found


def read(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The prompts of a file: where each stands, and the keys that it sets.

    A .jsonl file holds an object a line, any other a prompt a line; empty lines are passed over.

    Raises:
        UsageError: it can't be read, is empty, or a line has an unknown key or a wrong value.
    """
    path = Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"prompts={file}: {one_line(error)}") from error
    filled = [(i, line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise UsageError(f"prompts={file}: holds no prompt")
    for i, line in filled:
        where = f"{file}: line {i}"
        yield where, parsed(line, where) if path.suffix == ".jsonl" else {"prompt": line}


def parsed(line: str, where: str) -> dict[str, Any]:
    """One object of a .jsonl file as values of the keys that it names."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: no JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise UsageError(f'{where}: wants an object such as {{"prompt": "a cat", "seed": 1}}')
    known, found = keys(Sample), {}
    for name, value in row.items():
        if name not in (*ROW, "name"):
            raise UsageError(f"{where}: unknown key {name}; the nearest is {nearest(name, ROW)}")
        if name == "name" or (known[name].scalar is str and not known[name].choices):
            if not isinstance(value, str) and (name == "name" or value is not None):
                raise UsageError(f"{where}: {name} wants text")
            found[name] = value
            continue
        if known[name].scalar is type(value) is int:
            found[name] = value
            continue
        text = "null" if value is None else str(value)
        try:
            found[name] = getattr(load(Sample, [f"{name}={text}"]), name)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
    return found


def named(name: str, where: str) -> str:
    """A name that is a file's own, in the folder `out` and nowhere else."""
    if not name or name.startswith(".") or any(one in name for one in '/\\\0:*?"<>|\n'):
        raise UsageError(f"{where}: name={name!r} is no plain file name")
    return name
