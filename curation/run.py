"""Raw video in; a scored catalog, a report and training shards out.

    python curation/run.py                                the bundled samples, into data/curated
    python curation/run.py source=~/videos out=curated    a folder of one's own
    python curation/run.py steps=select,shards,report profile=720p select.min_sharpness=0.3

Reads every file once, in one process a core, and writes as it goes: killed at any moment, the same
command continues; run again, it does what is new. `--help` lists every key.
"""

import importlib.metadata
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa

from curation import (
    analyse,
    captioning,
    captions,
    console,
    emit,
    engine,
    plan,
    report,
    selection,
    semantics,
    sources,
)
from curation.catalog import Catalog
from curation.scorer import Scorer
from curation.sources import Source
from recipes.load import main
from recipes.schema import Curation

COMMIT_S = 2.0  # finished files reach the catalog about so often


def curate(config: Curation) -> int:
    """Runs the steps; returns the exit status (1 where no file at all could be read)."""
    began = time.monotonic()
    scoring = any(step in config.steps for step in ("basic", "visual", "motion"))
    if config.plan:
        with tempfile.TemporaryDirectory() as aside:  # rendered and fetched files go there
            elsewhere = replace(config, out=aside)
            plan.show(plan.estimate(sources.find(elsewhere), elsewhere))
        return 0
    scorers = analyse.chosen(config)
    if scoring and any("light" not in one.sets for one in scorers):
        semantics.check(config.weights)  # before hours are spent
    found = sources.find(config) if scoring else []
    for warning in (line for source in found for line in source.warnings):
        console.say(warning)
    with Catalog(Path(config.out), say=console.say) as catalog:
        if not scoring:
            catalog.query("SELECT count(*) FROM clips")  # there must be one to go on with
        run = catalog.start_run(asdict(config), versions())
        status = "failed"
        temporary = analyse.fetched(config)
        shutil.rmtree(temporary, ignore_errors=True)  # what a killed run left
        temporary.mkdir()
        try:
            if scoring:
                score(catalog, found, scorers, config)
                refresh_captions(catalog, found)
            funnel = selection.select(catalog, config) if "select" in config.steps else None
            if "caption" in config.steps and captioning.describe(catalog, config):
                funnel = selection.select(catalog, config)  # now those have captions
            if "shards" in config.steps:
                emit.emit(catalog, config)
            catalog.flush()
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            catalog.finish_run(run, status)
        if "report" in config.steps:
            report.write(catalog, config, funnel or selection.select(catalog, config))
        return close(catalog, config, time.monotonic() - began)


def score(catalog: Catalog, found: list[Source], scorers: list[Scorer], config: Curation) -> None:
    """Analyses every file that is new, has changed, or has stale scores."""
    jobs = todo(catalog, found, scorers, config)
    if not jobs:
        return
    batch: list[analyse.Rows] = []
    last, done = time.monotonic(), 0
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
                bars.update(files, completed=done + sum(walked.values()))
                continue
            if event.value is not None:
                batch.append(event.value)
                bars.advance(clips, len(event.value.get("clips", ())))
            if event.done:
                walked.pop(job.source.name, None)
                done += 1
                bars.update(files, completed=done + sum(walked.values()))
                if event.error:
                    row = analyse.lost_row(job.source, event.error)
                    batch.append({"videos": [row]})
            if batch and time.monotonic() - last > COMMIT_S:
                commit(catalog, batch)
                batch, last = [], time.monotonic()
    commit(catalog, batch)


def todo(
    catalog: Catalog, found: list[Source], scorers: list[Scorer], config: Curation
) -> list[analyse.Job]:
    """One job for each file that needs work, and which scorers it needs."""
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
            scores = known_scores(catalog, was[2])
            jobs.append(analyse.Job(source, config, tuple(stale[was[2]]), scores))
    return jobs


def known_scores(catalog: Catalog, video_id: str) -> dict[str, dict]:
    """clip_id → its scores, which stale scorers that are run again may build on."""
    found: dict[str, dict] = {}
    for step in ("basic", "visual", "motion"):
        for row in catalog.query(
            f"SELECT * EXCLUDE (versions) FROM {step} WHERE clip_id IN "
            "(SELECT clip_id FROM clips WHERE video_id = ?)",
            [video_id],
        ):
            found.setdefault(row.pop("clip_id"), {}).update(row)
    return found


def commit(catalog: Catalog, batch: list[analyse.Rows]) -> None:
    """Writes finished files: whole ones replace what stood there, partial ones fill it in."""
    whole: analyse.Rows = {}
    for rows in batch:
        if "videos" in rows:
            for table, some in rows.items():
                whole.setdefault(table, []).extend(some)
        else:
            catalog.update(rows)
    if whole:
        catalog.write(whole)


def refresh_captions(catalog: Catalog, found: list[Source]) -> None:
    """Brings the captions table in step with sidecars and data sets, which change without a file.

    Captions are matched to clips by the spans they speak of; a model's captions stay.
    """
    told = {source.uri: source.captions for source in found}
    clips = catalog.query(
        "SELECT c.clip_id, c.start_s, c.end_s, v.uri FROM clips c JOIN videos v USING (video_id) "
        "WHERE list_contains($uris, v.uri) ORDER BY clip_id",
        {"uris": list(told)},
    )
    wanted = [
        (clip["clip_id"], one.source, one.language, one.text)
        for clip in clips
        for one in captions.for_clip(told[clip["uri"]], clip["start_s"], clip["end_s"])
    ]
    ours = {clip["clip_id"] for clip in clips}
    columns = ("clip_id", "source", "language", "text")
    present = [
        row
        for row in catalog.query(
            f"SELECT {', '.join(columns)} FROM captions WHERE model IS NULL ORDER BY clip_id, rowid"
        )
        if row["clip_id"] in ours
    ]
    if [tuple(row.values()) for row in present] == wanted:
        return
    rows = {name: [row[i] for row in wanted] for i, name in enumerate(columns)}
    with catalog.transaction() as con:
        con.register("ours", pa.table({"clip_id": sorted(ours)}))
        con.register("told", pa.table(rows))
        con.execute("DELETE FROM captions WHERE model IS NULL AND clip_id IN (FROM ours)")
        if wanted:
            con.execute("INSERT INTO captions BY NAME FROM told")


def versions() -> dict[str, str]:
    """What the numbers depend on besides the configuration."""
    packages = (
        "wan-recipes",
        "av",
        "opencv-python-headless",
        "onnxruntime",
        "scenedetect-headless",
    )
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in (*packages, "duckdb")
    }


def close(catalog: Catalog, config: Curation, took_s: float) -> int:
    """Prints the closing table; returns the exit status."""
    facts = catalog.query(
        """SELECT (SELECT count(*) FROM videos) AS files,
        (SELECT count(*) FROM videos WHERE status = 'error') AS broken,
        count(*) AS clips, coalesce(sum(end_s - start_s), 0) AS seconds,
        count(*) FILTER (d.kept) AS kept,
        coalesce(sum(end_s - start_s) FILTER (d.kept), 0) AS kept_s
        FROM clips LEFT JOIN decisions d USING (clip_id)
        WHERE d.profile = $profile OR d.profile IS NULL""",
        {"profile": config.profile},
    )[0]
    dropped = catalog.query(
        "SELECT reason, count(*) AS n FROM decisions WHERE profile = $profile AND NOT kept "
        "GROUP BY reason ORDER BY n DESC, reason",
        {"profile": config.profile},
    )
    shards = catalog.query(
        "SELECT count(DISTINCT split || shard) AS shards, count(*) AS samples, "
        "coalesce(sum(bytes), 0) AS bytes FROM shards WHERE profile = $profile",
        {"profile": config.profile},
    )[0]
    rows = [
        ("files", f"{facts['files']}, of which {facts['broken']} could not be read"),
        ("clips", f"{facts['clips']}, {console.hours(facts['seconds'])}"),
        ("kept", f"{facts['kept']}, {console.hours(facts['kept_s'])} (profile {config.profile})"),
        *(("dropped" if i == 0 else "", f"{r['n']} {r['reason']}") for i, r in enumerate(dropped)),
        ("took", console.hours(took_s)),
        ("catalog", str(catalog.file)),
    ]
    if shards["samples"]:
        ending = "s" if shards["shards"] != 1 else ""
        written = f"{shards['samples']} samples in {shards['shards']} shard{ending}"
        where = catalog.folder / "shards" / config.profile
        rows.append(("shards", f"{where} ({written}, {console.size(shards['bytes'])})"))
    if "report" in config.steps:
        rows.append(("report", str(catalog.folder / "report.html")))
    console.table("Curated", rows)
    if any(row["reason"] == "require_caption" for row in dropped):
        console.say(
            "Clips without a caption are dropped: put name.txt or name.json beside name.mp4, or "
            "keep them with select.require_caption=false."
        )
    return 1 if facts["files"] and facts["broken"] == facts["files"] else 0


if __name__ == "__main__":
    sys.exit(main(Curation, curate))
