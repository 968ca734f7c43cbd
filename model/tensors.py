"""Tensors in files, read one at a time, so that memory never holds a whole model.

safetensors, in one file or in shards with their index, and pickles (.pth) of plain tensors, which
are opened with `weights_only` and so can't run code. A tensor's bytes are handed on as they are, in
any dtype, even one that PyTorch doesn't have; `model/writer.py` writes them.

The safetensors format: 8 bytes, the header's length; the header, JSON, name → dtype, shape and
place; then the raw little-endian data (huggingface/safetensors, README).
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

CHUNK = 1 << 24  # bytes read at a time, a multiple of every dtype's size
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LABELS = {dtype: label for label, dtype in DTYPES.items()}
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
INDEX = ".safetensors.index.json"


class CheckpointError(ValueError):
    """Weights that can't be read, don't fit or can't be written: what, where, what to do."""


@dataclass(frozen=True)
class Entry:
    """One tensor to read or to write.

    Attributes:
        dtype: as safetensors writes it, e.g. BF16.
        shape: any, also () and with zeros.
        size: bytes.
        chunks: its raw bytes, little-endian, in pieces of whole elements; each piece is gone when
            the next is asked for.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int
    chunks: Callable[[], Iterator[memoryview]]

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        if self.dtype not in DTYPES:
            raise CheckpointError(f"dtype {self.dtype} can be copied but not read into PyTorch")
        raw = torch.empty(self.size, dtype=torch.uint8)
        into, at = memoryview(raw.numpy()), 0
        for chunk in self.chunks():
            into[at : at + len(chunk)] = chunk
            at += len(chunk)
        return raw.view(DTYPES[self.dtype]).reshape(self.shape)

    def to(self, dtype: torch.dtype) -> "Entry":
        """The same numbers in another dtype, cast as they pass; integers stay as they are."""
        source = DTYPES.get(self.dtype)
        if source is None or not source.is_floating_point or source == dtype:
            return self

        def chunks() -> Iterator[memoryview]:
            for chunk in self.chunks():
                yield raw_bytes(torch.frombuffer(chunk, dtype=source).to(dtype))

        size = self.size // source.itemsize * dtype.itemsize
        return replace(self, dtype=LABELS[dtype], size=size, chunks=chunks)


def entry(tensor: Tensor) -> Entry:
    """A tensor in memory (or mapped from a file) as something to write."""
    tensor = tensor.detach()
    if tensor.dtype not in LABELS:
        raise CheckpointError(f"dtype {tensor.dtype} has no place in a checkpoint")

    def chunks() -> Iterator[memoryview]:
        yield raw_bytes(tensor.cpu())

    size = tensor.numel() * tensor.dtype.itemsize
    return Entry(LABELS[tensor.dtype], tuple(tensor.shape), size, chunks)


def raw_bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


# --- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """The tensors of one network as they lie on disk.

    Attributes:
        path: what was opened: the file or, of several, the index.
        files: every file that holds tensors.
        entries: by name, in the order of the files.
        metadata: the first file's own notes.
    """

    path: Path
    files: tuple[Path, ...]
    entries: dict[str, Entry]
    metadata: dict[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: one.shape for name, one in self.entries.items()}

    def read(self, name: str) -> Tensor:
        try:
            return self.entries[name].read()
        except (CheckpointError, OSError) as error:
            raise CheckpointError(f"{self.path}: {name}: {error}") from error


def open_weights(path: str | Path) -> Weights:
    """Reads the headers of a weights file, of an index and its shards, or of a shard's whole set.

    Raises:
        CheckpointError: no such file, not a file of tensors, cut short, a shard missing, or an
            index that says something else than its shards.
    """
    path = Path(path)
    files, listed = parts(path)
    entries: dict[str, Entry] = {}
    metadata: list[dict[str, str]] = []
    for file in files:
        found, notes = open_pickle(file) if file.suffix in PICKLES else open_safetensors(file)
        twice = sorted(found.keys() & entries.keys())
        if twice:
            raise CheckpointError(f"{file}: {some(twice)} also in another shard")
        entries |= found
        metadata.append(notes)
    if listed is not None and (wrong := sorted(listed ^ entries.keys())):
        raise CheckpointError(f"{path}: the index and its shards differ in {some(wrong)}")
    if not entries:
        raise CheckpointError(f"{path}: holds no tensors")
    return Weights(path, tuple(files), entries, metadata[0])


def parts(path: Path) -> tuple[list[Path], set[str] | None]:
    """The files that make up one set of weights; where there is an index, the names it lists."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if shard := SHARD.fullmatch(path.name):
        stem, of = shard[1], shard[3]
        index = path.with_name(stem + INDEX)
        if index.is_file():
            return parts(index)
        row = [f"{stem}-{i:05d}-of-{of}.safetensors" for i in range(1, int(of) + 1)]
        return present([path.with_name(name) for name in row]), None
    if path.name.endswith(INDEX):
        places = read_json(path).get("weight_map")
        if not isinstance(places, dict) or not all(map(is_plain, places.values())):
            raise CheckpointError(f"{path}: no weight_map from names to files beside it")
        return present([path.with_name(name) for name in sorted({*places.values()})]), {*places}
    return [path], None


def is_plain(name: object) -> bool:
    """Whether a file named so lies beside the index (an index is untrusted)."""
    return isinstance(name, str) and name == os.path.basename(name) and name not in ("", ".", "..")


def present(files: list[Path]) -> list[Path]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{files[0].parent}: of {len(files)} shards lacks {some(missing)}")
    return files


def open_safetensors(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        with safe_open(path, "pt"):  # the library checks header, places and the file's length
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{path}: no whole safetensors file ({why})") from error
    metadata = header.pop("__metadata__", {})
    entries = {}
    for name, one in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = one["data_offsets"]
        chunks = piecewise(path, 8 + length + begin, end - begin)
        entries[name] = Entry(one["dtype"], tuple(one["shape"]), end - begin, chunks)
    return entries, metadata


def piecewise(path: Path, start: int, size: int) -> Callable[[], Iterator[memoryview]]:
    """A piece of a file in chunks, through one buffer: each is gone when the next is asked for."""

    def chunks() -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(CHUNK, size)))
        with open(path, "rb") as file:
            file.seek(start)
            for at in range(0, size, CHUNK):
                piece = buffer[: min(CHUNK, size - at)]
                if file.readinto(piece) != len(piece):
                    raise CheckpointError(f"{path}: ended early; was it changed meanwhile?")
                yield piece

    return chunks


def open_pickle(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """A pickle that holds nothing but tensors by name; it is mapped, not read, where it can be."""
    try:
        mapped = zip_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: no pickle of plain tensors ({why})") from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(one, Tensor) for name, one in content.items()
    ):
        raise CheckpointError(f"{path}: holds something else than tensors by name")
    return {name: entry(one) for name, one in content.items()}, {}


def zip_file(path: Path) -> bool:
    """Whether it has the layout of PyTorch ≥ 1.6, which can be mapped into memory."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: wants names and values in braces")
    return content


def some(names: Iterable[str], most: int = 3) -> str:
    """A few of many names, and how many there are."""
    names = list(names)
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
