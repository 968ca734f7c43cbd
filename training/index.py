"""Every sample of all sources, as columns: what there is to train on, before anything is decoded.

    index = gather(config.data, "train")             # or "val"
    len(index), index.keys[0], index.width

A source is what curation wrote (its Parquet indices are read, no tar), or any WebDataset tars
(`training.foreign`). Ten million samples take about 1 GB and as many seconds as their index files
take to read. What a sample says of itself beyond this (captions, scores, tier) is read with it.
"""

import hashlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from braceexpand import braceexpand

from curation.shards import manifest, promised
from recipes.load import UsageError
from recipes.training import Data
from training import foreign, tars
from training.reader import allowed
from training.tars import Row

MEDIA = ("mp4", "jpg", "png", "safetensors")  # safetensors: a cached posterior
IMAGES = [MEDIA.index("jpg"), MEDIA.index("png")]
LATENTS = MEDIA.index("safetensors")
WANTED = (
    *("key", "status", "caption", "media", "offset", "bytes"),
    *("width", "height", "frames", "duration_s", "sampling_weight"),
)
THREADS = 16  # that read index files
NAMED = 5  # tars that are named when too many are cut off


@dataclass
class Index:
    """One row a sample.

    Attributes:
        keys: names in their tars; a sample's own is `<source's number>:<key>` if there are several.
        source: which of `sources`.
        place: which of `places`, its tar.
        start, stop: the range of the tar that holds its members, headers included.
        media: which of MEDIA.
        width, height: pixels.
        frames: of an image 1.
        duration: seconds, the last frame's own included; of an image 0.
        weight: curation's sampling weight × the source's.
        captioned: whether it has a caption.
        beside: [rows, 3], which of `places` holds the rest of it, and its range; −1: none does.
        cut_off: tars that can't be read to their end, and why; what precedes it is here.
    """

    sources: list[str]
    places: list[str]
    keys: pa.ChunkedArray
    source: np.ndarray
    place: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    media: np.ndarray
    width: np.ndarray
    height: np.ndarray
    frames: np.ndarray
    duration: np.ndarray
    weight: np.ndarray
    captioned: np.ndarray
    beside: np.ndarray | None = None
    cut_off: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def is_image(self) -> np.ndarray:
        return np.isin(self.media, IMAGES)

    @property
    def is_latent(self) -> np.ndarray:
        return self.media == LATENTS

    @cached_property
    def draws(self) -> np.ndarray:
        """uint32 [rows, 2]: two draws of each key, the same wherever and beside whatever it lies.

        A million take about half a second.
        """
        some = (chunk.cast(pa.large_binary()).to_pylist() for chunk in self.keys.chunks)
        digests = (hashlib.blake2b(key, digest_size=8).digest() for keys in some for key in keys)
        return np.frombuffer(b"".join(digests), "<u4").reshape(-1, 2)

    def row(self, number: int) -> Row:
        """What a reader needs of a sample."""
        name = self.keys[number].as_py()
        return Row(
            f"{self.source[number]}:{name}" if len(self.sources) > 1 else name,
            name,
            self.places[self.place[number]],
            int(self.start[number]),
            int(self.stop[number]),
            MEDIA[self.media[number]],
            int(number),
            self._beside(number),
            float(self.duration[number]) or None,
        )

    def _beside(self, number: int) -> tuple[str, int, int] | None:
        place, start, stop = (-1, 0, 0) if self.beside is None else self.beside[number].tolist()
        return (self.places[place], start, stop) if place >= 0 else None


@dataclass
class Table:
    """Samples of one tar: columns of an Index, and the tar."""

    place: str
    columns: dict[str, Any]
    beside: str | None = None  # the tar that holds the rest of them; ranges are in `columns`
    cut_off: str | None = None  # which of the two can't be read to its end, and why


COLUMNS = {
    "start": np.int64,
    "stop": np.int64,
    "media": np.int8,
    "width": np.int32,
    "height": np.int32,
    "frames": np.int32,
    "duration": np.float32,
    "weight": np.float32,
    "captioned": np.bool_,
}


def gather(data: Data, split: str) -> Index:
    """Reads the indices of all sources.

    Args:
        split: train or val. Where a source has no such folders, curation's share of it (2 %) is
            held out by hash.

    Raises:
        UsageError: a source is missing or not finished, more tars are cut off than
            data.broken_share allows for, or there is no sample in any (of train).
    """
    sources = places(data)
    weights = _weights(data, sources)
    tables: list[list[Table]] = [read_source(source, split) for source in sources]
    index = _joined(sources, weights, tables, data.sampling_weights)
    cut_off = index.cut_off
    some = "; ".join(cut_off[:NAMED]) + ("; …" if len(cut_off) > NAMED else "")
    count = sum(map(len, tables))
    if len(cut_off) > allowed(data.broken_share, count):
        raise UsageError(
            f"{len(cut_off)} of {count} tars can't be read to the end, more than "
            f"data.broken_share={data.broken_share:g} allows: {some}"
        )
    if not len(index) and split == "train":
        raise UsageError(
            f"{', '.join(sources)}: no sample to train on; "
            + (some or "loosen `select` or add video, and run `python curation/run.py` again")
        )
    return index


def _weights(data: Data, sources: list[str]) -> list[float]:
    """How often an epoch shows each source.

    Raises:
        UsageError: they are not one a source.
    """
    weights = data.weights or [1.0] * len(sources)
    if len(weights) == len(sources) and min(weights) >= 0 and any(weights):
        return weights
    given = f"data.weights={','.join(f'{one:g}' for one in weights)}"
    if data.latents:
        raise UsageError(
            f"{given}: what is in data.latents={data.latents} was encoded with its weights; "
            "data.weights= (no number) leaves them as they are"
        )
    what = "place that is" if len(sources) == 1 else f"of the {len(sources)} places that are"
    raise UsageError(
        f"{given}: wants one number, not negative, for each {what} read; data.weights= (no number) "
        "shows each once"
    )


def places(data: Data) -> list[str]:
    """What is read, each place once for every time it is named."""
    if data.latents:
        return [data.latents]
    given = data.shards or [f"data/curated/shards/{data.profile}"]
    return [str(one) for one in given]


def read_source(source: str, split: str) -> list[Table]:
    """One source's tables.

    Raises:
        UsageError: it is missing, or not finished.
    """
    folder = source.rstrip("/") if tars.is_remote(source) else str(Path(source).expanduser())
    if folder.endswith(".tar"):
        return _held_out(_scanned(list(braceexpand(folder))), split)
    for place, has_splits in ((f"{folder}/{split}", True), (folder, False)):
        content = _manifest(place)
        if content is None:
            continue
        entries = [entry for entry in content["shards"] if entry["shard"]]
        with ThreadPoolExecutor(THREADS) as pool:
            tables = list(pool.map(partial(_own, place), entries))
        return tables if has_splits else _held_out(tables, split)
    if _manifest(f"{folder}/train") is not None:
        return []  # curation held nothing out
    found = _tars(folder)
    if not found:
        command = "python curation/run.py"
        profile = Path(folder).name
        raise UsageError(
            f"{source}: no shards there; `{command} profile={profile}` writes those of a profile "
            f"to data/curated/shards/{profile}, and data.shards=PATH names others"
        )
    parts = [one for one in found if f"/{split}/" in one]
    if parts or any(f"/{one}/" in two for one in ("train", "val") for two in found):
        return _scanned(parts)
    return _held_out(_scanned(found), split)


def _manifest(folder: str) -> dict[str, Any] | None:
    """Of a finished folder of ours; None where there is none."""
    if not tars.is_remote(folder):
        # video2dataset has Parquet beside its tars too, which promises nothing of a plan
        begun = any(promised(one) for one in Path(folder).glob("*.parquet"))
        return manifest(folder) if begun or (Path(folder) / "manifest.json").exists() else None
    store, path = tars.filesystem(f"{folder}/manifest.json")
    try:
        content = json.loads(store.cat_file(path))
        return content if isinstance(content.get("shards"), list) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{folder}: its manifest can't be read: {error}") from None


def _tars(folder: str) -> list[str]:
    """All tars below a folder, by name."""
    if tars.is_remote(folder):
        store, path = tars.filesystem(folder)
        try:
            found = [one for one in store.find(path) if one.endswith(".tar")]
        except OSError as error:
            raise UsageError(f"{folder}: can't be read: {error}") from None
        return sorted(store.unstrip_protocol(one) for one in found)
    return sorted(str(one) for one in Path(folder).rglob("*.tar"))


def _own(folder: str, entry: dict[str, Any]) -> Table:
    """One index file of ours."""
    place = f"{folder}/{entry['index']}"
    try:
        with pq.ParquetFile(io.BytesIO(tars.read(place))) as file:
            table = file.read(columns=list(WANTED))
        promise = table.schema.metadata or {}
        size = int(promise.get(b"tar_bytes", b"0")) or entry["bytes"]
    except (OSError, pa.ArrowInvalid, KeyError, ValueError, tars.TarError) as error:
        raise UsageError(
            f"{place}: no index of a shard: {str(error).splitlines()[0]}; `python curation/run.py` "
            "writes it again"
        ) from None
    table = table.filter(pc.equal(table["status"], "success")).sort_by("offset")
    offset, taken = (table[name].to_numpy() for name in ("offset", "bytes"))
    ends = offset + -(-taken // tars.BLOCK) * tars.BLOCK
    return Table(
        f"{folder}/{entry['shard']}",
        {
            "key": table["key"],
            # its other members lie between its neighbours' media
            "start": np.concatenate([[0], ends[:-1]]) if len(offset) else offset,
            "stop": np.concatenate([offset[1:] - tars.BLOCK, [size]]) if len(offset) else offset,
            "media": pc.index_in(table["media"], pa.array(MEDIA)).to_numpy(),
            "width": table["width"].to_numpy(),
            "height": table["height"].to_numpy(),
            "frames": table["frames"].to_numpy(),
            "duration": table["duration_s"].to_numpy(),
            "weight": table["sampling_weight"].fill_null(1.0).to_numpy(),
            "captioned": pc.greater(pc.utf8_length(table["caption"].fill_null("")), 0).to_numpy(),
        },
    )


def _scanned(found: list[str]) -> list[Table]:
    """Tables of tars that have no index of ours."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [Table(*one) for one in pool.map(foreign.scanned, foreign.media_tars(found))]


def _held_out(tables: list[Table], split: str) -> list[Table]:
    """Train's or val's part of tables that were not split, by hash of what they were cut from."""
    for table in tables:
        columns = table.columns
        group = columns.get("group")
        group = columns["key"].to_pylist() if group is None else group
        chosen = foreign.held_out(group) == (split == "val")
        table.columns = {
            name: column.filter(pa.array(chosen)) if name == "key" else column[chosen]
            for name, column in columns.items()
            if name != "group"
        }
    return tables


def _joined(
    sources: list[str], weights: list[float], tables: list[list[Table]], weighted: bool
) -> Index:
    """All sources' tables as one index, in the order of sources, tars and places in them."""
    flat = [(number, table) for number, some in enumerate(tables) for table in some]

    def column(name: str, kind: type) -> np.ndarray:
        parts = [np.asarray(table.columns[name]).astype(kind) for _, table in flat]
        return np.concatenate(parts) if parts else np.empty(0, kind)

    sizes = [len(table.columns["start"]) for _, table in flat]
    columns = {name: column(name, kind) for name, kind in COLUMNS.items()}
    source = np.repeat(np.array([number for number, _ in flat], np.int16), sizes)
    share = np.array(weights, np.float32)[source]
    columns["weight"] = columns["weight"] * share if weighted else share
    keys = [_keys(table.columns["key"]) for _, table in flat]
    places = [table.place for _, table in flat]
    beside = None
    if any(table.beside for _, table in flat):
        parts = []
        for _, table in flat:
            if table.beside:
                places.append(table.beside)
            range_ = table.columns.get("beside")
            parts.append(_beside(range_, len(places) - 1, len(table.columns["start"])))
        beside = np.concatenate(parts)
    return Index(
        sources=sources,
        places=places,
        keys=pa.chunked_array([one for some in keys for one in some], pa.large_string()),
        source=source,
        place=np.repeat(np.arange(len(flat), dtype=np.int32), sizes),
        **columns,
        beside=beside,
        cut_off=[table.cut_off for _, table in flat if table.cut_off],
    )


def _beside(ranges: np.ndarray | None, place: int, rows: int) -> np.ndarray:
    """A table's part of `Index.beside`."""
    if ranges is None:
        return np.tile(np.array([-1, 0, 0]), (rows, 1))
    where = np.where(ranges[:, 1] > 0, place, -1)
    return np.concatenate([where[:, None], ranges], 1)


def _keys(keys: Any) -> list[pa.Array]:
    if isinstance(keys, pa.ChunkedArray):
        return keys.cast(pa.large_string()).chunks
    return [pa.array(keys, pa.large_string())]


def subset(index: Index, chosen: np.ndarray) -> Index:
    """Some rows of an index."""
    same = ("sources", "places", "cut_off")
    taken = {
        one.name: getattr(index, one.name).take(pa.array(chosen))
        if one.name == "keys"
        else getattr(index, one.name)[chosen]
        for one in fields(index)
        if one.name not in same and getattr(index, one.name) is not None
    }
    return Index(index.sources, index.places, **taken, cut_off=index.cut_off)
