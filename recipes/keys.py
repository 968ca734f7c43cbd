"""The keys of a schema: its tree of dataclasses as dotted paths with types and meanings."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class UsageError(Exception):
    """A user's mistake, told in one line: what, where, and what to do. Exit status 2."""


@dataclass(frozen=True)
class Key:
    """One key."""

    path: str  # dotted, e.g. select.min_sharpness
    kind: Any  # without None: str, int, float, bool, or a list[...] or dict[str, ...] of those
    optional: bool  # may be None
    default: Any
    help: str
    choices: tuple[str, ...]

    @property
    def is_list(self) -> bool:
        return get_origin(self.kind) is list

    @property
    def is_dict(self) -> bool:
        return get_origin(self.kind) is dict

    @property
    def scalar(self) -> type:
        """The type of one element, entry or value."""
        return get_args(self.kind)[-1] if self.is_list or self.is_dict else self.kind

    @property
    def words(self) -> str:
        """What it wants, as a person reads it."""
        words = WORDS[self.scalar]
        if self.is_list:
            words = "a list of " + words.removeprefix("a ").replace("number", "numbers")
        return words + " or null" * self.optional


def keys(schema: type, prefix: str = "") -> dict[str, Key]:
    """Every key of a schema by its dotted path, sections flattened, in order.

    Raises:
        TypeError: the schema has a field of a type that the loader does not read.
    """
    found: dict[str, Key] = {}
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        path, kind = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(kind):
            found |= keys(kind, f"{path}.")
            continue
        optional = get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)
        if optional:
            kind = next(one for one in get_args(kind) if one is not NoneType)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        choices = tuple(map(str, field.metadata.get("choices", ())))
        key = Key(path, kind, optional, default, field.metadata.get("help", ""), choices)
        if key.scalar not in WORDS or (optional and key.is_dict):
            raise TypeError(f"{schema.__name__}.{field.name}: the loader reads no {kind}")
        found[path] = key
    return found


def sections(schema: type, prefix: str = "") -> dict[str, type]:
    """The schema itself as "" and its nested groups of keys by dotted path, in order."""
    found = {prefix.removesuffix("."): schema}
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[field.name]):
            found |= sections(hints[field.name], f"{prefix}{field.name}.")
    return found


def nearest(name: str, names: Iterable[str]) -> str:
    """The likeliest meant: alike as a whole, or in the last part where the section was left out."""

    def likeness(other: str) -> tuple[float, float]:
        whole = SequenceMatcher(None, name, other).ratio()
        last = SequenceMatcher(None, name.split(".")[-1], other.split(".")[-1]).ratio()
        return max(whole, last), whole

    return max(names, key=likeness)


def one_line(error: BaseException) -> str:
    """An error's message without its line breaks."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
