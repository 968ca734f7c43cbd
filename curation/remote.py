"""Remote files, through fsspec: found, and copied here for as long as one is looked at."""

import functools
import hashlib
import os
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from curation.captions import MAX_BYTES, SUFFIXES
from curation.listing import Entry, is_hidden, is_plain, readable
from curation.video import VideoError
from recipes.load import UsageError

MAGIC = re.compile(r"[*\[]")  # a question mark begins a URL's query
HTTP_DEPTH = 12  # a page may link to itself


def find(url: str) -> list[Entry]:
    """The files of a remote folder, those that a remote pattern matches, or one remote file.

    Args:
        url: anything that fsspec reads, chained URLs (`zip://*.mp4::https://…`) included.

    Raises:
        UsageError: an unknown or not installed protocol, nothing there, or the store refuses.
    """
    from fsspec.core import url_to_fs

    where = f"source={url}"
    try:
        fs, path = url_to_fs(url)
        try:
            info = fs.info(path)
        except FileNotFoundError:
            if not MAGIC.search(path):
                raise
            info = None
        if info is None:
            root = path[: MAGIC.search(path).start()].rpartition("/")[0]
            found = {k: v for k, v in fs.glob(path, detail=True).items() if v["type"] == "file"}
            if not found:
                raise UsageError(f"{where}: the pattern matches no file")
        elif info["type"] == "directory" or info.get("mimetype") == "text/html":
            depth = HTTP_DEPTH if path.startswith("http") else None
            root = path
            found = fs.find(path, maxdepth=depth, detail=True)
        else:
            root, found = path.rpartition("/")[0], {path: info}
        if info is None or (info["type"] == "file" and root != path):
            found = _siblings(fs, found) | found
        return _entries(fs, root.rstrip("/"), found, url.partition("::")[2])
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{where}: nothing is there") from None
    except ImportError as error:
        raise UsageError(f"{where}: needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    except Exception as error:  # each store has exceptions of its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{where}: cannot be reached: {reason}") from None


def _siblings(fs, found: dict) -> dict:
    """What else lies in the folders of these files, for their captions; a store may not tell."""
    more = {}
    for folder in {path.rpartition("/")[0] for path in found}:
        try:
            listed = fs.ls(folder, detail=True)
        except Exception:
            continue
        more |= {one["name"]: one for one in listed if _suffix(one["name"]) in SUFFIXES}
    return more


def _suffix(path: str) -> str:
    return os.path.splitext(urlsplit(path).path)[1].lower()


def _entries(fs, root: str, found: dict, chain: str) -> list[Entry]:
    web = root.startswith("http")
    shelves: dict[str, dict] = defaultdict(dict)
    media = {}
    for path, info in found.items():
        folder, _, last = path.rpartition("/")
        last = unquote(last.partition("?")[0]) if web else last
        if info["type"] != "file" or not last:
            continue
        if _suffix(last) in SUFFIXES:
            shelves[folder][last] = functools.partial(_cat, fs, path)
        inside = path[len(root) :].strip("/") if path.startswith(root) else path
        if not is_plain(last) and not any(map(is_hidden, inside.split("/")[:-1])):
            media[path] = info
    bare = [path for path, info in media.items() if web and info.get("size") is None]
    with ThreadPoolExecutor(8) as pool:  # an HTML listing names files, and no more
        media |= dict(zip(bare, pool.map(functools.partial(_info, fs), bare), strict=True))
    entries = []
    for path, info in media.items():
        name = path[len(root) :].lstrip("/")
        name = unquote(name.partition("?")[0]) if web else name
        uri = fs.unstrip_protocol(path) + (f"::{chain}" if chain else "")
        shelf = shelves[path.rpartition("/")[0]]
        entries.append(Entry(readable(name), uri, info.get("size") or 0, _modified(info), shelf))
    return entries


def _cat(fs, path: str) -> bytes:
    try:
        return fs.cat_file(path, start=0, end=MAX_BYTES + 1)
    except Exception as error:
        raise OSError(f"{path.rpartition('/')[2]}: {error}") from None


def _info(fs, path: str) -> dict:
    try:
        return fs.info(path)
    except Exception:  # its row says why when it is fetched
        return {"type": "file"}


def _modified(info: dict) -> int:
    """When a remote file changed, in nanoseconds; else a number made of its checksum; else 0."""
    names = (
        "mtime",
        "LastModified",
        "last_modified",
        "Last-Modified",
        "updated",
        "created",
        "ETag",
    )
    value = next((info[name] for name in names if info.get(name)), None)
    if isinstance(value, str):
        try:
            value = parsedate_to_datetime(value)
        except (TypeError, ValueError):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                return int(hashlib.sha256(value.encode()).hexdigest()[:15], 16)
    if isinstance(value, datetime):
        value = value.timestamp()
    return int(value * 1e9) if isinstance(value, int | float) else 0


def copy(uri: str, out: BinaryIO, max_bytes: int) -> None:
    """Copies a remote file.

    Raises:
        VideoError: it can't be read, or is larger than max_bytes.
    """
    import fsspec

    # a stream: a web server need not serve ranges
    options = {"block_size": 0} if uri.startswith("http") else {}
    done = 0
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        with fs.open(path, "rb", **options) as file:
            while block := file.read(1 << 20):
                done += len(block)
                if done > max_bytes:
                    raise VideoError(f"more than the limit of {max_bytes} bytes")
                out.write(block)
    except VideoError:
        raise
    except Exception as error:  # each store has exceptions of its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise VideoError(f"cannot be fetched: {reason}") from None
