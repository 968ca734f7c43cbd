"""Recipes and profiles: YAML files that state only how they differ from the parent they name."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from recipes.keys import Key, UsageError, nearest, one_line


class Loader(yaml.BaseLoader):
    """Leaves every scalar text, for the schema's types to decide, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is text", problem_mark=name.start_mark)
            if name.value in seen:
                problem = f"{name.value} stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


def lineage(key: str, name: str, folder: Path) -> list[tuple[Path, dict]]:
    """A file's content after that of its parents, the eldest first.

    Args:
        key: what named the file, for messages: `recipe` or `profile`.
        name: the name of a file in `folder`, or a path (with a `/` or ending in .yaml). A path in a
            `parent:` starts from the file that it stands in.

    Raises:
        UsageError: a missing or unreadable file, or one that is its own ancestor.
    """
    files: list[tuple[Path, dict]] = []
    base = Path()
    while True:
        by_path = "/" in name or name.endswith((".yaml", ".yml"))
        path = base / name if by_path else folder / f"{name}.yaml"
        if any(path.resolve() == one.resolve() for one, _ in files):
            names = " → ".join([*(one.stem for one, _ in files), path.stem])
            child = short(files[-1][0])
            raise UsageError(f"{child}: parent: the file is its own ancestor ({names})")
        if not path.is_file():
            where = f"{short(files[-1][0])}: parent: {name}" if files else f"{key}={name}"
            there = sorted(one.stem for one in folder.glob("*.yaml"))
            near = f"; the nearest is {nearest(name, there)}" if there and not by_path else ""
            raise UsageError(f"{where}: no file {short(path)}{near}")
        content = read(path)
        parent, base = content.pop("parent", "null"), path.parent
        files.append((path, content))
        if not isinstance(parent, str) or not parent:
            raise UsageError(f"{short(path)}: parent: wants one name, one path, or null")
        if parent == "null":
            return files[::-1]
        name = parent


def read(path: Path) -> dict[str, Any]:
    """A YAML file's keys; every scalar is text.

    Raises:
        UsageError: it can't be read, is no YAML, or holds something else than keys and values.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{short(path)}: line {line}: {error.problem}") from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{short(path)}: {one_line(error)}") from error
    if not content:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{short(path)}: wants keys and values, written key: value")
    return content


def flatten(content: dict, section: str, known: dict[str, Key]) -> Iterator[tuple[str, Any]]:
    """Nested keys as dotted paths with their values; `section` is where they begin."""
    for name, value in content.items():
        path = f"{section}.{name}" if section else name
        group = any(one.startswith(f"{path}.") for one in known)
        group = group or (path in known and known[path].is_dict)
        if group and not value:
            continue  # its keys are all commented out
        if group and isinstance(value, dict):
            yield from flatten(value, path, known)
        else:
            yield path, value


def short(path: Path) -> str:
    """The path from here, where that is shorter."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
