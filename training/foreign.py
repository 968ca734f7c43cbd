"""WebDataset tars that curation didn't write: what is in them is found out by one walk.

video2dataset lays a sample out as `<key>.mp4` with `<key>.json` and `<key>.txt` beside it;
cosmos-curate has `video/part_…/000000.tar` with the videos and `metas/part_…/000000.tar` with their
JSON (and texts' embeddings, which are pickles and never opened). What the media are is taken from
the media: a JSON may tell of the source. A tar is walked header by header, and of each media file
only its headers and its first frame are read.
"""

import hashlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import av
import numpy as np
import pyarrow as pa
from PIL import Image

from recipes.load import UsageError
from training import tars
from training.tars import Member, TarError

SUFFIXES = {"mp4": 0, "jpg": 1, "jpeg": 1, "png": 2}  # numbers of index.MEDIA
VAL = 0.02  # share that is held out
COLUMNS = {
    "group": object,
    **dict.fromkeys(("start", "stop", "beside"), np.int64),
    **dict.fromkeys(("media", "width", "height", "frames"), np.int32),
    **dict.fromkeys(("duration", "weight"), np.float64),
    "captioned": bool,
}
KEPT = 64 << 10  # bytes of a text that are read, at most


class Window(io.RawIOBase):
    """One member of a tar as a file of its own."""

    def __init__(self, file: io.IOBase, offset: int, size: int) -> None:
        self.file, self.offset, self.size, self.at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = 0) -> int:
        self.at = max(0, to + (0, self.at, self.size)[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.size - self.at))
        self.file.seek(self.offset + self.at)
        data = self.file.read(count)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def media_tars(places: list[str]) -> list[str]:
    """Those that may hold media: cosmos-curate keeps texts and embeddings in trees of their own."""
    return [one for one in places if not re.search(r"/(metas|t5_xxl)/", one)]


def scanned(place: str) -> tuple[str, dict[str, Any], str | None, str | None]:
    """The tar, columns of an Index for its samples, the tar beside it, and why more can't be read.

    Broken samples are 0 wide. Of a tar that is cut off there is what precedes. Also `group`:
    samples of one source file have the same, so that they are held out together.

    Raises:
        UsageError: it is not there.
    """
    rows: list[dict[str, Any]] = []
    beside, notes, lost = _beside(place)
    try:
        with ExitStack() as stack:
            file = stack.enter_context(tars.opened(place))
            other = stack.enter_context(tars.opened(beside)) if beside else file
            for some in _walked(place):
                by = {one.suffix: one for one in some}
                media = next((by[one] for one in SUFFIXES if one in by), None)
                if media is not None:
                    rows.append(_row(file, other, by, media, notes.get(media.key)))
    except FileNotFoundError as error:
        raise UsageError(f"{place}: can't be read: {error}") from None
    except (OSError, TarError) as error:
        lost = f"{place}: {error}"
    columns = {name: np.array([row[name] for row in rows], kind) for name, kind in COLUMNS.items()}
    columns["key"] = pa.array([row["key"] for row in rows], pa.large_string())
    columns["beside"] = columns["beside"].reshape(-1, 2)
    return place, columns, beside, lost


def _walked(place: str) -> Iterator[list[Member]]:
    """All samples of a tar.

    Raises:
        OSError, TarError: it can't be read to its end, or is no tar.
    """
    end = 0
    for some in tars.scan(place):
        end = max(one.offset + one.size for one in some)
        yield some
    # tarfile takes whatever is no header for the end
    at = -(-end // tars.BLOCK) * tars.BLOCK
    with tars.opened(place) as file:
        file.seek(at)
        header = file.read(tars.BLOCK)
    if 0 < len(header) < tars.BLOCK:
        raise TarError(f"cut off at byte {at + len(header)}")
    list(tars.members(header, at))


def _beside(place: str) -> tuple[str | None, dict[str, Member], str | None]:
    """cosmos-curate's tar of JSONs that belongs to a tar of videos, what it holds, and why more
    can't be read."""
    head, video, tail = place.rpartition("/video/")
    if not video:
        return None, {}, None
    other, notes = f"{head}/metas/{tail}", {}
    try:
        for some in _walked(other):
            notes |= {one.key: one for one in some}
    except FileNotFoundError:
        return None, {}, None
    except (OSError, TarError) as error:
        return other, notes, f"{other}: {error}"
    return other, notes, None


def _row(
    file: io.IOBase, other: io.IOBase, by: dict[str, Member], media: Member, notes: Member | None
) -> dict[str, Any]:
    try:
        facts = probed(Window(file, media.offset, media.size), media.suffix)
    except Exception:  # whatever a decoder makes of bytes that are no picture
        facts = (0, 0, 0, 0.0)
    where = (other, notes) if notes else (file, by.get("json"))
    told, part = {}, None
    try:
        told = tars.parsed(_content(*where)) if where[1] else {}
        part = box(told)
    except (TarError, ValueError):
        facts = (0, 0, 0, 0.0)
    key = media.key.encode("utf-8", "replace").decode()
    if key != media.key:  # a name in another encoding can't be asked for
        facts = (0, 0, 0, 0.0)
    text = _content(file, by["txt"]).strip() if "txt" in by else b""
    width, height, frames, duration = facts
    if part is not None:  # what is shown of it decides on its bucket
        width, height = min(width, max(0, round(part[2]))), min(height, max(0, round(part[3])))
    weight = told.get("sampling_weight")
    return {
        "key": key,
        "group": str(told.get("source_video") or told.get("url") or key),
        "start": min(one.start for one in by.values()),
        "stop": max(one.offset + one.size for one in by.values()),
        "media": SUFFIXES[media.suffix],
        "width": width,
        "height": height,
        "frames": frames,
        "duration": duration,
        "weight": max(0.0, float(weight)) if isinstance(weight, int | float) else 1.0,
        "captioned": bool(text or captions(told)),
        "beside": (notes.start, notes.offset + notes.size) if notes else (0, 0),
    }


def _content(file: io.IOBase, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(min(member.size, KEPT if member.suffix == "txt" else member.size))


def probed(file: io.IOBase, suffix: str) -> tuple[int, int, int, float]:
    """Width, height (upright, square pixels), frames and seconds: a file's headers, one frame."""
    if suffix != "mp4":
        with Image.open(io.BufferedReader(file)) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (*(image.size[::-1] if turned else image.size), 1, 0.0)
    with av.open(file, metadata_errors="replace") as container:
        stream = container.streams.video[0]
        frames, rate = stream.frames, stream.average_rate
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (container.duration or 0) / av.time_base
        seconds = seconds or (frames / float(rate) if rate else 0.0)
        width, height = upright(next(container.decode(stream)), pixel(stream))
        size = max(1, round(width)), max(1, round(height))
        return *size, frames or round(seconds * float(rate or 0)), seconds


def upright(frame: av.VideoFrame, ratio: float) -> tuple[float, float]:
    """Width and height as a frame is shown, in its own rows.

    Args:
        ratio: of its pixels, as `pixel` has it.
    """
    size = frame.width * ratio, frame.height
    return size[::-1] if quarters(frame) % 2 else size


def pixel(stream: av.VideoStream) -> float:
    """A stored pixel's width to its height; what is no such ratio is 1."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 0.1 <= ratio <= 10 else 1.0


def quarters(frame: av.VideoFrame) -> int:
    """By how many quarters a frame is to be turned clockwise."""
    return round(-frame.rotation / 90) % 4


def box(told: dict[str, Any]) -> tuple[float, ...] | None:
    """x, y, width, height of what is still to be cut out of it; our own shards are cut already.

    Raises:
        ValueError: it is no box.
    """
    some = told.get("crop_box")
    if some is None:
        return None
    if not isinstance(some, list) or len(some) != 4 or not all(map(is_number, some)):
        raise ValueError(f"its crop_box {some!r} is no x, y, width, height")
    return tuple(some)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def captions(told: dict[str, Any]) -> list[dict[str, Any]]:
    """All captions that a sample's JSON holds: `text`, and if known `language` and `frames`.

    Ours has them under `captions`; video2dataset has one `caption`; cosmos-curate has them in
    `windows`, each named `<model>_caption`, of the frames that the window spans, both included.
    """
    found: list[dict[str, Any]] = []
    some = told.get("captions")
    for one in some if isinstance(some, list) else []:
        if isinstance(one, dict) and isinstance(one.get("text"), str):
            found.append({"text": one["text"], "language": str(one.get("language") or "")})
        elif isinstance(one, str):
            found.append({"text": one})
    if not found and isinstance(told.get("caption"), str):
        found.append({"text": told["caption"]})
    windows = told.get("windows") if not found else None
    for window in windows if isinstance(windows, list) else []:
        for name, text in window.items() if isinstance(window, dict) else ():
            if name.endswith("_caption") and isinstance(text, str):
                frames = window.get("start_frame"), window.get("end_frame")
                is_span = all(isinstance(one, int) for one in frames)
                found.append({"text": text} | ({"frames": frames} if is_span else {}))
    return [one for one in found if one["text"].strip()]


def of_span(some: list[dict[str, Any]], first: int, last: int) -> list[dict[str, Any]]:
    """The captions that are of frames first … last, those of the window that has most of them."""
    shared = {}
    for at, one in enumerate(some):
        low, high = one.get("frames", (first, last))
        shared[at] = max(0, min(high, last) - max(low, first) + 1)
    most = max(shared.values(), default=0)
    return [some[at] for at, count in shared.items() if count == most]


def held_out(groups: Sequence[str]) -> np.ndarray:
    """Which rows are val's: those whose source's name says so by its hash."""
    chosen = {one: _share(one) < VAL for one in set(groups)}
    return np.array([chosen[one] for one in groups], bool)


def _share(key: str) -> float:
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
