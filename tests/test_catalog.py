"""The catalog loses nothing, holds nothing twice, and lets others read."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pytest

from curation import schema, scorer
from curation.catalog import Catalog
from curation.scorer import Column
from recipes.load import UsageError
from tests import rows

ROOT = Path(__file__).parents[1]
READER = """
import duckdb, sys
con = duckdb.connect(sys.argv[1], read_only=True)
print(con.execute("SELECT count(*) FROM videos").fetchall()[0][0], flush=True)
sys.stdin.readline()
"""
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


@pytest.fixture(autouse=True)
def made_up_scorers(monkeypatch):
    monkeypatch.setattr(scorer, "REGISTRY", rows.registry())


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


def test_a_batch_comes_back_as_it_was_written(tmp_path):
    one = rows.batch("a")
    one["basic"][0] |= {"sharpness": np.float32(0.25), "border_box": np.array([0, 90, 640, 180])}
    one["basic"][1] |= {"sharpness": float("nan")}
    with Catalog(tmp_path) as catalog:
        catalog.write(one)
        basic = catalog.query("FROM basic ORDER BY clip_id")
        assert basic[0]["sharpness"] == 0.25
        assert basic[0]["border_box"] == [0, 90, 640, 180]
        assert basic[0]["versions"] == {"basic_light": "1"}
        assert basic[1]["sharpness"] is None
        assert basic[1]["border_box"] is None
        (video,) = catalog.query("FROM videos")
        assert video["bytes"] == 1000
        assert video["error"] is None
        vectors = catalog.columns("SELECT vector FROM embeddings ORDER BY clip_id")["vector"]
        assert np.array_equal(vectors[0], one["embeddings"][0]["vector"])
        jpeg = catalog.query("SELECT jpeg FROM thumbnails ORDER BY clip_id")[1]["jpeg"]
        assert jpeg == one["thumbnails"][1]["jpeg"]
        assert catalog.known() == {"/videos/a.mp4": (1000, 7, "a", "ok")}


def test_a_batch_written_twice_is_there_once(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.merged(rows.batch("a"), rows.batch("b")))
        before = rows.content(catalog)
        catalog.write(rows.batch("b"))
        catalog.write(rows.merged(rows.batch("a"), rows.batch("b")))
        assert rows.content(catalog) == before
    assert len(before["clips"]) == 4


def test_a_file_that_changed_takes_all_of_its_old_rows_with_it(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.merged(rows.batch("old"), rows.batch("stays")))
        with catalog.transaction() as con:
            con.execute(
                "INSERT INTO decisions BY NAME SELECT '480p' AS profile, clip_id FROM clips"
            )
            con.execute("INSERT INTO shards BY NAME SELECT '480p' AS profile, clip_id FROM clips")
            con.execute("INSERT INTO clusters BY NAME SELECT clip_id FROM clips")
            con.execute(
                "INSERT INTO duplicates BY NAME SELECT a.clip_id, b.clip_id AS duplicate_of "
                "FROM clips a JOIN clips b ON a.clip_id > b.clip_id"
            )
        new = rows.batch("new", clips=1)
        new["videos"][0]["uri"] = "/videos/old.mp4"
        catalog.write(new)
        for table in schema.tables().keys() - {"meta", "runs", "videos"}:
            found = catalog.query(f"SELECT clip_id FROM {table}")
            assert not [row for row in found if row["clip_id"].startswith("old")], table
            assert [row for row in found if row["clip_id"].startswith("stays")], table
        assert [row["video_id"] for row in catalog.query("FROM videos ORDER BY 1")] == [
            "new",
            "stays",
        ]


def test_clips_that_come_back_keep_their_decisions_and_lost_ones_do_not(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.batch("a", clips=3))
        with catalog.transaction() as con:
            con.execute(
                "INSERT INTO decisions BY NAME SELECT '480p' AS profile, clip_id FROM clips"
            )
        catalog.write(rows.batch("a", clips=2))
        assert len(catalog.query("FROM decisions")) == 2
        catalog.write(
            {"videos": [rows.batch("a")["videos"][0] | {"status": "error", "error": "x"}]}
        )
        assert catalog.query("FROM decisions") == catalog.query("FROM clips") == []


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"clips": [{"clip_id": "x", "video_id": "elsewhere"}]}, "elsewhere"),
        ({"basic": [{"clip_id": "elsewhere", "sharpness": 1.0}]}, "elsewhere"),
        ({"basic": [{"clip_id": "a-00000000-00000100", "sharpnes": 1.0}]}, "sharpnes"),
        ({"besic": [{"clip_id": "a-00000000-00000100"}]}, "besic"),
    ],
)
def test_rows_that_belong_nowhere_are_refused_before_anything_is_written(tmp_path, fault, told):
    with Catalog(tmp_path) as catalog:
        with pytest.raises(ValueError, match=told):
            catalog.write(rows.batch("a") | fault)
        assert not catalog.file.exists()


def test_every_table_and_column_says_in_the_file_what_it_means(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.start_run({}, {})
        found = catalog.query("SELECT comment FROM duckdb_tables()")
        found += catalog.query("SELECT comment FROM duckdb_columns() WHERE NOT internal")
    assert len(found) > 100
    assert all(row["comment"] for row in found)
    page = schema.document()
    for name, table in schema.tables().items():
        assert f"### `{name}`" in page
        assert all(f"| `{column}`" in page for column in table.columns)


def test_two_scorers_share_a_column_only_if_its_type_is_the_same(monkeypatch):
    both = scorer.REGISTRY
    assert list(schema.tables()["visual"].columns).count("quality") == 1
    wrong = {"quality": Column("", "", "VARCHAR")}
    other = scorer.Scorer("other", "visual", "1", "", wrong, ("full",), False, dict)
    monkeypatch.setattr(scorer, "REGISTRY", both | {"other": other})
    with pytest.raises(ValueError, match=r"visual\.quality"):
        schema.tables()


def test_stale_names_exactly_the_scorers_whose_version_moved(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.merged(rows.batch("a"), rows.batch("b")))
        light = [one for one in rows.registry().values() if "light" in one.sets]
        assert catalog.stale(light) == {}
        newer = [*light[:1], *list(rows.registry("2").values())[1:2]]
        assert catalog.stale(newer) == {"a": ["visual_light"], "b": ["visual_light"]}
        with catalog.transaction() as con:
            con.execute("DELETE FROM motion WHERE clip_id = 'b-00000000-00000100'")
        assert catalog.stale(light) == {"b": ["motion_light"]}


def test_an_update_sets_its_own_columns_and_merges_versions(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.merged(rows.batch("a"), rows.batch("b")))
        clip = "a-00000000-00000100"
        new = {"clip_id": clip, "sharpness": 0.9, "versions": {"basic_light": "2", "zoom": "1"}}
        catalog.update(
            {
                "basic": [new],
                "clips": [{"clip_id": clip, "crop_w": 100}],
                "captions": [{"clip_id": clip, "source": "model", "text": "new"}],
                "embeddings": [{"clip_id": clip, "model": "other", "vector": [1.0, 0.0]}],
            }
        )
        (row,) = catalog.query("FROM basic WHERE clip_id = ?", [clip])
        assert row["sharpness"] == 0.9
        assert row["luma_mean"] == 0.5
        assert row["versions"] == {"basic_light": "2", "zoom": "1"}
        assert catalog.query("SELECT crop_w, crop_h FROM clips WHERE clip_id = ?", [clip]) == [
            {"crop_w": 100, "crop_h": 720}
        ]
        texts = catalog.query("SELECT source FROM captions WHERE clip_id = ? ORDER BY 1", [clip])
        assert texts == [{"source": "model"}, {"source": "sidecar"}]
        models = catalog.query("SELECT model FROM embeddings WHERE clip_id = ?", [clip])
        assert models == [{"model": "other"}]
        assert len(catalog.query("FROM basic WHERE sharpness = 0.5")) == 3
        catalog.update({"basic": [{"clip_id": "gone", "sharpness": 1.0}]})
        assert catalog.query("FROM basic WHERE clip_id = 'gone'") == []


def test_the_scorer_that_wrote_a_shared_column_last_is_the_one_that_is_named(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.batch("a", clips=1))
        clip = "a-00000000-00000100"
        catalog.update({"visual": [{"clip_id": clip, "quality": 0.7, "versions": {"expert": "1"}}]})
        assert catalog.query("SELECT quality, versions FROM visual") == [
            {"quality": 0.7, "versions": {"expert": "1"}}
        ]
        light = [one for one in rows.registry().values() if "light" in one.sets]
        assert catalog.stale(light) == {"a": ["visual_light"]}


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


@pytest.mark.parametrize("most", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_in_the_midst_of_writing_lose_nothing_and_repeat_nothing(tmp_path, most):
    count = 6 * most
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


def test_a_catalog_of_an_older_schema_gets_what_it_lacks_and_keeps_what_it_has(tmp_path):
    with duckdb.connect(str(tmp_path / "catalog.duckdb")) as con:
        con.execute("CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR)")
        con.execute("INSERT INTO meta VALUES ('schema', '0')")
        con.execute("CREATE TABLE videos (video_id VARCHAR PRIMARY KEY, uri VARCHAR)")
        con.execute("INSERT INTO videos VALUES ('old', '/videos/old.mp4')")
        con.execute(
            "CREATE TABLE basic (clip_id VARCHAR PRIMARY KEY, sharpness DOUBLE, retired DOUBLE, "
            "versions MAP(VARCHAR, VARCHAR))"
        )
        con.execute("INSERT INTO basic VALUES ('c', 0.3, 0.1, MAP {'sharpness': '0'})")
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.batch("new"))
        (old,) = catalog.query("FROM basic WHERE clip_id = 'c'")
        assert old["sharpness"] == 0.3
        assert old["retired"] == 0.1
        assert old["text_area"] is None
        assert len(catalog.query("FROM basic")) == 3
        assert catalog.query("SELECT value FROM meta") == [{"value": str(schema.SCHEMA)}]


def test_a_new_scorer_gets_its_column_in_a_catalog_that_exists(tmp_path, monkeypatch):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.batch("a"))
    columns = {"grain": Column("0–1", "film grain")}
    grain = scorer.Scorer("grain", "visual", "1", "", columns, ("light",), False, dict)
    monkeypatch.setattr(scorer, "REGISTRY", scorer.REGISTRY | {"grain": grain})
    with Catalog(tmp_path) as catalog:
        assert catalog.stale([grain]) == {"a": ["grain"]}
        clip = "a-00000000-00000100"
        catalog.update({"visual": [{"clip_id": clip, "grain": 0.4, "versions": {"grain": "1"}}]})
        (row,) = catalog.query("SELECT grain, noise, versions FROM visual WHERE grain IS NOT NULL")
        assert row == {
            "grain": 0.4,
            "noise": 0.5,
            "versions": {"grain": "1", "visual_light": "1"},
        }


def spoiled(kind: str, file: Path) -> None:
    """Something else in the catalog's place."""
    if kind == "garbage":
        file.write_bytes(b"This is not a database. " * 1000)
    elif kind == "empty":
        file.touch()
    elif kind == "folder":
        file.mkdir()
    elif kind == "another database":
        with duckdb.connect(str(file)) as con:
            con.execute("CREATE TABLE shops (name VARCHAR)")
    else:
        with Catalog(file.parent) as catalog:
            catalog.write(rows.batch("a"))
            if kind == "a later version":
                with catalog.transaction() as con:
                    con.execute("UPDATE meta SET value = '999' WHERE key = 'schema'")
        if kind == "cut off":
            os.truncate(file, 5000)
        if kind == "overwritten":
            with file.open("r+b") as open_file:
                open_file.seek(8000)
                open_file.write(b"x" * 200_000)


@pytest.mark.parametrize(
    "kind",
    [
        "garbage",
        "empty",
        "folder",
        "another database",
        "a later version",
        "cut off",
        "overwritten",
    ],
)
def test_what_is_no_catalog_is_refused_in_one_line_and_left_alone(tmp_path, kind):
    file = tmp_path / "catalog.duckdb"
    spoiled(kind, file)
    before = file.stat().st_size
    for attempt in (
        lambda catalog: catalog.query("FROM videos"),
        lambda catalog: catalog.write(rows.batch("a")),
    ):
        with Catalog(tmp_path) as catalog, pytest.raises(UsageError) as refused:
            attempt(catalog)
        assert str(file) in str(refused.value)
        assert "\n" not in str(refused.value)
    assert file.stat().st_size == before


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
if os.getuid() == 0:  # root may write anywhere
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
catalog = Catalog(sys.argv[1])
print(len(catalog.query("FROM clips")))
try:
    catalog.write(rows.batch("b"))
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


def test_reading_where_no_catalog_is_says_which_command_makes_one(tmp_path):
    catalog = Catalog(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"python curation/run\.py out="):
        catalog.query("FROM videos")
    assert catalog.known() == {}
    assert not (tmp_path / "nowhere").exists()


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
