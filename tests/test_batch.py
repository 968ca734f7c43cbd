"""Batches wait for whoever has the catalog open, and a kill loses none and doubles none."""

import random
import shutil
import signal
import threading
import time

import pytest

from curation import scorer
from curation.catalog import Catalog
from recipes.load import UsageError
from tests import rows
from tests.rows import WRITER, notebook, python


@pytest.fixture(autouse=True)
def made_up_scorers(monkeypatch):
    monkeypatch.setattr(scorer, "REGISTRY", rows.registry())


def test_while_a_notebook_has_the_catalog_open_finished_clips_wait_and_none_is_lost(tmp_path):
    with Catalog(tmp_path / "direct") as direct:
        for name in "abcd":
            direct.write(rows.batch(name))
        direct.update({"basic": [{"clip_id": "b-00000000-00000100", "sharpness": 0.9}]})
        direct.write(rows.batch("a", clips=1))
        wanted = rows.content(direct)
    said = []
    with Catalog(tmp_path / "held", said.append) as catalog:
        catalog.write(rows.batch("a"))
        with notebook(catalog):
            for name in "bcd":
                catalog.write(rows.batch(name))
            catalog.update({"basic": [{"clip_id": "b-00000000-00000100", "sharpness": 0.9}]})
            catalog.write(rows.batch("a", clips=1))
            assert len(catalog.query("FROM videos")) == 1
            assert len(catalog.known()) == 4
            assert not catalog.flush(wait=False)
            assert len(said) == 1
            assert "held" in said[0]
            assert len(list((catalog.folder / "parts").iterdir())) == 5
        assert catalog.flush(wait=False)
        assert rows.content(catalog) == wanted
        assert not (catalog.folder / "parts").exists()


def test_a_later_write_brings_waiting_batches_in_before_its_own(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.batch("a"))
        with notebook(catalog):
            catalog.write(rows.batch("a", sharpness=0.1))
        catalog.write(rows.batch("a", sharpness=0.2))
        assert {row["sharpness"] for row in catalog.query("FROM basic")} == {0.2}


def test_flush_waits_for_the_notebook_and_says_so(tmp_path):
    said = []
    with Catalog(tmp_path, said.append) as catalog:
        catalog.write(rows.batch("a"))
        with notebook(catalog) as reader:
            catalog.write(rows.batch("b"))
            timer = threading.Timer(0.7, reader.kill)
            timer.start()
            assert catalog.flush(wait=True)
            timer.join()
        assert [line for line in said if line.startswith("waiting")]
        assert len(catalog.query("FROM videos")) == 2


def test_batches_left_by_a_killed_run_go_in_at_the_next(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.batch("video00000000000", 3))
    with notebook(catalog), python(WRITER, tmp_path, 4) as run:
        while run.stdout.readline().strip() != "3":
            assert run.poll() is None
        run.kill()
        run.wait()
        assert len(list((tmp_path / "parts").iterdir())) == 4  # the run's own row, and three videos
    with Catalog(tmp_path) as catalog:
        assert len(catalog.known()) == 4
        catalog.flush()
        assert len(catalog.query("FROM clips")) == 12
        assert [row["status"] for row in catalog.query("FROM runs")] == ["running"]


def test_a_batch_that_went_in_just_before_the_kill_is_not_there_twice(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.batch("a"))
        with notebook(catalog):
            catalog.write(rows.batch("b"))
            catalog.write(rows.batch("a", sharpness=0.1))
        shutil.copytree(tmp_path / "parts", tmp_path / "kept")
        catalog.flush()
        wanted = rows.content(catalog)
        for half in ("kept/.new", ".parts"):  # of a run that dies while it writes or removes them
            (tmp_path / half).mkdir()
            (tmp_path / half / "videos.parquet").write_bytes(b"PAR1")
        (tmp_path / "kept").rename(tmp_path / "parts")
        catalog.flush()
        assert rows.content(catalog) == wanted
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"catalog.duckdb", "catalog.lock"}


def test_a_batch_that_cannot_be_read_is_named(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.batch("a"))
        part = tmp_path / "parts" / "00000000-whole"
        part.mkdir(parents=True)
        (part / "videos.parquet").write_bytes(b"PAR1 no more")
        with pytest.raises(UsageError, match="00000000-whole"):
            catalog.flush()


@pytest.mark.parametrize(
    ("moment", "there"), [("before the transaction ends", 1), ("before the file is closed", 2)]
)
def test_a_kill_leaves_a_whole_batch_or_none_of_it(tmp_path, moment, there):
    code = """
import os, signal, sys
from curation import batch
from curation.catalog import Catalog
from tests import rows
rows.use()
catalog = Catalog(sys.argv[1])
catalog.write(rows.batch("a"))
put = batch.put
def die(con, kind, one):
    put(con, kind, one)
    if sys.argv[2] == "before the file is closed":
        con.commit()
    os.kill(os.getpid(), signal.SIGKILL)
batch.put = die
catalog.write(rows.batch("b"))
"""
    with python(code, tmp_path, moment) as run:
        assert run.wait() == -signal.SIGKILL
    with Catalog(tmp_path) as catalog:
        for table in ("videos", "clips", "basic", "embeddings", "thumbnails"):
            size = 1 if table == "videos" else 2
            assert len(catalog.query(f"FROM {table}")) == there * size
        catalog.write(rows.batch("b"))
        assert len(catalog.query("FROM clips")) == 4


@pytest.mark.parametrize("most", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_in_the_midst_of_writing_lose_nothing_and_repeat_nothing(tmp_path, most):
    count = 5 * most
    with Catalog(tmp_path / "calm") as calm:
        for i in range(count):
            calm.write(rows.batch(f"video{i:011d}", 3))
        wanted = rows.content(calm)
    chance = random.Random(7)
    folder, kills = tmp_path / "killed", 0
    while kills < most:
        with python(WRITER, folder, count) as run:
            run.stdout.readline()
            for _ in range(chance.randrange(5)):
                run.stdout.readline()
            time.sleep(chance.random() * 0.03)
            if run.poll() is not None:
                break
            run.send_signal(signal.SIGKILL)
            kills += 1
    with python(WRITER, folder, count) as run:
        assert run.wait() == 0
    with Catalog(folder) as catalog:
        assert rows.content(catalog) == wanted
        states = {row["status"] for row in catalog.query("FROM runs")}
        assert states == {"killed", "done"}
    assert kills > most / 2
