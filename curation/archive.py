"""Tars of raw videos or images, as WebDataset lays them out: a sample's members share a key.

Nothing is unpacked: a member's place in the archive is looked up once, and its bytes are copied
from there when it is its turn. Members are named, never written, by what the archive calls them;
links, devices, sparse files and paths that lead outside are refused, each with its row.
A compressed tar (.tar.gz) is read from its start for every member; unpack a large one first.
"""

import functools
import gzip
import os
import re
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from curation.captions import MAX_BYTES, SUFFIXES
from curation.listing import Entry, is_hidden, is_plain, readable
from curation.video import VideoError

SUFFIX = re.compile(r"\.(?:tar|tar\.gz|tgz)$", re.IGNORECASE)
MEMBER = re.compile(r"^(.*?\.(?:tar|tar\.gz|tgz))!(.*)$", re.IGNORECASE | re.DOTALL)
BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError)


@dataclass(frozen=True)
class Place:
    """Where a member's bytes lie."""

    offset: int  # bytes from the start of the uncompressed archive
    bytes: int
    refused: str | None = None  # why it is not read


def is_archive(uri: str) -> bool:
    return bool(SUFFIX.search(uri))


def split(uri: str) -> tuple[str, str] | None:
    """`archive.tar!member` → (archive, member); None for anything else."""
    found = MEMBER.match(uri)
    return found.groups() if found else None


@contextmanager
def opened(uri: str) -> Iterator[BinaryIO]:
    """The uncompressed archive, local or remote, seekable."""
    with ExitStack() as stack:
        if "://" in uri:
            import fsspec

            file = stack.enter_context(fsspec.open(uri, "rb"))
        else:
            file = stack.enter_context(open(uri, "rb"))
        if not uri.lower().endswith(".tar"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file, mode="rb"))
        yield file


@functools.lru_cache(maxsize=32)
def index(uri: str, version: int) -> tuple[dict[str, Place], str | None]:
    """Every file in an archive.

    Args:
        uri: path or URL of the archive.
        version: its modification time, so that a changed archive is read anew.

    Returns:
        member name → its place, and what is wrong with the archive, if anything: what stands
        before the damage is there.
    """
    places: dict[str, Place] = {}
    end = 0
    try:
        with opened(uri) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # else every header of a large archive stays in memory
                end = member.offset_data + -(-member.size // 512) * 512
                if not member.isdir():
                    places[member.name] = Place(member.offset_data, member.size, _refusal(member))
            # tarfile takes a damaged header for the end, where only zeros or nothing may stand
            file.seek(end)
            if any(file.read(512)):
                return places, f"the tar is damaged after {end} bytes; what follows is lost"
    except BROKEN as error:
        return places, f"not a readable tar: {' '.join(str(error).split())}"
    except Exception as error:  # each remote store has exceptions of its own
        return places, f"cannot be read: {' '.join(str(error).split())}"
    return places, None if places else "a tar without files"


def _refusal(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", member.name):
        return "a tar member whose path leads outside is refused"
    if member.issym() or member.islnk():
        return "a link in a tar is refused"
    if not member.isreg() or member.issparse():
        return "a tar member that is not a plain file is refused"
    return None


def members(tar: Entry) -> list[Entry]:
    """The media in an archive, named `<archive's name>/<member>`.

    A damaged or empty archive is an entry of its own besides, so that it gets a row.
    """
    places, problem = index(tar.uri, tar.mtime_ns)
    beside: dict[str, dict] = defaultdict(dict)
    for name, place in places.items():
        if os.path.splitext(name)[1].lower() in SUFFIXES and not place.refused:
            folder, _, last = name.rpartition("/")
            beside[folder][readable(last)] = functools.partial(_sidecar, tar.uri, place)
    found = []
    for name, place in places.items():
        folder, _, last = name.rpartition("/")
        hidden = any(is_hidden(part) and part not in (".", "..") for part in folder.split("/"))
        if not hidden and not is_plain(last):
            clear = readable(name)
            whole = f"{tar.name}/{clear.removeprefix('./')}"
            uri = f"{tar.uri}!{clear}"
            found.append(Entry(whole, uri, place.bytes, tar.mtime_ns, beside[folder]))
    if problem or not found:
        found.append(tar)
    return found


def _sidecar(uri: str, place: Place) -> bytes:
    with opened(uri) as file:
        file.seek(place.offset)
        return file.read(min(place.bytes, MAX_BYTES + 1))


def key(name: str) -> str:
    """The WebDataset key of a member's last name: what stands before its first dot."""
    return name.partition(".")[0]


def copy(uri: str, version: int, out: BinaryIO, max_bytes: int) -> None:
    """Copies one member.

    Args:
        uri: `archive.tar!member`.
        version: the archive's modification time.
        out: where its bytes go.
        max_bytes: a larger member is refused.

    Raises:
        VideoError: there is no such member, it is refused, or the archive ends inside it.
    """
    tar, member = split(uri)
    places, problem = index(tar, version)
    place = places.get(member) or next(
        (p for n, p in places.items() if readable(n) == member), None
    )
    if place is None:
        raise VideoError(problem or "the tar holds no such member")
    if place.refused:
        raise VideoError(place.refused)
    if place.bytes > max_bytes:
        raise VideoError(f"{place.bytes} bytes exceed the limit of {max_bytes}")
    try:
        with opened(tar) as file:
            file.seek(place.offset)
            left = place.bytes
            while left and (block := file.read(min(left, 1 << 20))):
                out.write(block)
                left -= len(block)
    except BROKEN as error:
        raise VideoError(f"cannot be read from its tar: {' '.join(str(error).split())}") from None
    if left:
        raise VideoError(f"the tar ends {left} bytes before the member does")
