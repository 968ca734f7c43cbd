"""What `source=` names, as a list of files, and each of them as a local file for a while.

    a folder · a file · a pattern (`clips/**/*.mp4`) · a list file (.txt, .lst) · a remote URL
    (anything that fsspec reads) · a tar, or tars in any of these · datasets:<name or path>[:split]
    · synthetic:shapes · synthetic:text

A file's name, relative to the source's root, is part of its id, so that the same folder gives the
same ids on every machine. Captions are gathered here, since only the listing knows what lies beside
a file.
"""

import hashlib
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from curation import archive, captions, hub, remote
from curation.captions import Caption
from curation.listing import Entry, is_plain, pattern, readable, single, walk
from curation.video import VideoError
from recipes.load import UsageError
from recipes.schema import Curation

log = logging.getLogger(__name__)

LISTS = (".txt", ".lst")
MAX_BYTES = 64 << 30  # of a remote file or a tar's member: more fills the disk
HELP = "give a folder, file, pattern, list file (.txt), URL, tar or datasets:<name>"


@dataclass(frozen=True)
class Source:
    """A file to curate."""

    name: str  # relative to the source's root, "/" between folders
    uri: str  # absolute path or URL; archive.tar!member; datasets:<name>:<split>#<row>
    bytes: int  # 0 where unknown
    mtime_ns: int  # where no time is known: a number that changes with the content
    captions: tuple[Caption, ...] = ()
    warnings: tuple[str, ...] = ()  # sidecars that could not be read, one line each


def find(config: Curation) -> list[Source]:
    """The files that `config.source` names, sorted by name; names are unique.

    Raises:
        UsageError: it is missing, empty or unreadable, or `captions.csv` is.
    """
    text = config.source.strip()
    if text.startswith(hub.PREFIX):
        rows = hub.rows(text, config.captions.column, config.captions.language)
        found = [Source(r.name, r.uri, r.bytes, r.mtime_ns, r.captions, r.warnings) for r in rows]
    else:
        if text.startswith("synthetic:"):
            from curation import synthetic

            text = str(synthetic.folder(config))
        entries = _entries(text, config.out)
        tars = [one for one in entries if archive.is_archive(one.uri)]
        found = _captioned([one for one in entries if not archive.is_archive(one.uri)])
        found += _captioned([one for tar in tars for one in archive.members(tar)], keyed=True)
    if not found:
        raise UsageError(f"source={config.source}: no video or image there; {HELP}")
    found = _unique(found)
    if config.captions.csv:
        found = _with_table(found, config)
    return found


def _entries(text: str, out: str) -> list[Entry]:
    """The files that a source names, tars not yet opened."""
    if not text:
        raise UsageError(f"source is empty; {HELP}")
    if "://" in text or "::" in text:
        if not (path := _local_path(text)):
            return remote.find(text)
        text = path
    path = os.path.expanduser(text)
    if not os.path.lexists(path) and len(text) > 2 and text[0] == text[-1] and text[0] in "'\"":
        path = os.path.expanduser(text[1:-1])  # quotes that no shell has taken away
    where = f"source={text}"
    if os.path.isdir(path):
        return list(walk(path, out))
    if os.path.lexists(path):
        if path.lower().endswith(LISTS):
            return _listed(path, out)
        if is_plain(os.path.basename(path)):
            raise UsageError(f"{where}: neither video nor image; a list of files ends in .txt")
        if not os.path.exists(path):
            raise UsageError(f"{where}: a link that leads nowhere")
        entry = single(path, os.path.basename(path))
        if entry is None:
            raise UsageError(f"{where}: not a plain file")
        return [entry]
    if any(c in path for c in "*?["):
        if not (found := pattern(path, out)):
            raise UsageError(f"{where}: the pattern matches no video or image")
        return found
    raise UsageError(f"{where}: no such file or folder; {HELP}")


def _local_path(url: str) -> str | None:
    """The path in a file:// URL, None for any other."""
    if url.startswith(("file://", "local://")) and "::" not in url:
        return os.fsdecode(unquote_to_bytes(url.partition("://")[2]))
    return None


def _listed(path: str, out: str) -> list[Entry]:
    """The files that a list names: one path, pattern or URL a line, relative to the list's folder.

    A line that names nothing is an entry too, so that it gets a row with its error.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"source={path}: cannot be read: {error.strerror}") from None
    if b"\0" in content:
        raise UsageError(f"source={path}: not a list of files, one a line")
    folder = os.path.dirname(os.path.abspath(path))
    lines = [
        os.fsdecode(line).strip() for line in content.removeprefix(b"\xef\xbb\xbf").splitlines()
    ]
    lines = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))

    def entries(line: str) -> list[Entry]:
        if "://" not in line:
            line = os.path.join(folder, os.path.expanduser(line))
        try:
            if line.lower().endswith(LISTS):
                raise UsageError("a list in a list")
            found = _entries(line, out)
        except UsageError:
            if "://" in line:
                return [Entry(readable(_place(line, folder)), line, 0, 0)]
            return [Entry(readable(_place(line, folder)), os.path.abspath(line), 0, 0)]
        return [replace(one, name=readable(_place(one.uri, folder))) for one in found]

    with ThreadPoolExecutor(8) as pool:  # a URL costs a round trip
        found = [one for some in pool.map(entries, lines) for one in some]
    return list({one.uri: one for one in found}.values())


def _place(uri: str, folder: str) -> str:
    """How a list's file is named: by its path in the list's folder, else by its whole path."""
    if path := _local_path(uri):
        uri = path
    elif "://" in uri:
        parts = urlsplit(uri)
        return f"{parts.netloc}{parts.path}".lstrip("/")
    inside = os.path.relpath(uri, folder)
    return (uri if inside.startswith("..") else inside).replace(os.sep, "/").lstrip("/")


def _captioned(entries: list[Entry], keyed: bool = False) -> list[Source]:
    """The files with the captions beside them; `keyed`: by WebDataset key too."""
    known = {}
    for one in entries:
        if id(one.beside) not in known:
            known[id(one.beside)] = captions.index(one.beside)

    def source(one: Entry) -> Source:
        last, warnings = one.name.rpartition("/")[2], []
        key = archive.key(last) if keyed else None
        found = captions.read(last, known[id(one.beside)], one.beside, warnings, key)
        size = (one.bytes, one.mtime_ns)
        return Source(one.name, one.uri, *size, tuple(found), tuple(warnings))

    if any("://" in one.uri for one in entries):
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(source, entries))
    return [source(one) for one in entries]


def _unique(found: list[Source]) -> list[Source]:
    """Sorted by name; of several with one name the later ones (by address) get a number."""
    taken: set[str] = set()
    result = []
    for one in sorted(found, key=lambda s: (s.name, s.uri)):
        name, number = one.name, 1
        while name in taken:
            number += 1
            name = f"{one.name} ({number})"
        taken.add(name)
        result.append(one if name == one.name else replace(one, name=name))
    return sorted(result, key=lambda s: s.name)


def _with_table(found: list[Source], config: Curation) -> list[Source]:
    """Adds the CSV's captions: by relative name, by address, or by a file name that is unique."""
    table = captions.table(config.captions.csv, config.captions.column, config.captions.language)
    by_name = {readable(name.removeprefix("./")): texts for name, texts in table.items()}
    bases, rows = defaultdict(list), defaultdict(list)
    for one in found:
        bases[one.name.rpartition("/")[2]].append(one)
    for name in by_name:
        rows[name.rpartition("/")[2]].append(name)
    result, used = [], set()
    for one in found:
        base = one.name.rpartition("/")[2]
        keys = [one.name, one.uri]
        if len(bases[base]) == 1 and len(rows[base]) == 1:
            keys += rows[base]
        key = next((key for key in keys if key in by_name), None)
        if key is not None:
            used.add(key)
            texts = captions.unique((*one.captions, *by_name[key]))
            one = replace(one, captions=tuple(texts))
        result.append(one)
    if lost := [name for name in by_name if name not in used]:
        log.warning(
            "captions.csv=%s: %d of %d names match no file, or several (%s)",
            *(config.captions.csv, len(lost), len(by_name), lost[0]),
        )
    return result


@contextmanager
def local(
    source: Source, folder: Path | str | None = None, max_bytes: int = MAX_BYTES
) -> Iterator[Path]:
    """A source as a local file, for as long as the block lasts.

    What is not local is copied to a temporary file, which is removed after.

    Args:
        source: from `find`.
        folder: where temporary files go; None: the system's.
        max_bytes: a larger remote file or tar member is refused.

    Raises:
        VideoError: it is missing or can't be fetched, or is too large; one line for its row.
    """
    uri = source.uri
    if "://" not in uri or _local_path(uri):
        path = Path(_local_path(uri) or uri)
        if path.is_file() and not archive.is_archive(uri):
            yield path
            return
    if archive.is_archive(uri):  # an entry of its own only where something is wrong with it
        raise VideoError(archive.index(uri, source.mtime_ns)[1] or "a tar without video or image")
    suffix = os.path.splitext(source.name)[1]
    # a suffix tells the reader the format; one with odd characters tells nothing
    suffix = suffix if suffix[1:].isalnum() and suffix.isascii() else ""
    handle, temporary = tempfile.mkstemp(suffix=suffix, dir=folder)
    try:
        try:
            with os.fdopen(handle, "wb") as out:
                _fetch(source, out, max_bytes)
        except OSError as error:
            raise VideoError(f"cannot be fetched: {error.strerror or error}") from None
        yield Path(temporary)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _fetch(source: Source, out, max_bytes: int) -> None:
    uri = source.uri
    if uri.startswith(hub.PREFIX):
        data = hub.content(uri)
        if len(data) > max_bytes:
            raise VideoError(f"{len(data)} bytes exceed the limit of {max_bytes}")
        out.write(data)
    elif archive.split(uri):
        archive.copy(uri, source.mtime_ns, out, max_bytes)
    elif "://" in uri:
        remote.copy(uri, out, max_bytes)
    else:
        raise VideoError("no such file")


def identify(path: Path | str, name: str) -> tuple[str, str]:
    """A file's id and the hash of its content.

    Args:
        path: the local file.
        name: `Source.name`.

    Returns:
        (video_id, hash): the first 16 hexadecimal digits of sha256(name, NUL, hash), and the
        content's sha256, 64 hexadecimal digits.
    """
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(f"{name}\0{content}".encode()).hexdigest()[:16], content
