"""Writes shards: deals samples out, cuts and packs them, puts the finished set in its place.

A shard is written under a temporary name and renamed, its index after it; the index holds the hash
of its plan, so that a run that was killed goes on where it stopped. Where an older set of shards
stands, new ones are staged beside it and change places only when all are there, so that a reader
meets the old set, or the new one, or none that says it is finished. Clips that were encoded before
are copied.
"""

import contextlib
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.layout import (
    FORMAT,
    INDEX,
    KEY,
    SHARD,
    STAGE,
    TEMPORARY,
    Tar,
    file_sha256,
    promised,
    rows,
    synced,
)
from curation.media import Donor, Fetch, Made, cut_hash, media
from curation.record import Sample, hashed, json_bytes, plain, record
from recipes.load import UsageError
from recipes.schema import Shards


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: a job that any worker can do."""

    folder: Path
    number: int
    samples: tuple[Sample, ...]
    settings: Shards
    hash: str
    donors: dict[str, Donor] = field(default_factory=dict)  # hash of a cut → its bytes
    broken: dict[str, str] = field(default_factory=dict)  # clip_id → why it is not even tried

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


def plan(samples: Iterable[Sample], folder: Path | str, settings: Shards) -> list[ShardPlan]:
    """Deals samples out to shards, in the order of their ids, and clears what a dead run left.

    Args:
        samples: of one profile and one split.
        folder: shards/<profile>/<split>; made if missing.
        settings: how clips are encoded, and how many make a shard.

    Raises:
        UsageError: the folder can't be written.
        ValueError: a clip_id is no safe file name, or comes twice.
    """
    folder = Path(folder)
    ordered = sorted(samples, key=lambda sample: sample.clip_id)
    for sample in ordered:
        if not KEY.fullmatch(sample.clip_id):
            raise ValueError(f"{sample.clip_id!r} can't be the key of a sample")
    for one, other in itertools.pairwise(ordered):
        if one.clip_id == other.clip_id:
            raise ValueError(f"{one.clip_id} comes twice")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in (*folder.glob(f"{TEMPORARY}*"), *folder.glob(f"{STAGE}/{TEMPORARY}*")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    except OSError as error:
        raise UsageError(f"{folder}: can't be written: {error.strerror}") from None
    jobs = []
    for number, some in enumerate(_batched(ordered, max(1, settings.samples))):
        what = [FORMAT, [cut_hash(s, settings) for s in some], [plain(s) for s in some]]
        jobs.append(ShardPlan(folder, number, some, settings, hashed(what)))
    if all(finished(job) for job in jobs):
        return jobs
    known = _encoded(folder)
    for job in jobs:
        cuts = () if finished(job) else [cut_hash(sample, settings) for sample in job.samples]
        job.donors.update({cut: known[cut] for cut in cuts if cut in known})
    return jobs


def retry(job: ShardPlan, rows_seen: int, error: str) -> ShardPlan:
    """The same shard without the source at which a worker died or fell silent.

    Args:
        rows_seen: how many rows `write_shard` had yielded.
        error: one line; the reason in the rows of that source's clips that were still to come.
    """
    rest = job.samples[rows_seen:]
    lost = [one for one in rest if rest and one.source_path == rest[0].source_path]
    return replace(job, broken=job.broken | {one.clip_id: error for one in lost})


def write_shard(job: ShardPlan, fetch: Fetch = nullcontext) -> Iterator[dict[str, Any] | None]:
    """Writes one shard, or does nothing where it is done; what the engine's workers run.

    Args:
        job: from `plan`.
        fetch: makes a context manager, which gives a local path, of a sample's `source_path`.

    Yields:
        a row of the index (see INDEX) a sample, in order, and None every few seconds as a sign of
        life. Rows count only once the generator is exhausted. A sample that can't be cut has a row
        with `status` failed and its reason.
    """
    if done := finished(job):
        yield from rows(done[0])
        return
    # what stands there belongs to an older set, which stays whole until `finish`
    place = job.folder
    if (place / f"{job.name}.parquet").exists():
        place = place / STAGE
        place.mkdir(exist_ok=True)
    scratch = place / f"{TEMPORARY}{job.name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    packed = []
    with Tar(scratch / "tar") as tar:
        for made in media(job.samples, job.settings, scratch, fetch, job.donors, job.broken):
            if made is not None:
                packed.append(_pack(tar, job, made))
            yield made and packed[-1]
    target = place / f"{job.name}.tar"
    promise = {"plan": job.hash, "tar_bytes": "0", "tar_sha256": ""}
    if any(row["status"] == "success" for row in packed):
        promise |= {"tar_bytes": str(tar.bytes), "tar_sha256": tar.sha256}
        os.replace(scratch / "tar", target)
    else:  # a tar without a member is an error to its readers
        target.unlink(missing_ok=True)
    pq.write_table(pa.Table.from_pylist(packed, INDEX.with_metadata(promise)), scratch / "index")
    synced(scratch / "index")
    os.replace(scratch / "index", target.with_suffix(".parquet"))
    synced(place)
    shutil.rmtree(scratch)


def _pack(tar: Tar, job: ShardPlan, made: Made) -> dict[str, Any]:
    """Adds one sample's members; returns its row."""
    sample = made.sample
    row = dict.fromkeys(INDEX.names) | {
        "key": sample.clip_id,
        "clip_id": sample.clip_id,
        "url": sample.url,
        "caption": sample.caption,
        "cut": cut_hash(sample, job.settings),
        "bucket": sample.bucket,
        "tier": sample.tier,
        "sampling_weight": sample.sampling_weight,
    }
    if made.data is None:
        return row | {"status": "failed", "error_message": made.error}
    row |= {
        "status": "success",
        "media": made.suffix,
        "bytes": len(made.data),
        "sha256": hashlib.sha256(made.data).hexdigest(),
    }
    row |= {name: made.facts[name] for name in ("width", "height", "frames", "fps", "duration_s")}
    row["crop"] = list(made.facts["crop"])
    members = {
        "json": json_bytes(record(sample, row)),
        "txt": sample.caption.encode(),
        made.suffix: made.data,
    }
    offsets = {name: tar.add(f"{sample.clip_id}.{name}", members[name]) for name in sorted(members)}
    return row | {"offset": offsets[made.suffix]}


def finish(folder: Path | str, jobs: Iterable[ShardPlan]) -> dict[str, Any]:
    """Puts all shards in their places and writes the manifest, last.

    Killed in its midst, it is simply run again; until then the folder has the older set and its
    manifest, or no manifest.

    Returns:
        the manifest.

    Raises:
        RuntimeError: a shard has not been written.
    """
    folder, jobs = Path(folder), list(jobs)
    found = {job.name: finished(job) for job in jobs}
    if missing := [name for name, pair in found.items() if pair is None]:
        raise RuntimeError(f"{folder}: shard {missing[0]} has not been written; run it again")
    manifest, settled = folder / "manifest.json", set()
    for name, (index, tar) in found.items():
        settled |= {f"{name}.parquet", tar and tar.name}
        if index.parent != folder or (tar and tar.parent != folder):
            manifest.unlink(missing_ok=True)  # what it says is about to be untrue
        if index.parent != folder:  # first away with what would vouch for a tar of the older set
            (folder / index.name).unlink(missing_ok=True)
        if tar and tar.parent != folder:
            os.replace(tar, folder / tar.name)
        if index.parent != folder:
            os.replace(index, folder / index.name)
    content = _manifest(folder, jobs)
    data = json_bytes(content, indent=1)
    if not manifest.exists() or manifest.read_bytes() != data:
        temporary = folder / f"{TEMPORARY}manifest"
        temporary.write_bytes(data)
        synced(temporary)
        os.replace(temporary, manifest)
        synced(folder)
    for left in folder.iterdir():
        if SHARD.fullmatch(left.name) and left.name not in settled:
            left.unlink()
    shutil.rmtree(folder / STAGE, ignore_errors=True)
    return content


def _manifest(folder: Path, jobs: list[ShardPlan]) -> dict[str, Any]:
    shards, left_out = [], []
    for job in jobs:
        index = folder / f"{job.name}.parquet"
        failed = [row for row in rows(index) if row["status"] != "success"]
        left_out += [{"clip_id": one["clip_id"], "reason": one["error_message"]} for one in failed]
        promise, some = promised(index), len(job.samples) > len(failed)
        entry = {"index": index.name, "index_sha256": file_sha256(index)}
        entry |= {"shard": f"{job.name}.tar" if some else None}
        entry |= {"samples": len(job.samples) - len(failed)}
        entry |= {"bytes": int(promise["tar_bytes"]), "sha256": promise["tar_sha256"] or None}
        shards.append(entry)
    return {
        "format": FORMAT,
        "settings": asdict(jobs[0].settings) if jobs else None,
        "samples": sum(entry["samples"] for entry in shards),
        "bytes": sum(entry["bytes"] for entry in shards),
        "left_out": left_out,
        "shards": shards,
    }


def finished(job: ShardPlan) -> tuple[Path, Path | None] | None:
    """Index and tar of a shard that is done; no tar where every sample failed.

    The two are renamed one after the other, so a kill may leave them in different folders; then
    only the checksum tells whether they belong together.
    """
    places = (job.folder, job.folder / STAGE)
    for index in (place / f"{job.name}.parquet" for place in places):
        promise = promised(index)
        if promise is None or promise["plan"] != job.hash:
            continue
        if promise["tar_bytes"] == "0":
            return index, None
        for tar in (place / f"{job.name}.tar" for place in places):
            whole = tar.exists() and str(tar.stat().st_size) == promise["tar_bytes"]
            near = tar.parent == index.parent
            if whole and (near or file_sha256(tar) == promise["tar_sha256"]):
                return index, tar
    return None


def _encoded(folder: Path) -> dict[str, Donor]:
    """Every clip in the shards that lie here, of whatever plan."""
    known: dict[str, Donor] = {}
    for index in (*folder.glob("*.parquet"), *folder.glob(f"{STAGE}/*.parquet")):
        with contextlib.suppress(pa.ArrowInvalid, KeyError, OSError):
            for row in rows(index):
                if row["status"] == "success":
                    known[row["cut"]] = Donor(index.with_suffix(".tar"), row)
    return known


def _batched(samples: list[Sample], size: int) -> Iterator[tuple[Sample, ...]]:
    for start in range(0, len(samples), size):
        yield tuple(samples[start : start + size])
