"""Tars read in pieces: one sample is one range of bytes, of a file or of a URL.

Nothing is downloaded whole and nothing unpacked: an index says where each sample's members lie, and
a range that begins at a header is walked member by member. URLs are fsspec's (s3://, gs://,
https://, …); their packages are the user's.
"""

import functools
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.load import UsageError

BLOCK = tarfile.BLOCKSIZE
OPEN_FILES = 64  # kept open by a process
LONGEST = 4 << 30  # bytes of one sample; more is no sample
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
NAMED = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class TarError(Exception):
    """One line that says what is wrong with a piece of a tar."""


@dataclass(frozen=True)
class Member:
    """One file of a tar."""

    key: str  # its sample's: the path up to the first dot of the file's name
    suffix: str  # what follows that dot
    start: int  # of its header, or of what precedes it
    offset: int  # of its bytes
    size: int


@dataclass(frozen=True)
class Row:
    """Where one sample lies."""

    key: str  # unique over all sources
    name: str  # in its tar
    place: str
    start: int
    stop: int
    media: str
    number: int  # its row in the index
    beside: tuple[str, int, int] | None = None  # another tar with the rest of it, and where
    length_s: float | None = None  # what its index says; None: what its packets say


def is_remote(place: str) -> bool:
    return "://" in place


def read(place: str, start: int = 0, stop: int | None = None) -> bytes:
    """Bytes of a file or URL; `stop` excluded, None: to the end.

    Raises:
        OSError: as the system or the store says.
        TarError: it ends before `stop`.
    """
    if stop is not None and not 0 <= stop - start <= LONGEST:
        raise TarError(f"a sample of {stop - start} bytes")
    if is_remote(place):
        store, path = filesystem(place)
        if stop is None and not start:
            return store.cat_file(path)
        data = store.cat_file(path, start=start, end=stop)
    else:
        handle = _handle(place, os.getpid())
        stop = os.fstat(handle).st_size if stop is None else stop
        parts, at = [], start
        while at < stop and (part := os.pread(handle, stop - at, at)):
            parts.append(part)
            at += len(part)
        data = b"".join(parts)
    if stop is not None and len(data) != stop - start:
        raise TarError("the tar is shorter than its index says")
    return data


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises:
        UsageError: a kind of URL that no installed package reads.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{url}: can't be read: {error}") from None


class _Handle:
    """A file that is closed with the last of its readers."""

    def __init__(self, place: str) -> None:
        self.number = os.open(place, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(OPEN_FILES)
def _opened(place: str, process: int) -> _Handle:
    return _Handle(place)


def _handle(place: str, process: int) -> int:
    return _opened(place, process).number


def named(name: str) -> tuple[str, str]:
    """Key and suffix of a member, as webdataset has it: `a/b.txt` is `a/b` and `txt`."""
    found = re.fullmatch(r"(?s)((?:.*/)?[^/.]+)\.([^/]*)", name)
    return (found[1], found[2].lower()) if found else ("", "")


def members(data: bytes, base: int = 0) -> Iterator[Member]:
    """The files of a range that begins at a header.

    Args:
        base: where in the tar the range begins.

    Raises:
        TarError: there is no header where one should be.
    """
    at, name, start = 0, None, None
    while at + BLOCK <= len(data):
        header = data[at : at + BLOCK]
        if not any(header):
            return  # the end of an archive
        kind, size, own = _header(header, base + at)
        start = at if start is None else start
        content = at + BLOCK
        at = content + -(-size // BLOCK) * BLOCK
        if kind in NAMED:
            name = _long_name(kind, data[content : content + size]) or name
            continue
        if kind in FILES:
            key, suffix = named(name or own)
            yield Member(key, suffix, base + start, base + content, size)
        name = start = None


def _header(header: bytes, at: int) -> tuple[bytes, int, str]:
    """Kind, size and name of a member; several times as fast as `tarfile` where nothing is odd."""
    digits, total = header[124:135], sum(header) - sum(header[148:156]) + 8 * ord(" ")
    plain = header[257:262] == b"ustar" and digits.isdigit() and not header[345]
    if plain and header[148:154].isdigit() and int(header[148:154], 8) == total:
        name = header[:100].rstrip(b"\0").decode("utf-8", "surrogateescape")
        return header[156:157], int(digits, 8), name
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise TarError(f"no tar header at byte {at}: {error}") from None
    return info.type, info.size, info.name


def _long_name(kind: bytes, data: bytes) -> str | None:
    if kind == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    found = re.search(rb"\d+ path=([^\n]*)\n", data)
    return found[1].decode("utf-8", "surrogateescape") if found else None


def sample(row: Row) -> dict[str, bytes]:
    """The members of one sample by suffix; other samples' members in the range are passed over.

    Raises:
        OSError: as the system or the store says.
        TarError: the range is no part of a tar, or doesn't hold the sample.
    """
    found: dict[str, bytes] = {}
    for place, start, stop in filter(None, [(row.place, row.start, row.stop), row.beside]):
        data = read(place, start, stop)
        found |= {
            one.suffix: data[one.offset : one.offset + one.size]
            for one in members(data)
            if one.key == row.name and one.offset + one.size <= len(data)
        }
    if not found:
        raise TarError("the tar holds another sample there than its index says")
    return found


def scan(place: str) -> Iterator[list[Member]]:
    """All samples of a tar by one walk over its headers: the members of each.

    Raises:
        OSError, TarError: it can't be read, or is no tar.
    """
    some: list[Member] = []
    with opened(place) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    tar.members = []  # else it remembers all of them
                    key, suffix = named(info.name)
                    if not info.isreg() or not key:
                        continue
                    if some and some[0].key != key:
                        yield some
                        some = []
                    some.append(Member(key, suffix, info.offset, info.offset_data, info.size))
        except tarfile.TarError as error:
            raise TarError(f"no whole tar: {error}") from None
    if some:
        yield some


def opened(place: str) -> io.IOBase:
    """A file or URL, open for reading here and there."""
    if is_remote(place):
        store, path = filesystem(place)
        return store.open(path, "rb", block_size=1 << 20)
    return Path(place).open("rb")


def parsed(data: bytes) -> dict[str, Any]:
    """A sample's JSON.

    Raises:
        TarError: it is none, or no object.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise TarError(f"its JSON can't be read: {error}") from None
    if not isinstance(content, dict):
        raise TarError("its JSON is no object")
    return content
