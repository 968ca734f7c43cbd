"""The catalog loses nothing, holds nothing twice, and lets others read."""

import os
import signal
import threading
from pathlib import Path

import duckdb
import numpy as np
import pytest

from curation import batch, schema, scorer
from curation.catalog import Catalog
from curation.scorer import Column
from recipes.load import UsageError
from tests import rows


@pytest.fixture(autouse=True)
def made_up_scorers(monkeypatch):
    monkeypatch.setattr(scorer, "REGISTRY", rows.registry())


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


def test_ctrl_c_during_a_query_is_ctrl_c(tmp_path):
    many = "range(12000)"  # for a second; DuckDB does not always look up before the end
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.batch("a"))
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            catalog.query(f"SELECT sum(hash(a.range + b.range)) FROM {many} a, {many} b")
        assert len(catalog.query("FROM videos")) == 1


def test_duckdb_s_word_for_ctrl_c_is_ctrl_c_and_no_other_error_is():
    with pytest.raises(KeyboardInterrupt), batch.interruptible():
        raise RuntimeError("Query interrupted")
    with pytest.raises(RuntimeError, match="full"), batch.interruptible():
        raise RuntimeError("full")


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


def test_reading_where_no_catalog_is_says_which_command_makes_one(tmp_path):
    catalog = Catalog(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"python curation/run\.py out="):
        catalog.query("FROM videos")
    assert catalog.known() == {}
    assert not (tmp_path / "nowhere").exists()
