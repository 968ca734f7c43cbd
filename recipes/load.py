"""Reads the configuration: dataclasses, then YAML, then `key=value`. Every entry point shares it.

    python curation/run.py profile=sft source="my clips (1)" select.min_sharpness=0.2

An entry point ends in `sys.exit(main(Schema, function))`; a test or a notebook calls `load`.

Later wins: the schema's defaults < `recipes/profiles/<profile>.yaml` (for the keys of `select`) <
`recipes/<recipe>.yaml` < the command line. A file's `parent:` comes just before the file.

A key's type alone decides how its value is read, in YAML as on the command line. Text stands as it
is: commas, quotes, Chinese, brackets, `=` and `${` mean nothing in it. A list is `a,b` or `[a,b]`;
an element with a comma in it is `"a, b"`. `null` is None where the key may be None, else text. A
dictionary's entries are keys (`select.tiers.static=0.5`); where the schema lists some, there are no
others.
"""

import csv
import dataclasses
import math
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf

from recipes.files import flatten, lineage, short
from recipes.keys import Key, UsageError, keys, nearest, one_line, sections
from recipes.usage import FLAGS, usage

__all__ = ["UsageError", "load", "main", "to_yaml"]

T = TypeVar("T")

RECIPES = Path(__file__).parent


def load(schema: type[T], argv: list[str], folder: Path = RECIPES) -> T:
    """Composes a configuration; its attribute `command_line` has the paths of the keys in `argv`.

    Args:
        schema: a dataclass whose fields are sections (dataclasses), text, numbers, true or false,
            and lists and dictionaries of those. Its key `recipe`, where it has one, picks a YAML
            file of `folder`, by name or by path; its key `profile` one of `folder/profiles`, whose
            keys are those of the section `select`.
        argv: `key=value` arguments.

    Raises:
        UsageError: an unknown key, a wrong type, a value that is no choice, an unreadable file, or
            a ValueError of the schema's own `__post_init__`.
    """
    known = keys(schema)
    settings = [argument(text) for text in argv]
    # the recipe is composed first, since it may name the profile; then the profile goes below it
    for key, where, section in (("recipe", folder, ""), ("profile", folder / "profiles", "select")):
        if key not in known or section not in sections(schema):
            continue
        name = fill(schema, known, settings)[key]
        below = [
            Setting(path, value, file)
            for file, content in (lineage(key, name, where) if name else [])
            for path, value in flatten(content, section, known)
        ]
        settings = below + settings
    tree = fill(schema, known, settings)
    try:
        found = OmegaConf.to_object(tree)
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    found.command_line = tuple(dict.fromkeys(one.path for one in settings if one.file is None))
    return found


def main(
    schema: type[T], function: Callable[[T], int | None], argv: list[str] | None = None
) -> int:
    """Runs an entry point: reads its arguments, calls the function, tells a failure in one line.

    Args:
        function: takes the configuration, returns the exit status (None: 0).
        argv: the arguments; None: those of this process.

    Returns:
        The exit status: 2 for a UsageError, 1 for any other failure, 130 for Ctrl-C, 141 where the
        reader of our output has left (`| head`).
    """
    argv = sys.argv[1:] if argv is None else argv
    flags = {"--help" if one == "-h" else one for one in argv} & FLAGS.keys()
    arguments = [one for one in argv if one not in FLAGS and one != "-h"]
    command = sys.argv[0]
    try:
        if "--help" in flags:
            print(usage(shown(schema, arguments), command))
            status = 0
        elif "--show" in flags:
            print(to_yaml(load(schema, arguments)), end="")
            status = 0
        else:
            status = function(load(schema, arguments)) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_left():
            return 141
        mistake = isinstance(error, UsageError)
        if "--debug" in flags:
            traceback.print_exc()
        elif mistake:
            print(f"{command}: {one_line(error)}", file=sys.stderr)
        else:
            what = f"{type(error).__name__}: {one_line(error)}"
            print(f"{command}: {what} (--debug shows where)", file=sys.stderr)
        return 2 if mistake else 1


def to_yaml(config: Any) -> str:
    """The configuration as YAML, from which `load` reads the same values back."""
    plain = dataclasses.asdict(config)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=2**20)


@dataclass(frozen=True)
class Setting:
    """One value as it was written: text, and in YAML a list or, by mistake, anything."""

    path: str
    value: Any
    file: Path | None = None  # None: the command line

    def refused(self, why: str) -> UsageError:
        if self.file:
            return UsageError(f"{short(self.file)}: {self.path}: {why}")
        return UsageError(f"{self.path}={self.value}: {why}")


def argument(text: str) -> Setting:
    """One `key=value` of the command line."""
    path, equals, value = text.partition("=")
    if text.startswith("-"):
        plain = f"{path.lstrip('-').replace('-', '_')}={value or '...'}"
        raise UsageError(f"{text}: keys are written key=value without dashes: {plain}")
    if not equals:
        raise UsageError(f"{text!r} is not key=value; a value with spaces needs quotes: 'key=a b'")
    return Setting(path, value)


def fill(schema: type, known: dict[str, Key], settings: list[Setting]) -> DictConfig:
    """The schema's defaults, then the settings in order."""
    values = []
    for setting in settings:
        key, entry = find(setting, known)
        values.append((key, entry, read(setting, key)))
    tree = OmegaConf.structured(schema)
    for key, entry, value in values:
        if entry is None:
            OmegaConf.update(tree, key.path, value)
        else:
            OmegaConf.select(tree, key.path)[entry] = value
    return tree


def find(setting: Setting, known: dict[str, Key]) -> tuple[Key, str | None]:
    """The key that a setting names and, in a dictionary, the entry."""
    path = setting.path
    if path in known and not known[path].is_dict:
        return known[path], None
    names = []
    for key in known.values():
        if not key.is_dict:
            names.append(key.path)
            continue
        names += [f"{key.path}.{entry}" for entry in key.default or ["<name>"]]
        entry = path.removeprefix(f"{key.path}.")
        if entry != path and (entry in key.default or not key.default):
            return key, entry
    inside = next((name for name in names if name.startswith(f"{path}.")), None)
    if inside:
        raise setting.refused(f"a group of keys; give one of them, such as {inside}=...")
    raise setting.refused(f"unknown key; the nearest is {nearest(path, names)} (--help lists all)")


def read(setting: Setting, key: Key) -> Any:
    """A written value as its key's type."""
    value = setting.value
    wrong = setting.refused(f"wants {key.words}: {key.help}")
    if key.optional and value == "null":
        return None
    if key.is_list and isinstance(value, str):
        value = elements(value)
    ones = value if key.is_list else [value]
    if not isinstance(ones, list) or not all(isinstance(one, str) for one in ones):
        raise wrong
    for one in ones:
        if key.choices and one not in key.choices:
            near, allowed = nearest(one, key.choices), ", ".join(key.choices)
            raise setting.refused(f"{one!r} is not one of {allowed}; the nearest is {near}")
    try:
        converted = [convert(one, key.scalar) for one in ones]
    except ValueError as error:
        raise wrong from error
    return converted if key.is_list else converted[0]


def convert(text: str, scalar: type) -> Any:
    """One scalar; a ValueError where the text is none."""
    if scalar is str:
        return escape(text)
    if scalar is bool:
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    number = scalar(text)
    if not math.isfinite(number):
        raise ValueError(text)  # as a threshold it would compare with nothing; null switches off
    return number


def elements(text: str) -> list[str]:
    """`a,b`, `[a,b]` or `["a, b",c]`; nothing is the empty list."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    rows = csv.reader([text], skipinitialspace=True)
    return [element.strip() for row in rows for element in row]


def escape(text: str) -> str:
    """Plain text that OmegaConf would take for an interpolation or for a missing value."""
    if re.fullmatch(r"\\*\?\?\?", text):
        return "\\" + text
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def shown(schema: type[T], argv: list[str]) -> T:
    """The configuration that `--help` shows; with a mistake in the arguments, the default one."""
    try:
        return load(schema, argv)
    except UsageError:
        return load(schema, [])


def reader_left() -> bool:
    """Whether it is our own standard output that broke; then nothing more is written to it."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
