"""Finding local files: in a folder, or by a pattern.

Every file is an `Entry`, whatever it holds; only what is plainly no video or image (`PLAIN`) and
hidden files are passed over. Whether a file can be read is the probe's to say, in its row.
"""

import fnmatch
import functools
import logging
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from curation.captions import MAX_BYTES, SUFFIXES
from recipes.load import UsageError

log = logging.getLogger(__name__)

# Plainly not media: captions and subtitles, tables, documents, checksums, unfinished files, code.
PLAIN = {
    *(".txt", ".lst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini"),
    *(".srt", ".vtt", ".ass", ".ssa", ".sub", ".idx", ".lrc", ".nfo", ".cfg", ".conf", ".log"),
    *(".md", ".rst", ".html", ".htm", ".pdf", ".doc", ".docx", ".url", ".torrent", ".license"),
    *(".parquet", ".arrow", ".duckdb", ".sqlite", ".db", ".wal", ".lock", ".py", ".ipynb", ".sh"),
    *(".md5", ".sha1", ".sha256", ".part", ".partial", ".tmp", ".crdownload", ".aria2"),
    *(
        ".c",
        ".cc",
        ".cpp",
        ".cu",
        ".h",
        ".hpp",
        ".java",
        ".js",
        ".css",
        ".rs",
        ".go",
        ".pl",
        ".bat",
    ),
    *(".pyc", ".pyi", ".so", ".dll", ".exe", ".o", ".a", ".cmake", ".npy", ".npz", ".safetensors"),
}
PLAIN_NAMES = {
    "authors",
    "changelog",
    "license",
    "licence",
    "readme",
    "copying",
    "notice",
    "copyright",
}
JUNK = {"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"}
OUTPUT = "catalog.duckdb"  # what a run's output folder is known by
MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Entry:
    """A file that may be a video or an image."""

    name: str  # relative to the source's root, "/" between folders, valid UTF-8, NFC
    uri: str  # absolute path or URL
    bytes: int
    mtime_ns: int  # where a store knows no time: a number that changes with its checksum
    # the sidecars of its folder, name → a function that reads one; shared by the folder's entries
    beside: dict[str, Callable[[], bytes]] = field(default_factory=dict, repr=False, compare=False)


def is_plain(name: str) -> bool:
    """Whether a file name says that the file is no video or image, or is hidden."""
    name = name.lower()
    suffix = os.path.splitext(name)[1]
    return name.startswith(".") or suffix in PLAIN or (not suffix and name in PLAIN_NAMES)


def readable(name: str) -> str:
    """A file name as text that every machine spells alike: NFC, bytes that are no UTF-8 escaped."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def uri_of(path: str) -> str:
    """The absolute path, or a file:// URL where the path is no UTF-8 and could not be stored."""
    path = os.path.abspath(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(path).as_uri()
    return path


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


@functools.lru_cache(maxsize=64)
def beside(folder: str) -> dict[str, Callable[[], bytes]]:
    """The sidecars in a local folder."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    return {
        readable(name): functools.partial(_read, os.path.join(folder, name))
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES
    }


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_BYTES + 1)


def single(path: str, name: str) -> Entry | None:
    """One local file; None if it is neither a file nor a broken link (a pipe, a device)."""
    try:
        status = os.stat(path)
    except OSError:  # its row says why: a link to nowhere, a line of a list that names nothing
        return Entry(readable(name), uri_of(path), 0, 0)
    if not stat.S_ISREG(status.st_mode):
        return None
    shelf = beside(os.path.dirname(os.path.abspath(path)))
    return Entry(readable(name), uri_of(path), status.st_size, status.st_mtime_ns, shelf)


def walk(root: str, exclude: str | None = None) -> Iterator[Entry]:
    """Every file under a folder. Links to folders are followed, each folder is entered once.

    Args:
        root: the folder.
        exclude: a folder inside it that is left out (the run's own output). Other runs' outputs
            below it are known by their catalog, and left out too.
    """
    seen = {_identity(exclude)} if exclude and not _same(exclude, root) else set()
    # real folders first, so that a folder that is also linked keeps its own name
    folders, linked = [(root, "")], []
    while folders or linked:
        folder, prefix = folders.pop() if folders else linked.pop(0)
        identity = _identity(folder)
        if identity is None or identity in seen:
            continue
        seen.add(identity)
        try:
            with os.scandir(folder) as scan:
                found = sorted(scan, key=lambda one: one.name)
        except OSError as error:
            if folder == root:
                raise UsageError(f"source={root}: cannot be read: {error.strerror}") from None
            log.warning("%s: %s; the folder is left out", readable(folder), error.strerror)
            continue
        if folder != root and any(one.name == OUTPUT for one in found):
            continue  # an earlier run's output, not raw video
        for one in found:
            name = prefix + one.name
            if one.is_dir():
                if not is_hidden(one.name):
                    queue = linked if one.is_symlink() else folders
                    queue.append((one.path, name + "/"))
            elif not is_plain(one.name) and (entry := single(one.path, name)):
                yield entry


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def pattern(text: str, exclude: str | None = None) -> list[Entry]:
    """The files that a pattern matches; folders that it matches are walked.

    `*`, `?` and `[…]` match inside one name, `**` any number of folders. A part that exists as it
    stands is taken as it stands, so `clips [4K]/*.mp4` does what it seems to.
    """
    parts = [part for part in os.path.abspath(text).split(os.sep) if part]
    root, fixed = os.sep, 0
    for part in parts[:-1]:
        if MAGIC.search(part) and not os.path.lexists(os.path.join(root, part)):
            break
        root, fixed = os.path.join(root, part), fixed + 1
    found: dict[str, Entry] = {}
    for path in _expand(root, parts[fixed:], exclude):
        name = os.path.relpath(path, root).replace(os.sep, "/")
        if os.path.isdir(path):
            if not (exclude and _same(path, exclude)):
                inside = walk(path, exclude)
                found.update((e.uri, replace(e, name=f"{readable(name)}/{e.name}")) for e in inside)
        elif not is_plain(os.path.basename(path)) and (entry := single(path, name)):
            found[entry.uri] = entry
    return list(found.values())


def _expand(folder: str, parts: list[str], exclude: str | None) -> Iterator[str]:
    head, rest = parts[0], parts[1:]
    if head == "**":
        yield from _deep(folder, rest or ["*"], exclude)
        return
    exact = os.path.join(folder, head)
    if os.path.lexists(exact):
        matches = [exact]
    elif MAGIC.search(head):
        matches = [
            os.path.join(folder, name)
            for name in _names(folder)
            if fnmatch.fnmatchcase(name, head) and (not is_hidden(name) or head.startswith("."))
        ]
    else:
        return
    for path in matches:
        if not rest:
            yield path
        elif os.path.isdir(path):
            yield from _expand(path, rest, exclude)


def _deep(root: str, rest: list[str], exclude: str | None) -> Iterator[str]:
    """`rest` in the folder and in every folder below it, each entered once."""
    seen = {_identity(exclude)} if exclude and not _same(exclude, root) else set()
    folders = [root]
    while folders:
        folder = folders.pop(0)
        identity = _identity(folder)
        if identity in seen:
            continue
        seen.add(identity)
        if folder != root and os.path.isfile(os.path.join(folder, OUTPUT)):
            continue
        yield from (p for p in _expand(folder, rest, exclude) if rest != ["*"] or os.path.isfile(p))
        paths = (os.path.join(folder, name) for name in _names(folder) if not is_hidden(name))
        folders += sorted(
            (p for p in paths if os.path.isdir(p)), key=lambda p: (os.path.islink(p), p)
        )


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
