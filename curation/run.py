"""Raw video in; a scored catalog, a report and training shards out.

    python curation/run.py                                the bundled samples, into data/curated
    python curation/run.py source=~/videos out=curated    a folder of one's own
    python curation/run.py steps=select,shards,report profile=720p select.min_sharpness=0.3

Reads every file once, in one process a core, and writes as it goes: killed at any moment, the same
command continues; run again, it does what is new. `--help` lists every key.
"""

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from curation import analyse, captions, console, emit, engine, plan, report, selection, sources
from curation.catalog import Catalog
from curation.sources import Source
from recipes.load import UsageError, main
from recipes.schema import STEPS, Curation

COMMIT_S = 2.0  # finished files reach the catalog about so often


def curate(config: Curation) -> int:
    """Runs the steps; returns the exit status (1 where no file at all could be read)."""
    if unknown := set(config.steps) - set(STEPS):
        raise UsageError(f"steps={unknown.pop()}: no such step; the steps are {', '.join(STEPS)}")
    began = time.monotonic()
    scoring = any(step in config.steps for step in ("basic", "visual", "motion"))
    found = sources.find(config) if scoring or config.plan else []
    if config.plan:
        plan.show(plan.estimate(found, config))
        return 0
    with Catalog(Path(config.out), say=console.say) as catalog:
        run = catalog.start_run(asdict(config), versions())
        status = "failed"
        try:
            if scoring:
                score(catalog, found, config)
                captions.refresh(catalog, found, config)
            funnel = selection.select(catalog, config) if "select" in config.steps else None
            if "caption" in config.steps and config.scorers == "full":
                if captions.write_missing(catalog, config):
                    funnel = selection.select(catalog, config)
            if "shards" in config.steps:
                emit.emit(catalog, config)
            catalog.flush()
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            catalog.finish_run(run, status)
        if "report" in config.steps:
            report.write(catalog, config)
        return close(catalog, config, found, time.monotonic() - began)


def score(catalog: Catalog, found: list[Source], config: Curation) -> None:
    """Analyses every file that is new, has changed, or has stale scores."""
    jobs = todo(catalog, found, config)
    if not jobs:
        return
    batch: list[analyse.Rows] = []
    last = time.monotonic()
    with console.bars() as bars:
        files = bars.add_task("files", total=len(jobs), unit="files", note="")
        clips = bars.add_task("clips", total=None, unit="clips", note="")
        walked: dict[str, float] = {}
        for event in engine.run(
            analyse.analyse,
            jobs,
            workers=config.workers,
            timeout_s=config.timeout_s,
            setup=analyse.prepare,
        ):
            job: analyse.Job = event.job
            if isinstance(event.value, analyse.Progress):
                of = event.value.of_s
                walked[job.source.name] = min(1.0, event.value.done_s / of) if of else 0.0
                bars.update(files, note=f"+{sum(walked.values()):.1f} under way")
                continue
            if event.value is not None:
                batch.append(event.value)
                bars.advance(clips, len(event.value.get("clips", ())))
            if event.done:
                walked.pop(job.source.name, None)
                bars.advance(files)
                if event.error:
                    row = analyse.lost_row(job.source, event.error)
                    batch.append({"videos": [row]})
            if batch and time.monotonic() - last > COMMIT_S:
                commit(catalog, batch)
                batch, last = [], time.monotonic()
    commit(catalog, batch)


def todo(catalog: Catalog, found: list[Source], config: Curation) -> list[analyse.Job]:
    """One job for each file that needs work, and which scorers it needs."""
    scorers = analyse.chosen(config)
    names = tuple(one.name for one in scorers)
    known = catalog.known()
    stale = catalog.stale(scorers)
    split = analyse.split_version(config.split)
    other = {
        row["video_id"]
        for row in catalog.query(
            "SELECT video_id FROM videos WHERE split IS DISTINCT FROM ? AND status = 'ok'", [split]
        )
    }
    jobs = []
    for source in found:
        was = known.get(source.uri)
        if was is None or was[:2] != (source.bytes, source.mtime_ns) or was[2] in other:
            jobs.append(analyse.Job(source, config, names))
        elif was[3] == "error":
            if config.retry:
                jobs.append(analyse.Job(source, config, names))
        elif was[2] in stale:
            scores = analyse.known_scores(catalog, was[2])
            jobs.append(analyse.Job(source, config, tuple(stale[was[2]]), scores))
    return jobs


def commit(catalog: Catalog, batch: list[analyse.Rows]) -> None:
    """Writes finished files: whole ones replace what stood there, partial ones fill it in."""
    for rows in batch:
        partial = "videos" not in rows
        (catalog.update if partial else catalog.write)(rows)
