"""Training shards: WebDataset tars, whose format lives here and nowhere else.

    shards/<profile>/{train,val}/00000.tar      <clip_id>.json, .mp4 (.jpg, .png), .txt
                                00000.parquet   one row a sample, also of those that failed
                                manifest.json   checksums; written last, so it means "finished"

    for job in plan(samples, folder, settings):     rows = list(write_shard(job))
    finish(folder, jobs)
    for sample in read(folder): ...

The same samples and settings give the same bytes. Nothing of the catalog is needed: training and
evaluation import this. `layout` has the names, `record` the JSON, `packing` the writing.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curation.buckets import bucket, bucket_size
from curation.layout import INDEX, KEY, MEMBER, SHARD, Tar, file_sha256, manifest, promised, rows
from curation.packing import ShardPlan, finish, plan, retry, write_shard
from curation.record import Sample
from recipes.load import UsageError

__all__ = [
    "INDEX",
    "KEY",
    "Sample",
    "ShardPlan",
    "Tar",
    "bucket",
    "bucket_size",
    "file_sha256",
    "finish",
    "index",
    "manifest",
    "plan",
    "promised",
    "read",
    "retry",
    "verify",
    "write_shard",
]


def index(folder: Path | str, failed: bool = False) -> list[dict[str, Any]]:
    """All samples of a finished folder: a row each with INDEX's columns and `shard`, its tar.

    Args:
        failed: also those that could not be cut, with their `error_message`.
    """
    return [
        row | {"shard": entry["shard"]}
        for entry in manifest(folder)["shards"]
        for row in rows(Path(folder) / entry["index"])
        if failed or row["status"] == "success"
    ]


def read(source: Path | str, **options: Any):
    """Samples through the webdataset library: a pipeline to `shuffle`, `map` and `batched`.

    Args:
        source: a finished folder, or what webdataset takes: a tar's path or URL, with braces.
        options: of `webdataset.WebDataset`, e.g. `shardshuffle`, `nodesplitter`, `resampled`.

    Returns:
        an iterable of dicts: `__key__`, `mp4` (or `jpg`, `png`) as bytes, `txt` as text, `json` as
        the decoded record.

    Raises:
        UsageError: the folder is not finished, or holds no sample.
        ValueError: while reading: a member whose name is a path, or no sample's.
    """
    import webdataset

    urls = str(source)
    if Path(source).is_dir() or ("://" not in urls and not urls.endswith(".tar")):
        entries = [entry for entry in manifest(source)["shards"] if entry["shard"]]
        if not entries:
            raise UsageError(f"{source}: its shards hold no sample; loosen `select`, or add video")
        urls = [str(Path(source) / entry["shard"]) for entry in entries]
    options = {"shardshuffle": False, "empty_check": False} | options
    samples = webdataset.WebDataset(urls, select_files=_member, **options)
    openers = (webdataset.cache.StreamingOpen, webdataset.cache.FileCache)
    place = next(i for i, stage in enumerate(samples.pipeline) if isinstance(stage, openers))
    samples.pipeline.insert(place + 1, _closed)
    return samples.map(_decoded)


def _closed(streams: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Closes each tar after its last sample, which webdataset leaves to the garbage collector."""
    for source in streams:
        with source["stream"]:
            yield source


def _member(name: str) -> bool:
    if not MEMBER.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a sample's file")
    return True


def _decoded(sample: dict[str, Any]) -> dict[str, Any]:
    changed = {"txt": bytes.decode, "json": json.loads}
    return {k: changed[k](v) if k in changed else v for k, v in sample.items()}


def verify(folder: Path | str) -> list[str]:
    """Compares a folder with its manifest's checksums; returns one line a fault, none if whole."""
    folder = Path(folder)
    faults, known = [], set()
    for entry in manifest(folder)["shards"]:
        for name, digest in ((entry["index"], "index_sha256"), (entry["shard"], "sha256")):
            if name is None:
                continue
            known.add(name)
            if not (folder / name).is_file():
                faults.append(f"{name}: missing")
            elif file_sha256(folder / name) != entry[digest]:
                faults.append(f"{name}: its checksum is not the manifest's")
    strangers = {one.name for one in folder.iterdir() if SHARD.fullmatch(one.name)} - known
    return faults + [f"{name}: not in the manifest" for name in sorted(strangers)]
