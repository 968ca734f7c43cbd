"""Runs `python curation/run.py` as a person does, or its function, and reads what it leaves."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import duckdb

from curation import engine, run
from recipes.load import UsageError, main
from recipes.schema import Curation

ROOT = Path(__file__).resolve().parents[1]
TINY = ("profile=tiny", "skip=text_area,nsfw", "select.require_caption=false", "workers=2")


def command(*keys: str) -> list[str]:
    return [sys.executable, "curation/run.py", *map(str, keys)]


def curate(*keys: str, timeout: float = 300) -> subprocess.CompletedProcess:
    """One run to its end."""
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(
        command(*keys),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def curated(*keys: str) -> int:
    """One run in this process, its workers' jobs too, which spares all start-up; the exit status.

    `curate` and `started` are for what only processes can show.
    """
    with patch.object(engine, "run", alone):
        return main(Curation, run.curate, [*map(str, keys)])


def alone(function, jobs, *, setup=None, **of_workers) -> Iterator[engine.Event]:
    """`curation.engine.run` with this process as its only worker. What would go through a pipe is
    pickled here too."""
    if setup:
        setup()
    for job in jobs:
        error = None
        try:
            for value in function(pickle.loads(pickle.dumps(job))):
                yield engine.Event(job, value=pickle.loads(pickle.dumps(value)))
        except UsageError:
            raise
        except Exception as failure:
            error = engine.one_line(failure)
        yield engine.Event(job, error=error, done=True)


def started(*keys: str) -> subprocess.Popen:
    """A run under way, in a process group of its own."""
    return subprocess.Popen(
        command(*keys),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # tests that run in the background were told to ignore Ctrl-C, and would hand that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def tables(out: Path) -> dict[str, list]:
    """Every table's rows in a fixed order, run times left out."""
    with duckdb.connect(str(out / "catalog.duckdb"), read_only=True) as con:
        names = [row[0] for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        return {
            name: sorted(map(repr, con.execute(f'SELECT * FROM "{name}"').fetchall()))
            for name in sorted(names)
            if name != "runs"
        }


def query(out: Path, sql: str) -> list[tuple]:
    with duckdb.connect(str(out / "catalog.duckdb"), read_only=True) as con:
        return con.execute(sql).fetchall()


def shards(out: Path) -> dict[str, str]:
    """Every file under shards/ and its checksum."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((out / "shards").rglob("*"))
        if path.is_file()
    }
