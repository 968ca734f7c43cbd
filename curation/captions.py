"""Captions that a person brought: beside a file, in a CSV file, in a dataset's column.

Beside `clip.mp4`, in this order:

    clip.txt  clip.en.txt  clip.zh.txt    one caption a line; the suffix names the language
    clip.json                             {"captions": [{"text", "language", "start_s", "end_s"}]},
                                          {"caption": "…"} or ["…", "…"]
    clip.mp4.txt  clip.mp4.json           the same, where clip.mp4 and clip.jpg share a stem

A caption without a span belongs to every clip of its file, one with a span to the clips that it
covers by half. A sidecar that can't be read costs its captions and a warning, never the video.
"""

import csv
import io
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from recipes.load import UsageError

MAX_BYTES = 4 << 20  # of a sidecar: more is no caption
SUFFIXES = (".txt", ".json")
CSV_NAMES = ("path", "video", "file", "name", "filename", "file_name", "url")
LANGUAGE = re.compile(r"[a-z]{2}(?:[-_][a-z]{2,4})?", re.IGNORECASE)  # en, zh-CN, zh_Hans
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
WORD = re.compile(r"[^\W\d_]+")
QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|‘[^’]*’|「[^」]*」|『[^』]*』|《[^》]*》")
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u202a\u202b\u202c\u202d\u202e"))


@dataclass(frozen=True)
class Caption:
    """What one text says of a video, or of a part of it."""

    text: str
    language: str  # "en", "zh" or another two-letter code
    source: str  # "sidecar", "csv", "dataset" or "model"
    model: str | None = None  # which one, where source is "model"
    start_s: float | None = None  # seconds since the file's first frame; None: from its start
    end_s: float | None = None  # None: to its end


def clean(text: str) -> str:
    """One line of NFC text: no control or invisible character, no run of blanks."""
    text = unicodedata.normalize("NFC", text.translate(INVISIBLE))
    kept = (" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    return " ".join("".join(kept).split())


def language_of(text: str) -> str:
    """Tells Chinese ("zh": Chinese characters at least as many as other words) from English ("en").

    What stands in quotation marks is left out: an English caption may quote a Chinese sign.
    """
    plain = QUOTED.sub(" ", text)
    for part in (plain, text):
        han = len(HAN.findall(part))
        words = len(WORD.findall(HAN.sub(" ", part)))
        if han + words:
            return "zh" if han >= words else "en"
    return "en"


def of(text: str, source: str, language: str | None = None, **more) -> Caption | None:
    """A caption of cleaned text, its language told from the text if not given; None if empty."""
    text = clean(text)
    if not text:
        return None
    language = re.split("[-_]", language.strip().lower())[0] if language else ""
    return Caption(text, language or language_of(text), source, **more)


def index(names: Iterable[str]) -> dict[str, list[tuple[str, str | None]]]:
    """The sidecars among a folder's file names: media name or stem → [(sidecar, language)]."""
    found: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    for name in names:
        stem, suffix = Path(name).stem, Path(name).suffix.lower()
        if suffix not in SUFFIXES:
            continue
        found[stem].append((name, None))
        head, _, language = stem.rpartition(".")
        if head and LANGUAGE.fullmatch(language):
            found[head].append((name, language))
    # text before JSON, English first among the named languages, then by name
    for sidecars in found.values():
        sidecars.sort(
            key=lambda one: (
                not one[0].lower().endswith(".txt"),
                one[1] is not None,
                (one[1] or "")[:2].lower() != "en",
                one[0],
            )
        )
    return dict(found)


def parse(name: str, data: bytes, language: str | None = None) -> list[Caption]:
    """A sidecar's captions.

    Args:
        name: the sidecar's file name; its suffix tells text from JSON.
        data: its content, UTF-8.
        language: named by the file; None: told from the text, or by the JSON.

    Raises:
        ValueError: one line that says what is wrong with it.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name}: {len(data)} bytes are no caption, it is not read")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name}: not UTF-8, its captions are not read") from None
    if not name.lower().endswith(".json"):
        # only line feeds: a form feed or a line separator inside a caption does not end it
        found = (of(line, "sidecar", language) for line in re.split(r"\r\n|\r|\n", text))
        return [one for one in found if one]
    try:
        content = json.loads(text) if text.strip() else None
        return list(_values(content, "sidecar", language))
    except RecursionError:
        raise ValueError(f"{name}: JSON nested too deeply, its captions are not read") from None
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}: {error.msg}"
        raise ValueError(f"{name}: not valid JSON ({reason}), its captions are not read") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}, its captions are not read") from None


def column(value: object, language: str | None = None) -> list[Caption]:
    """The captions in one cell of a dataset: a string, a list of them, or a record.

    Raises:
        ValueError: it is none of these.
    """
    return list(_values(value, "dataset", language))


def _values(value: object, source: str, language: str | None) -> Iterable[Caption]:
    """The captions in a JSON value; a record without text or captions holds none."""
    if value is None:
        return
    if isinstance(value, str):
        if one := of(value, source, language):
            yield one
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _values(part, source, language)
    elif isinstance(value, dict):
        own = value.get("language", language)
        if own is not None and not isinstance(own, str):
            raise ValueError(f"language {own!r} is not a string")
        if isinstance(value.get("text"), str):
            span = {key: _seconds(value, key) for key in ("start_s", "end_s")}
            if one := of(value["text"], source, own, **span):
                yield one
        else:
            # captions first: a shard's or video2dataset's record repeats the first one as caption
            yield from _values(value.get("captions", value.get("caption")), source, own)
    else:
        raise ValueError(f"{value!r:.40} is not a caption")


def _seconds(record: dict, key: str) -> float | None:
    value = record.get(key)
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key} {value!r:.40} is not a number of seconds")
    return number


def sidecars(path: Path | str, warnings: list[str] | None = None) -> list[Caption]:
    """The captions beside one local file.

    Args:
        path: the video or image.
        warnings: one line is added for each sidecar that can't be read.
    """
    path = Path(path)
    beside = {p.name: p.read_bytes for p in path.parent.iterdir() if p.suffix.lower() in SUFFIXES}
    return read(path.name, index(beside), beside, warnings)


def read(
    name: str, known: dict, beside: dict, warnings: list[str] | None = None, key: str | None = None
) -> list[Caption]:
    """The captions beside one file, wherever the folder lies.

    Args:
        name: the file's own name.
        known: `index` of the folder's names.
        beside: sidecar name → a function that reads its bytes.
        warnings: one line is added for each sidecar that can't be read.
        key: a further stem to look under (a WebDataset sample's key).
    """
    captions = []
    stems = dict.fromkeys([Path(name).stem, name, *([key] if key else [])])
    for sidecar, language in dict.fromkeys(one for stem in stems for one in known.get(stem, ())):
        try:
            captions += parse(sidecar, beside[sidecar](), language)
        except (ValueError, OSError) as error:
            if warnings is not None:
                warnings.append(clean(str(error)))
    return unique(captions)


def unique(captions: Iterable[Caption]) -> list[Caption]:
    """The captions without repetitions: the first of those with the same text and span."""
    found: dict[tuple, Caption] = {}
    for one in captions:
        found.setdefault((one.text, one.start_s, one.end_s), one)
    return list(found.values())


def table(path: Path | str, caption: str, language: str | None = None) -> dict[str, list[Caption]]:
    """A CSV file's captions, by the file name that each row gives.

    UTF-8, with or without a byte-order mark; separated by commas, semicolons or tabs. Columns: one
    of path, video, file, name, filename, url; the caption's; language, start_s and end_s if there.

    Raises:
        UsageError: it is missing, is not UTF-8, or lacks a column.
    """
    where = f"captions.csv={path}"
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not UTF-8; save it as UTF-8 (in Excel: CSV UTF-8)") from None
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    found: dict[str, list[Caption]] = defaultdict(list)
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        columns = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = columns
        file = next((name for name in columns if name.lower() in CSV_NAMES), None)
        if file is None or caption not in columns:
            lacking = f"column {caption!r}" if file else f"column of {', '.join(CSV_NAMES)}"
            hint = "; name it with captions.column=" if file else ""
            raise UsageError(f"{where}: no {lacking} among {', '.join(columns) or 'none'}{hint}")
        for row in rows:
            span = {key: _seconds(row, key) for key in ("start_s", "end_s")}
            own = row.get("language") or language
            if one := of(row[caption] or "", "csv", own, **span):
                found[(row[file] or "").strip().replace("\\", "/")].append(one)
    except (csv.Error, ValueError) as error:
        raise UsageError(f"{where}: row {rows.line_num}: {error}") from None
    return dict(found)


def for_clip(captions: Iterable[Caption], start_s: float, end_s: float) -> list[Caption]:
    """The captions of one clip, in their own order, without repetitions.

    One with a span belongs to the clips that it covers by half or more of the clip; it loses its
    span, since it now speaks of the clip.

    Args:
        start_s, end_s: the clip's span, seconds since the file's first frame; equal for an image.
    """
    found = []
    for one in captions:
        start = -math.inf if one.start_s is None else one.start_s
        end = math.inf if one.end_s is None else one.end_s
        overlap = min(end, end_s) - max(start, start_s)
        if overlap >= 0.5 * (end_s - start_s):
            found.append(replace(one, start_s=None, end_s=None))
    return unique(found)
