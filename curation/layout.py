"""What a folder of shards looks like: names, the index, the manifest, the tar.

00000.tar       members <clip_id>.json, .mp4 (.jpg, .png), .txt, sorted by name
00000.parquet   the index: one row a sample, also of those that failed; its metadata say of
                which plan it is, and what the tar's size and checksum are
manifest.json   all shards and their checksums
"""

import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipes.load import UsageError

FORMAT = "1"  # changes whenever the bytes of a shard do
STAGE = ".new"  # where new shards wait while an older set stands
TEMPORARY = ".tmp-"
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,89}")
MEMBER = re.compile(KEY.pattern + r"\.(json|mp4|jpg|png|txt)")
SHARD = re.compile(r"\d{5,}\.(tar|parquet)")

INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("clip_id", pa.string()),
        ("status", pa.string()),  # success or failed, as video2dataset has it
        ("error_message", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("media", pa.string()),  # mp4, jpg or png
        ("offset", pa.int64()),  # of the media's bytes in the tar
        ("bytes", pa.int64()),  # of the media
        ("sha256", pa.string()),  # of the media
        ("cut", pa.string()),  # hash of what was cut, and how
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        ("duration_s", pa.float64()),
        ("crop", pa.list_(pa.int32())),
        ("bucket", pa.string()),
        ("tier", pa.string()),
        ("sampling_weight", pa.float64()),
    ]
)


class Tar:
    """A tar whose bytes depend on its members alone."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self.bytes = 0
        self._tar = tarfile.TarFile(fileobj=self, mode="w", format=tarfile.USTAR_FORMAT)

    def __enter__(self) -> "Tar":
        return self

    def __exit__(self, kind, *error) -> None:
        with self._file:
            if kind is None:
                self._tar.close()
                self._file.flush()
                os.fsync(self._file.fileno())

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.bytes

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def add(self, name: str, data: bytes) -> int:
        """Returns the offset of the member's bytes."""
        member = tarfile.TarInfo(name)  # no date, no owner, 0644
        member.size = len(data)
        offset = self.bytes + tarfile.BLOCKSIZE  # after its header
        self._tar.addfile(member, io.BytesIO(data))
        return offset


def promised(index: Path) -> dict[str, str] | None:
    """What an index says of its shard: `plan`, `tar_bytes`, `tar_sha256`."""
    try:
        metadata = pq.read_schema(index).metadata or {}
        return {k: metadata[k.encode()].decode() for k in ("plan", "tar_bytes", "tar_sha256")}
    except (OSError, KeyError, pa.ArrowInvalid):
        return None


def rows(index: Path) -> list[dict[str, Any]]:
    """The samples of one index. (`pq.read_table` would take a folder named `a=b` for a column.)"""
    with pq.ParquetFile(index) as file:
        return file.read().to_pylist()


def manifest(folder: Path | str) -> dict[str, Any]:
    """What a finished folder says of itself.

    Raises:
        UsageError: it is not finished, or not a folder of shards.
    """
    place = Path(folder) / "manifest.json"
    try:
        content = json.loads(place.read_bytes())
        for entry in content["shards"]:
            for name in (entry["index"], entry["shard"]):
                if name is not None and not SHARD.fullmatch(name):
                    raise ValueError(f"{name!r} is no shard's name")
    except FileNotFoundError:
        raise UsageError(
            f"{folder}: no finished shards there (no manifest.json); "
            "`python curation/run.py` writes them"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{place}: no manifest of shards: {error}") from None
    return content


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def synced(path: Path) -> None:
    """Written to the disk itself, before what relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
