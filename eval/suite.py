"""Prompts to sample and to judge by: what is asked, and what single measures look for.

    suite = read_suite("rendered")                 # of eval/prompts, or a file
    suite.prompts[0].text, suite.prompts[0].asked, suite.sha256

Files: one prompt a line; `.jsonl`, an object a line with `prompt`, and optionally `dimensions`,
`asked` and, for image-to-video, `image`; or VBench's own `VBench_full_info.json` and
`vbench2_i2v_full_info.json`.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
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
    """Prompts, in order; a prompt's place decides its seeds."""

    name: str
    prompts: tuple[Prompt, ...]
    sha256: str  # of the file

    @cached_property
    def dimensions(self) -> frozenset[str]:
        """All that its prompts name."""
        return frozenset(name for one in self.prompts for name in one.dimensions)


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
        text = data.decode("utf-8")
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
        lines = [(k, line) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
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
    found = found[:most]
    for one in found:
        if one.image is not None and not one.image.is_file():
            raise UsageError(f"suite={name}: {one.image} is not there; images= names its folder")
    return Suite(path.stem, tuple(found), hashlib.sha256(data).hexdigest())


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
            dimensions, asked, _ = known.setdefault(row["prompt_en"], ([], {}, image))
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
    return Prompt(text.strip(), tuple(dict.fromkeys(map(str, dimensions))), asked, image)
