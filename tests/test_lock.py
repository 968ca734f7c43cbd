"""Two runs on one catalog are told apart, and a dead one is no obstacle."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from curation import scorer
from curation.catalog import Catalog
from recipes.load import UsageError
from tests import rows
from tests.rows import WRITER, python

ROOT = rows.ROOT


@pytest.fixture(autouse=True)
def made_up_scorers(monkeypatch):
    monkeypatch.setattr(scorer, "REGISTRY", rows.registry())


def test_a_run_killed_while_it_makes_the_catalog_is_no_obstacle(tmp_path):
    (tmp_path / ".catalog.new.duckdb").write_bytes(b"half")
    (tmp_path / "catalog.duckdb.wal").write_bytes(b"of a catalog that somebody removed")
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.batch("a"))
        assert len(catalog.query("FROM clips")) == 2


def test_a_second_run_on_the_same_catalog_is_refused_until_the_first_is_gone(tmp_path):
    with python(WRITER, tmp_path, 10**6) as run:
        assert run.stdout.readline().strip() == "started"
        second = Catalog(tmp_path)
        with pytest.raises(UsageError, match=f"process {run.pid}") as refused:
            second.start_run({}, {})
        assert "\n" not in str(refused.value)
        assert isinstance(second.known(), dict)  # looking on is allowed
        run.send_signal(signal.SIGKILL)
        run.wait()
        second.start_run({}, {})
        assert "killed" in {row["status"] for row in second.query("FROM runs")}
        second.close()


def test_a_worker_that_outlives_its_killed_run_does_not_keep_the_lock(tmp_path):
    code = """
import os, sys, time
from curation.catalog import Catalog
from tests import rows
rows.use()
catalog = Catalog(sys.argv[1])
catalog.start_run({}, {})
worker = os.fork()
if not worker:
    print(os.getpid(), flush=True)
time.sleep(60)
"""
    with python(code, tmp_path) as run:
        worker = int(run.stdout.readline())
        try:
            run.kill()
            run.wait()
            os.kill(worker, 0)  # it lives
            with Catalog(tmp_path) as second:
                second.start_run({}, {})
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"can't be written"):
        Catalog(tmp_path / "file").start_run({}, {})
    with pytest.raises(UsageError, match=r"can't be written"):
        Catalog(tmp_path / "file" / "below").start_run({}, {})


def test_a_read_only_folder_is_refused_for_writing_and_fine_for_reading():
    code = """
import os, sys
from curation.catalog import Catalog
from recipes.load import UsageError
from tests import rows
rows.use()
batch = rows.batch("b")  # before, since who is nobody may not see the environment's packages
if os.getuid() == 0:  # root may write anywhere
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
catalog = Catalog(sys.argv[1])
print(len(catalog.query("FROM clips")))
try:
    catalog.write(batch)
except UsageError as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is root's alone, if root runs this
        with Catalog(folder) as catalog:
            catalog.write(rows.batch("a"))
        for path in Path(folder).iterdir():
            path.chmod(0o444)
        Path(folder).chmod(0o555)
        command = [sys.executable, "-c", code, folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        Path(folder).chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "2"
    assert "can't be written" in done.stdout.splitlines()[1]


def test_runs_are_kept_with_their_configuration_and_how_they_ended(tmp_path):
    with Catalog(tmp_path) as catalog:
        first = catalog.start_run({"source": "影片", "n": 1}, {"duckdb": "2"})
        second = catalog.start_run({}, {})
        catalog.finish_run(second, "done")
        found = {row["id"]: row for row in catalog.query("FROM runs")}
        assert found[first]["status"] == "killed"
        assert found[first]["configuration"] == '{"n": 1, "source": "影片"}'
        assert found[second]["status"] == "done"
        assert found[second]["end"] >= found[second]["start"]
