"""The page that `--help` prints: every key with its value, meaning, type and choices."""

import shutil
import textwrap
from typing import Any

from recipes.keys import Key, keys, sections

FLAGS = {
    "--help": "this page",
    "--show": "print the composed configuration as YAML",
    "--debug": "print a traceback when something fails",
}


def usage(config: Any, command: str) -> str:
    """The page for a configuration; its values are shown as the defaults.

    Args:
        command: the entry point's path, as in `python curation/run.py`.
    """
    known = keys(type(config))
    width = max(60, min(shutil.get_terminal_size().columns, 100))
    lines = [f"python {command} key=value ...", "", doc(type(config)), ""]
    lines += [f"  {flag:9}{meaning}" for flag, meaning in FLAGS.items()]
    for name, section in sections(type(config)).items():
        mine = [key for key in known.values() if key.path.rpartition(".")[0] == name]
        lines += ["", *([f"{name}: {doc(section)}"] if name else [])]
        for key in mine:
            lines += [f"  {line}" for line in written(key, config)]
            choices = f": {', '.join(key.choices)}" if key.choices else ""
            lines += textwrap.wrap(
                f"{key.help} ({key.words}{choices})",
                width,
                initial_indent=" " * 6,
                subsequent_indent=" " * 6,
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def written(key: Key, config: Any) -> list[str]:
    """The key as it is written on the command line; a dictionary's entries each on a line."""
    value = config
    for part in key.path.split("."):
        value = getattr(value, part)
    if not key.is_dict:
        return [f"{key.path}={text(value)}"]
    entries = [f"{key.path}.{entry}={text(one)}" for entry, one in value.items()]
    return entries or [f"{key.path}.<name>="]


def text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, list):
        ones = [text(one) for one in value]
        return "[" + ",".join(f'"{one}"' if "," in one else one for one in ones) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def doc(node: type) -> str:
    """The first line of a dataclass's docstring."""
    return (node.__doc__ or "").strip().split("\n")[0]
