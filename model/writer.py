"""Tensors written one at a time: safetensors in one file or in shards with their index.

Shards and index are named and cut as diffusers does it (`save_pretrained`, 10 GB). A file written
here from what safetensors wrote, in the same order, has the same bytes.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from model.tensors import DTYPES, INDEX, CheckpointError, Entry

SHARD_BYTES = 10 * 10**9  # a larger model is cut, as in diffusers


def write_weights(
    folder: Path,
    stem: str,
    entries: dict[str, Entry],
    metadata: dict[str, str] | None = None,
    shard_bytes: int | None = SHARD_BYTES,
) -> list[Path]:
    """Writes safetensors, in shards with an index where they exceed `shard_bytes` (None: never).

    Args:
        stem: `<stem>.safetensors`, or `<stem>-00001-of-0000N.safetensors` and
            `<stem>.safetensors.index.json`.

    Returns:
        The files that hold tensors. Files of the same names are overwritten.
    """
    shards = cut(entries, shard_bytes)
    metadata = {"format": "pt", **(metadata or {})}  # transformers refuses a file without it
    if len(shards) == 1:
        write_file(folder / f"{stem}.safetensors", shards[0], metadata)
        return [folder / f"{stem}.safetensors"]
    files, places = [], {}
    for i, shard in enumerate(shards, start=1):
        files.append(folder / f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors")
        write_file(files[-1], shard, metadata)
        places |= dict.fromkeys(shard, files[-1].name)
    total = sum(one.size for one in entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / f"{stem}{INDEX}", index, sort_keys=True)
    return files


def cut(entries: dict[str, Entry], most: int | None) -> list[dict[str, Entry]]:
    """Fills shard after shard in the given order; a tensor larger than that stands alone."""
    shards: list[dict[str, Entry]] = [{}]
    filled = 0
    for name, one in entries.items():
        if most is not None and shards[-1] and filled + one.size > most:
            shards.append({})
            filled = 0
        shards[-1][name] = one
        filled += one.size
    return shards


def write_file(path: Path, entries: dict[str, Entry], metadata: dict[str, str]) -> None:
    """One safetensors file: the header first, then one tensor after the other.

    The order is kept, except that wide dtypes come before narrow ones, so that each is aligned; a
    file that safetensors wrote has that order already.
    """
    ordered = sorted(entries.items(), key=lambda item: -width(item[1]))
    header: dict[str, dict] = {"__metadata__": metadata}
    at = 0
    for name, one in ordered:
        place = [at, at + one.size]
        header[name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": place}
        at += one.size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, one in ordered:
            for chunk in one.chunks():
                file.write(chunk)


def width(one: Entry) -> float:
    """Bytes an element."""
    known = DTYPES.get(one.dtype)
    return known.itemsize if known else one.size / max(math.prod(one.shape), 1)


def write_pickle(path: Path, entries: dict[str, Entry]) -> None:
    """A plain dictionary of tensors, as the official VAE comes; the whole of it passes memory."""
    torch.save({name: one.read() for name, one in entries.items()}, path)


def write_json(path: Path, content: dict, sort_keys: bool = False) -> None:
    text = json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def fresh(target: str | Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` when all went well, and else vanishes.

    Raises:
        CheckpointError: the target is there already and not empty, or can't be written.
    """
    target = Path(target).expanduser().resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(f"{target}: is there already; name another or remove it")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise CheckpointError(f"{target}: can't be written ({error.strerror})") from error
    try:
        yield partial
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
