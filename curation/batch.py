"""A batch of rows: checked, as Arrow, into the catalog, or waiting on disk as Parquet.

A batch waits as one folder, OUT/parts/<number>-<kind>/<table>.parquet, written under another name
and renamed whole. Putting one in twice is the same as once, so a run may die at any point.
"""

import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from curation import scorer
from curation.schema import SCORES, quoted, tables, text
from recipes.load import UsageError

# Rows of these go with their video.
PER_CLIP = ("clips", *SCORES, "embeddings", "captions", "thumbnails")
# An update replaces rows of these where the named columns are equal; in the others it sets columns.
REPLACED = {"embeddings": "clip_id", "captions": "clip_id, source", "thumbnails": "clip_id"}

Batch = dict[str, pa.Table]


def whole(rows: dict[str, list[dict]]) -> Batch:
    """Everything known of some videos (and rows of `runs`).

    Raises:
        ValueError: an unknown table or column, or a row whose video or clip is not in the batch.
    """
    rows = {name: some for name, some in rows.items() if some}
    if wrong := rows.keys() - {"videos", "runs", *PER_CLIP}:
        raise ValueError(f"{sorted(wrong)} are not tables of a batch")
    owners = {"clips": {row["video_id"] for row in rows.get("videos", ())}}
    clips = {row["clip_id"] for row in rows.get("clips", ())}
    for name in (name for name in PER_CLIP if name in rows):
        owner = "video_id" if name == "clips" else "clip_id"
        if stray := {row[owner] for row in rows[name]} - owners.get(name, clips):
            raise ValueError(f"{name}: {owner} {min(stray)} is not in the batch")
    return {name: arrow(name, some) for name, some in rows.items()}


def partial(rows: dict[str, list[dict]]) -> Batch:
    """Some columns of videos and clips that are in the catalog.

    Raises:
        ValueError: an unknown table or column, or rows of one table with different columns.
    """
    rows = {name: some for name, some in rows.items() if some}
    if wrong := rows.keys() - {"videos", *PER_CLIP}:
        raise ValueError(f"{sorted(wrong)} are not tables of a batch")
    return {name: arrow(name, some, all_columns=name in REPLACED) for name, some in rows.items()}


def arrow(name: str, rows: list[dict], all_columns: bool = True) -> pa.Table:
    """Rows of one table. NaN becomes NULL; of rows with the same primary key the last counts.

    Args:
        all_columns: a column that a row lacks is NULL. Else all rows must have the same columns.
    """
    table = tables()[name]
    given = set().union(*rows)
    if unknown := given - table.columns.keys():
        raise ValueError(f"{name} has no column {sorted(unknown)}")
    if not all_columns and any(row.keys() != given for row in rows):
        raise ValueError(f"{name}: rows of one update have different columns")
    if table.key:
        rows = list({tuple(row[key] for key in table.key): row for row in rows}.values())
    columns = {}
    for column, field in table.columns.items():
        if column in given or all_columns:
            values = [row.get(column) for row in rows]
            if field.type.startswith("MAP"):
                values = [value and sorted(value.items()) for value in values]
            kind = _arrow_type(field.type)
            columns[column] = pa.array(values, kind, from_pandas=field.type in ("DOUBLE", "FLOAT"))
    return pa.table(columns)


@functools.cache
def _arrow_type(duckdb_type: str) -> pa.DataType:
    with interruptible():
        empty = duckdb.sql(f"SELECT NULL::{duckdb_type} AS x").to_arrow_table()
    return empty.schema.field(0).type


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C during a query, which DuckDB turns into an error of its own, is Ctrl-C again."""
    try:
        yield
    except RuntimeError as error:
        if str(error) == "Query interrupted":
            raise KeyboardInterrupt from None
        raise


def put(con: duckdb.DuckDBPyConnection, kind: str, batch: Batch) -> None:
    """Into the catalog. `kind` is `whole` or `partial`; the caller has begun a transaction."""
    for name, table in batch.items():
        con.register(f"new_{name}", table)
    {"whole": _put_whole, "partial": _put_partial}[kind](con, batch)
    if "embeddings" in batch:
        con.execute("DELETE FROM meta WHERE key = 'neighbours'")  # see curation.copies
    for name in batch:
        con.unregister(f"new_{name}")


def _put_whole(con: duckdb.DuckDBPyConnection, batch: Batch) -> None:
    if "videos" in batch:
        con.execute(
            "CREATE OR REPLACE TEMP TABLE gone_videos AS SELECT video_id FROM videos WHERE "
            "video_id IN (SELECT video_id FROM new_videos) OR uri IN (SELECT uri FROM new_videos)"
        )
        con.execute(
            "CREATE OR REPLACE TEMP TABLE gone AS SELECT clip_id FROM clips "
            "WHERE video_id IN (SELECT video_id FROM gone_videos)"
        )
        if con.execute("FROM gone_videos LIMIT 1").fetchall():
            gone = "IN (SELECT clip_id FROM gone)"
            for name in (*PER_CLIP, "clusters"):
                con.execute(f"DELETE FROM {name} WHERE clip_id {gone}")
            con.execute(f"DELETE FROM duplicates WHERE clip_id {gone} OR duplicate_of {gone}")
            con.execute("DELETE FROM videos WHERE video_id IN (SELECT video_id FROM gone_videos)")
            if "clips" in batch:  # what came back keeps its place until the next selection
                con.execute("DELETE FROM gone WHERE clip_id IN (SELECT clip_id FROM new_clips)")
            for name in ("decisions", "shards"):
                con.execute(f"DELETE FROM {name} WHERE clip_id {gone}")
    if "runs" in batch:
        con.execute("DELETE FROM runs WHERE id IN (SELECT id FROM new_runs)")
        # whoever writes holds the lock, so a run that still says so has died
        con.execute("UPDATE runs SET status = 'killed' WHERE status = 'running'")
    for name in batch:
        con.execute(f"INSERT INTO {name} BY NAME SELECT * FROM new_{name}")


def _put_partial(con: duckdb.DuckDBPyConnection, batch: Batch) -> None:
    for name, table in batch.items():
        owner = "videos" if name == "videos" else "clips"
        key = tables()[owner].key[0]
        there = f"SELECT * FROM new_{name} WHERE {key} IN (SELECT {key} FROM {owner})"
        if name in REPLACED:
            same = REPLACED[name]
            con.execute(f"DELETE FROM {name} WHERE ({same}) IN (SELECT ({same}) FROM new_{name})")
            con.execute(f"INSERT INTO {name} BY NAME {there}")
            continue
        sets = [f"{quoted(c)} = excluded.{quoted(c)}" for c in table.column_names if c != key]
        if "versions" in table.column_names:
            # Two scorers may write one column; only the one that wrote last keeps its version.
            lost = ", ".join(map(text, ["", *_overwritten(name, table)]))
            old = f"list_filter(map_entries({name}.versions), lambda e: e.key NOT IN ({lost}))"
            merged = f"map_entries(map_concat(map_from_entries({old}), excluded.versions))"
            sets.append(f"versions = map_from_entries(list_sort({merged}))")
            sets.remove('"versions" = excluded."versions"')
        con.execute(
            f"INSERT INTO {name} BY NAME {there} "
            f"ON CONFLICT ({key}) DO UPDATE SET {', '.join(sets)}"
        )


def _overwritten(step: str, table: pa.Table) -> list[str]:
    """Registered scorers of the step that did not run, but whose columns the table sets."""
    ran = {name for versions in table["versions"].to_pylist() for name, _ in versions or ()}
    columns = set(table.column_names)
    return sorted(
        one.name
        for one in scorer.REGISTRY.values()
        if one.step == step and one.name not in ran and columns & one.columns.keys()
    )


class Parts:
    """Batches that wait for the catalog to be free, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pending(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(part for part in self.folder.iterdir() if part.name[0] != ".")

    def keep(self, kind: str, batch: Batch) -> None:
        """One more, whole or not at all."""
        pending = self.pending()
        number = int(pending[-1].name.split("-")[0]) + 1 if pending else 0
        new = self.folder / ".new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for name, table in batch.items():
            with open(new / f"{name}.parquet", "wb") as file:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
        new.rename(self.folder / f"{number:08d}-{kind}")

    def drain(self, con: duckdb.DuckDBPyConnection) -> None:
        """Puts all in, in order, each in a transaction of its own, and removes them."""
        if not self.folder.is_dir():
            return
        for part in self.pending():
            batch = dict(self._read(part))
            con.begin()
            put(con, part.name.split("-")[1], batch)
            con.commit()
        # First by name: a run that dies while it removes them must leave no half batch behind.
        old = self.folder.with_name(".parts")
        shutil.rmtree(old, ignore_errors=True)
        self.folder.rename(old)
        shutil.rmtree(old)

    def videos(self, columns: list[str]) -> Iterator[tuple]:
        """Those columns of the videos that wait, oldest first."""
        for part in self.pending():
            if not (part / "videos.parquet").exists():
                continue
            try:
                table = pq.read_table(part / "videos.parquet", columns=columns)
            except FileNotFoundError:
                continue  # the run that we look on at has just brought it in
            yield from (tuple(row[name] for name in columns) for row in table.to_pylist())

    @staticmethod
    def _read(part: Path) -> Iterator[tuple[str, pa.Table]]:
        for file in sorted(part.glob("*.parquet")):
            try:
                yield file.stem, pq.read_table(file)
            except (OSError, pa.ArrowInvalid) as error:
                raise UsageError(
                    f"{part}: a batch of clips that can't be read ({str(error).splitlines()[0]}); "
                    "remove it, and its files are analysed again"
                ) from None
