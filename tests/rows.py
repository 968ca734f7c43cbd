"""Rows of a catalog as a run writes them, for a small made-up set of scorers; other processes."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from curation import scorer
from curation.catalog import Catalog
from curation.scorer import Column, Scorer

ROOT = Path(__file__).parents[1]
# A notebook: it keeps the catalog open until it is told, or killed.
READER = """
import duckdb, sys
con = duckdb.connect(sys.argv[1], read_only=True)
print(con.execute("SELECT count(*) FROM videos").fetchall()[0][0], flush=True)
sys.stdin.readline()
"""
# A run of so many videos, three clips each.
WRITER = """
import sys
from curation.catalog import Catalog
from tests import rows
rows.use()
catalog = Catalog(sys.argv[1])
run = catalog.start_run({}, {})
print("started", flush=True)
done = {name for name in catalog.known()}
for i in range(int(sys.argv[2])):
    one = rows.batch(f"video{i:011d}", 3)
    if one["videos"][0]["uri"] not in done:
        catalog.write(one)
        print(i, flush=True)
catalog.flush()
catalog.finish_run(run, "done")
"""
DOUBLES = {
    "basic": "bits_per_pixel luma_mean sharpness text_area",
    "visual": "noise quality aesthetic",
    "motion": "flow_mean shake freeze",
}


def registry(version: str = "1") -> dict[str, Scorer]:
    """One scorer a step, and `expert`, which writes quality as well but belongs to another set."""

    def one(name: str, step: str, columns: dict, sets: tuple = ("light", "full")) -> Scorer:
        return Scorer(name, step, version, "made up", columns, sets, step == "motion", dict)

    found = {}
    for step, names in DOUBLES.items():
        columns = {name: Column("0–1", f"the {name}") for name in names.split()}
        if step == "basic":
            columns["border_box"] = Column("pixels", "what remains", "INTEGER[]")
        if step == "motion":
            columns["tier"] = Column("", "one of six", "VARCHAR")
        found[f"{step}_light"] = one(f"{step}_light", step, columns)
    found["expert"] = one("expert", "visual", {"quality": Column("0–1", "the quality")}, ("full",))
    return found


def use(version: str = "1") -> None:
    """Registers them in place of the real ones, in a process of their own."""
    scorer.REGISTRY.clear()
    scorer.REGISTRY.update(registry(version))


def batch(video: str, clips: int = 2, **scores) -> dict[str, list[dict]]:
    """All rows of one video; `scores` go to each clip."""
    ids = [f"{video}-{100 * i:08d}-{100 * (i + 1):08d}" for i in range(clips)]
    size = {"width": 1280, "height": 720, "crop_x": 0, "crop_y": 0, "crop_w": 1280, "crop_h": 720}
    rows = {
        "videos": [
            {
                "video_id": video,
                "uri": f"/videos/{video}.mp4",
                "name": f"{video}.mp4",
                "bytes": 1000,
                "mtime_ns": 7,
                "is_image": False,
                "status": "ok",
            }
        ],
        "clips": [
            {"clip_id": id, "video_id": video, "start_frame": 100 * i, "end_frame": 100 * (i + 1)}
            | {"start_s": 4.0 * i, "end_s": 4.0 * (i + 1), "fps": 25.0, "frames_16fps": 64}
            | {"length_4k1": 61, "bytes": 500}
            | size
            for i, id in enumerate(ids)
        ],
        "embeddings": [
            {"clip_id": id, "model": "made-up", "vector": vector(f"{id}")} for id in ids
        ],
        "captions": [
            {"clip_id": id, "source": "sidecar", "language": "en", "text": f"of {id}"} for id in ids
        ],
        "thumbnails": [{"clip_id": id, "jpeg": id.encode()} for id in ids],
    }
    for step, names in DOUBLES.items():
        columns = [*names.split(), "tier"] if step == "motion" else names.split()
        values = {"tier": "optimal"} | scores
        rows[step] = [
            {"clip_id": id, "versions": {f"{step}_light": "1"}}
            | {name: values.get(name, 0.5) for name in columns}
            for id in ids
        ]
    return rows


def vector(seed: str, size: int = 64) -> np.ndarray:
    """A unit vector that belongs to the name; those of two names are nearly orthogonal."""
    value = np.random.default_rng([*seed.encode()]).standard_normal(size)
    return (value / np.linalg.norm(value)).astype(np.float32)


def merged(*batches: dict) -> dict[str, list[dict]]:
    """Several videos as one batch."""
    return {name: [row for one in batches for row in one[name]] for name in batches[0]}


def content(catalog: Catalog, but: tuple[str, ...] = ("runs", "meta")) -> dict[str, list]:
    """Every row of every table, sorted."""
    found = {}
    for row in catalog.query("SELECT table_name AS t FROM duckdb_tables() ORDER BY ALL"):
        if row["t"] not in but:
            rows = catalog.query(f"FROM {row['t']}")
            found[row["t"]] = sorted(map(repr, rows))
    return found


@contextmanager
def python(code: str, *arguments):
    """Another process; it is gone at the end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def notebook(catalog: Catalog):
    """Somebody who keeps the catalog open for reading."""
    with python(READER, catalog.file) as process:
        assert process.stdout.readline().strip().isdigit()
        yield process
