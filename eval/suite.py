"""Prompts to sample and to judge by: what is asked, and what single measures look for.

    suite = read_suite("rendered")                 # of eval/prompts, or a file
    suite.prompts[0].text, suite.prompts[0].asked, suite.sha256

Files: one prompt a line; `.jsonl`, an object a line with `prompt`, and optionally `dimensions` and
`asked`; or VBench's own `VBench_full_info.json`.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.keys import UsageError

FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: what is sampled.
        dimensions: names of the measures that it is for; empty: all.
        asked: what of it single measures look for, by their names.
    """

    text: str
    dimensions: tuple[str, ...] = ()
    asked: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Suite:
    """Prompts, in order; a prompt's place decides its seeds."""

    name: str
    prompts: tuple[Prompt, ...]
    sha256: str  # of the file


def read_suite(name: str, most: int | None = None) -> Suite:
    """A suite of ours by name, or a file.

    Raises:
        UsageError: there is none, or a line is no prompt.
    """
    path = FOLDER / f"{name}.jsonl"
    if not path.is_file():
        path = Path(name).expanduser()
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(one.stem for one in FOLDER.glob("*.jsonl")))
        why = getattr(error, "strerror", None) or "no UTF-8"
        raise UsageError(
            f"suite={name}: can't be read ({why}); of ours there is {known}"
        ) from error
    if path.suffix == ".json":
        found = _vbenchs(text, name)
    else:
        lines = [(k, line) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
        if path.suffix == ".jsonl":
            found = [_row(line, f"suite={name}: line {k}") for k, line in lines]
        else:
            found = [Prompt(line.strip()) for _, line in lines]
    texts = [one.text for one in found]
    if len(set(texts)) < len(texts):
        again = next(one for one in texts if texts.count(one) > 1)
        raise UsageError(f"suite={name}: {again!r} is there twice; seeds make several of one")
    if not found:
        raise UsageError(f"suite={name}: no prompt in it")
    return Suite(path.stem, tuple(found[:most]), hashlib.sha256(data).hexdigest())


def _row(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
        return _prompt(row["prompt"], row.get("dimensions", []), row.get("asked", {}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f'{where}: wants an object such as {{"prompt": "a cat"}}') from error


def _vbenchs(text: str, name: str) -> list[Prompt]:
    """VBench's file: prompts of several dimensions are named once for each."""
    try:
        known: dict[str, tuple[list[str], dict[str, Any]]] = {}
        for row in json.loads(text):
            dimensions, asked = known.setdefault(row["prompt_en"], ([], {}))
            dimensions += row["dimension"]
            for dimension, what in row.get("auxiliary_info", {}).items():
                # {"color": {"color": "red"}} says no more than {"color": "red"}
                same = isinstance(what, dict) and set(what) == {dimension}
                asked[dimension] = what[dimension] if same else what
        return [_prompt(one, *both) for one, both in known.items()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"suite={name}: not of VBench's form ({error!r})") from error


def _prompt(text: Any, dimensions: Any, asked: Any) -> Prompt:
    if not isinstance(text, str) or not text.strip() or not isinstance(asked, dict):
        raise ValueError
    return Prompt(text.strip(), tuple(dict.fromkeys(map(str, dimensions))), asked)
