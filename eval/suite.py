"""Prompts to sample and to judge by: what is asked, and what single measures look for.

    suite = read_suite("rendered")                 # of eval/prompts, or a file
    suite.prompts[0].text, suite.prompts[0].asked, suite.sha256

Files: one prompt a line; `.jsonl`, an object a line with `prompt`, and optionally `dimensions`,
`asked` and, for image-to-video, `image`; or VBench's own `VBench_full_info.json` and
`vbench2_i2v_full_info.json`.
"""

import hashlib
import json
from collections.abc import Sequence
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
        image: the file of the picture that the video begins with; None: there is none.
    """

    text: str
    dimensions: tuple[str, ...] = ()
    asked: dict[str, Any] = field(default_factory=dict, hash=False)
    image: Path | None = None


@dataclass(frozen=True)
class Suite:
    """Prompts, in order; a prompt's place decides its seeds.

    Attributes:
        sha256: of the file.
        dimensions: all that its prompts name, those left out too.
    """

    name: str
    prompts: tuple[Prompt, ...]
    sha256: str
    dimensions: frozenset[str]

    @classmethod
    def of(cls, name: str, prompts: Sequence[Prompt], sha256: str = "", most: int | None = None):
        """All of the prompts, or the first so many."""
        dimensions = frozenset(one for prompt in prompts for one in prompt.dimensions)
        return cls(name, tuple(prompts[:most]), sha256, dimensions)


def read_suite(name: str, most: int | None = None, images: str | None = None) -> Suite:
    """A suite of ours by name, or a file.

    Args:
        images: the folder of the pictures that it names; None: the suite's own.

    Raises:
        UsageError: there is none, a line is no prompt, or a picture is not there.
    """
    path = FOLDER / f"{name}.jsonl"
    if not path.is_file():
        path = Path(name).expanduser()
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(one.stem for one in FOLDER.glob("*.jsonl")))
        why = getattr(error, "strerror", None) or "no UTF-8"
        raise UsageError(
            f"suite={name}: can't be read ({why}); of ours there is {known}"
        ) from error
    place = Path(images).expanduser() if images else path.parent
    if path.suffix == ".json":
        found = _vbenchs(text, name, place)
    else:
        lines = [(k, line) for k, line in enumerate(text.split("\n"), 1) if line.strip()]
        if path.suffix == ".jsonl":
            found = [_row(line, f"suite={name}: line {k}", place) for k, line in lines]
        else:
            found = [Prompt(line.strip()) for _, line in lines]
    texts = [one.text for one in found]
    if len(set(texts)) < len(texts):
        again = next(one for one in texts if texts.count(one) > 1)
        raise UsageError(f"suite={name}: {again!r} is there twice; seeds make several of one")
    if not found:
        raise UsageError(f"suite={name}: no prompt in it")
    for one in found[:most]:
        if one.image is not None and not one.image.is_file():
            raise UsageError(f"suite={name}: {one.image} is not there; images= names its folder")
    return Suite.of(path.stem, found, hashlib.sha256(data).hexdigest(), most)


def _row(line: str, where: str, images: Path) -> Prompt:
    try:
        row = json.loads(line)
        image = images / row["image"] if row.get("image") else None
        return _prompt(row["prompt"], row.get("dimensions", []), row.get("asked", {}), image)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f'{where}: wants an object such as {{"prompt": "a cat"}}') from error


def _vbenchs(text: str, name: str, images: Path) -> list[Prompt]:
    """VBench's file: prompts of several dimensions are named once for each."""
    try:
        known: dict[str, tuple[list[str], dict[str, Any], Path | None]] = {}
        for row in json.loads(text):
            image = images / row["image_name"] if "image_name" in row else None
            dimensions, asked, first = known.setdefault(row["prompt_en"], ([], {}, image))
            if image != first:
                raise ValueError(f"{row['prompt_en']!r} has two pictures")
            if isinstance(row["dimension"], str):
                raise TypeError("dimension is no list")
            dimensions += row["dimension"]
            for dimension, what in row.get("auxiliary_info", {}).items():
                # {"color": {"color": "red"}} says no more than {"color": "red"}
                same = isinstance(what, dict) and set(what) == {dimension}
                asked[dimension] = what[dimension] if same else what
        return [_prompt(one, *both) for one, both in known.items()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"suite={name}: not of VBench's form ({error!r})") from error


def _prompt(text: Any, dimensions: Any, asked: Any, image: Path | None) -> Prompt:
    if not isinstance(text, str) or not text.strip() or not isinstance(asked, dict):
        raise ValueError
    if not isinstance(dimensions, list) or not all(isinstance(one, str) for one in dimensions):
        raise ValueError
    return Prompt(text.strip(), tuple(dict.fromkeys(dimensions)), asked, image)
