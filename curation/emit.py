"""From the catalog to the shards: the kept clips of a profile, cut and written.

Which clips, with what captions, weight and bucket, is a query; how a shard looks is
`curation.shards`' business.
"""

import functools
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from curation import analyse, console, engine, shards, sources
from curation.catalog import Catalog
from curation.loose import cut_loose, loose
from curation.media import cut_hash
from curation.packing import finished
from curation.shards import Sample
from curation.sources import Source
from recipes.schema import Curation

SPLITS = ("train", "val")
CHUNK_S = 10.0  # seconds of video: short enough to keep all cores at work to the end
CUTS = ".cuts"  # clips of the shard under way; a killed run's are used again
KEPT = """
    SELECT c.*, v.name, v.uri, v.bytes AS file_bytes, v.mtime_ns, v.is_image,
        d.sampling_weight, d.bucket AS into_bucket, d.split
    FROM decisions d JOIN clips c USING (clip_id) JOIN videos v USING (video_id)
    WHERE d.profile = ? AND d.kept ORDER BY clip_id
"""


def emit(catalog: Catalog, config: Curation) -> None:
    """Writes the shards of `config.profile` and their rows; what is finished is left alone."""
    samples = kept(catalog, config)
    folders = {split: catalog.folder / "shards" / config.profile / split for split in SPLITS}
    plans = {
        split: shards.plan([s for s in samples if s.split == split], folder, config.shards)
        for split, folder in folders.items()
    }
    for round_ in itertools.zip_longest(*plans.values()):
        write([job for job in round_ if job and not finished(job)], config)
    rows = []
    for split, folder in folders.items():
        manifest = shards.finish(folder, plans[split])
        for lost in manifest["left_out"]:
            console.say(f"{lost['clip_id']} is not in the shards: {lost['reason']}")
        rows += [
            {
                "profile": config.profile,
                "split": split,
                "shard": row["shard"],
                "clip_id": row["clip_id"],
                "key": row["key"],
                "bytes": row["bytes"],
                "sha256": row["sha256"],
            }
            for row in shards.index(folder)
        ]
    present = catalog.query(
        "SELECT * FROM shards WHERE profile = ? ORDER BY split, shard, clip_id", [config.profile]
    )
    if present != rows:
        catalog.replace("shards", config.profile, rows)


def write(jobs: list[shards.ShardPlan], config: Curation) -> None:
    """Writes some shards: all workers cut their clips aside, then each is packed."""
    cuts = []
    for job in jobs:
        aside = job.folder / CUTS
        aside.mkdir(exist_ok=True)
        there = loose(aside)
        known = job.donors | there.clips
        todo = [
            one
            for one in job.samples
            if cut_hash(one, config.shards) not in known and one.clip_id not in there.failed
        ]
        cuts += [Cut(some, aside, config) for some in chunks(todo)]
    died = {}
    with console.bars() as bars:
        total = sum(len(one.samples) for one in cuts)
        name = f"shard {jobs[0].name}" if jobs else ""
        task = bars.add_task("cutting", total=total, unit="clips", note=name)
        for event in engine.run(
            cut, cuts, workers=config.workers, timeout_s=config.timeout_s, setup=analyse.prepare
        ):
            if event.value:
                bars.advance(task)
            if event.error:
                died |= {one.clip_id: event.error for one in event.job.samples}
    for job in jobs:
        aside = job.folder / CUTS
        there = loose(aside)
        lost = {key: why for key, why in died.items() if key not in there.ids}
        ready = replace(job, donors=job.donors | there.clips, broken=lost | there.failed)
        for _ in shards.write_shard(ready):
            pass
        shutil.rmtree(aside)


def chunks(samples: list[Sample]) -> Iterator[tuple[Sample, ...]]:
    """Neighbouring clips of one file, about CHUNK_S together: a worker's share."""
    for _, group in itertools.groupby(samples, key=lambda sample: sample.source_path):
        some: list[Sample] = []
        for one in group:
            some.append(one)
            if sum(s.end_s - s.start_s for s in some) >= CHUNK_S:
                yield tuple(some)
                some = []
        if some:
            yield tuple(some)


@dataclass(frozen=True)
class Cut:
    """The clips of one file that a shard wants."""

    samples: tuple[Sample, ...]
    folder: Path
    config: Curation


def cut(job: Cut) -> Iterator[bool]:
    """Cuts the clips of one file into loose files beside the shards; what the workers run.

    Yields:
        True a clip, False as a sign of life.
    """
    fetch = functools.partial(sources.local, folder=analyse.fetched(job.config))
    yield from cut_loose(job.samples, job.config.shards, job.folder, fetch)


def kept(catalog: Catalog, config: Curation) -> list[Sample]:
    """The clips that a profile keeps, with everything that their JSON says."""
    ids = "SELECT clip_id FROM decisions WHERE profile = ? AND kept"
    told: dict[str, list[dict]] = {}
    for row in catalog.query(
        f"SELECT * FROM captions WHERE clip_id IN ({ids}) "
        "ORDER BY clip_id, model IS NOT NULL, rowid",
        [config.profile],
    ):
        told.setdefault(row.pop("clip_id"), []).append(row)
    scores: dict[str, dict] = {}
    for step in ("basic", "visual", "motion"):
        for row in catalog.query(
            f"SELECT * EXCLUDE (versions) FROM {step} WHERE clip_id IN ({ids})", [config.profile]
        ):
            scores.setdefault(row.pop("clip_id"), {}).update(row)
    found = []
    for row in catalog.query(KEPT, [config.profile]):
        mine = scores.get(row["clip_id"], {})
        found.append(
            Sample(
                clip_id=row["clip_id"],
                source_path=source_of(row),
                start_s=row["start_s"],
                end_s=row["end_s"],
                crop=(row["crop_x"], row["crop_y"], row["crop_w"], row["crop_h"]),
                is_image=row["is_image"],
                captions=tuple(told.get(row["clip_id"], ())),
                name=row["name"],
                uri=row["uri"],
                start_frame=row["start_frame"],
                end_frame=row["end_frame"],
                width=row["width"],
                height=row["height"],
                fps=row["fps"],
                scores=mine,
                tier=mine.get("tier"),
                sampling_weight=row["sampling_weight"],
                bucket=row["into_bucket"],
                split=row["split"],
            )
        )
    return found


def source_of(row: dict) -> Source:
    """The file that a row of `videos`, joined to its clip, speaks of."""
    return Source(row["name"], row["uri"], row["file_bytes"], row["mtime_ns"])
