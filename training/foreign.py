"""WebDataset tars that curation didn't write: what is in them is found out by one walk.

cosmos-curate and video2dataset lay a sample out as `<key>.mp4` with `<key>.json` and, sometimes,
`<key>.txt` beside it. What the media are is taken from the media: a JSON may tell of the source. A
tar is walked header by header, and of each media file only its own headers are read.
"""

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from PIL import Image

from recipes.load import UsageError
from training import tars
from training.tars import Member, TarError

SUFFIXES = {"mp4": 0, "jpg": 1, "jpeg": 1, "png": 2}  # numbers of index.MEDIA
VAL = 0.02  # share that is held out
COLUMNS = ("start", "stop", "media", "width", "height", "frames", "duration", "weight", "captioned")
KEPT = 64 << 10  # bytes of JSON and text a sample that are read, at most


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


def scanned(place: str) -> tuple[str, dict[str, Any]]:
    """The tar's name, and columns of an Index for its samples; broken ones have no width.

    Also `group`: samples of one source file have the same, so that they are held out together.

    Raises:
        UsageError: it can't be read, or is no tar.
    """
    columns: dict[str, list] = {name: [] for name in ("key", "group", *COLUMNS)}
    try:
        with tars.opened(place) as file:
            for some in tars.scan(place):
                by = {one.suffix: one for one in some}
                media = next((by[one] for one in SUFFIXES if one in by), None)
                if media is None:
                    continue
                row = _row(file, by, media)
                for name, value in row.items():
                    columns[name].append(value)
    except (OSError, TarError) as error:
        raise UsageError(f"{place}: can't be read: {error}") from None
    return place, {n: v if n in ("key", "group") else np.array(v) for n, v in columns.items()}


def _row(file: io.IOBase, by: dict[str, Member], media: Member) -> dict[str, Any]:
    try:
        facts = probed(Window(file, media.offset, media.size), media.suffix)
    except (av.error.FFmpegError, OSError, ValueError, IndexError, Image.DecompressionBombError):
        facts = (0, 0, 0, 0.0)
    told: dict[str, Any] = {}
    if "json" in by:
        try:
            told = tars.parsed(_content(file, by["json"]))
        except TarError:
            facts = (0, 0, 0, 0.0)
    text = _content(file, by["txt"]).strip() if "txt" in by else b""
    width, height, frames, duration = facts
    weight = told.get("sampling_weight")
    return {
        "key": media.key,
        "group": str(told.get("source_video") or told.get("url") or media.key),
        "start": min(one.start for one in by.values()),
        "stop": max(one.offset + one.size for one in by.values()),
        "media": SUFFIXES[media.suffix],
        "width": width,
        "height": height,
        "frames": frames,
        "duration": duration,
        "weight": max(0.0, float(weight)) if isinstance(weight, int | float) else 1.0,
        "captioned": bool(text or captions(told)),
    }


def _content(file: io.IOBase, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(min(member.size, KEPT if member.suffix == "txt" else member.size))


def probed(file: io.IOBase, suffix: str) -> tuple[int, int, int, float]:
    """Width, height (upright, square pixels), frames and seconds, from a file's headers."""
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
        shape = stream.sample_aspect_ratio
        width, height = stream.width, stream.height
        if shape and 0.1 <= shape <= 10:
            width = max(1, round(width * shape))
        return width, height, frames or round(seconds * float(rate or 0)), seconds


def captions(told: dict[str, Any]) -> list[dict[str, str]]:
    """All captions that a sample's JSON holds: `text` and, if known, `language`.

    Ours has them under `captions`; video2dataset has one `caption`; cosmos-curate has them in
    `windows`, each named `<model>_caption`.
    """
    found = []
    some = told.get("captions")
    for one in some if isinstance(some, list) else []:
        if isinstance(one, dict) and isinstance(one.get("text"), str):
            found.append({"text": one["text"], "language": str(one.get("language") or "")})
        elif isinstance(one, str):
            found.append({"text": one, "language": ""})
    if not found:
        if isinstance(told.get("caption"), str):
            found.append({"text": told["caption"], "language": ""})
        for window in told.get("windows") or []:
            for name, text in window.items() if isinstance(window, dict) else ():
                if name.endswith("_caption") and isinstance(text, str):
                    found.append({"text": text, "language": ""})
    return [one for one in found if one["text"].strip()]


def held_out(tables: Sequence[Any], split: str) -> list[Any]:
    """Train's or val's part of tables that were not split, by hash of what they were cut from."""
    for table in tables:
        keys = table.columns.pop("group", None)
        if keys is None:
            keys = table.columns["key"].to_pylist()
        chosen = np.array([_share(key) < VAL for key in keys], bool) == (split == "val")
        columns = table.columns
        for name in columns:
            if name == "key":
                names = columns[name]
                names = names.to_pylist() if hasattr(names, "to_pylist") else names
                columns[name] = [one for one, is_in in zip(names, chosen, strict=True) if is_in]
            else:
                columns[name] = columns[name][chosen]
    return list(tables)


def _share(key: str) -> float:
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
