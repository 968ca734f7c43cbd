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
    rows = []
    for split in SPLITS:
        folder = catalog.folder / "shards" / config.profile / split
        some = [sample for sample in samples if sample.split == split]
        plans = shards.plan(some, folder, config.shards)
        write(plans, config, split)
        manifest = shards.finish(folder, plans)
        for lost in manifest["left_out"]:
            console.say(f"{lost['clip_id']} is not in the shards: {lost['reason']}")
        rows += [
            {
                "profile": config.profile,
                "split": split,
                "shard": f"{Path(row['shard']).name}",
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


def write(plans: list[shards.ShardPlan], config: Curation, split: str) -> None:
    """Writes the shards that are not there yet: clips are cut by all workers, then packed."""
    for job in plans:
        if finished(job):
            continue
        aside = job.folder / CUTS
        aside.mkdir(exist_ok=True)
        there = loose(aside)
        todo = [
            one
            for one in job.samples
            if cut_hash(one, config.shards) not in job.donors | there.clips
            and one.clip_id not in there.failed
        ]
        cuts = [
            Cut(tuple(some), aside, config)
            for _, some in itertools.groupby(todo, key=lambda sample: sample.source_path)
        ]
        died = {}
        with console.bars() as bars:
            task = bars.add_task(split, total=len(todo), unit="clips", note=f"shard {job.name}")
            for event in engine.run(
                cut,
                cuts,
                workers=config.workers,
                timeout_s=config.timeout_s,
                setup=analyse.prepare,
            ):
                if event.value:
                    bars.advance(task)
                if event.error:
                    died |= {one.clip_id: event.error for one in event.job.samples}
        there = loose(aside)
        died = {key: why for key, why in died.items() if key not in there.ids}
        ready = replace(job, donors=job.donors | there.clips, broken=died | there.failed)
        for _ in shards.write_shard(ready):
            pass
        shutil.rmtree(aside)


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
