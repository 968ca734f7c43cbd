"""The catalog: one DuckDB file, OUT/catalog.duckdb, that the run writes and any DuckDB reads.

    duckdb data/curated/catalog.duckdb "SELECT reason, count(*) FROM decisions GROUP BY ALL"

DuckDB lets nobody in while one process has the file open for writing, and a reader keeps the writer
out. So nothing here stays open: each batch is one short transaction of its own. Where somebody else
has the file, finished batches wait under OUT/parts and go in, in order, once it is free.
"""

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from curation import batch
from curation.lock import Lock
from curation.schema import SCHEMA, SCORES, TABLES, migrate, quoted
from curation.scorer import Scorer
from recipes.load import UsageError

__all__ = ["TABLES", "Catalog"]

POLL_S = 0.2


class _HeldError(Exception):
    """Somebody else has the file open; the message says who."""


class Catalog:
    """The catalog of one output folder.

    Nothing is created or locked before the first write, so that a catalog can be read while
    another run writes it. The first write takes OUT/catalog.lock and keeps it until `close` (it is
    a context manager) or the end of the process.

    Args:
        folder: the output folder.
        say: told, in one line, when somebody keeps the file open.

    Every method raises UsageError where the file is not a catalog, belongs to a later version, is
    being written by another run, or can't be written.
    """

    def __init__(self, folder: str | Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder = Path(folder)
        self.file = self.folder / "catalog.duckdb"
        self._lock = Lock(self.folder / "catalog.lock")
        self._parts = batch.Parts(self.folder / "parts")
        self._say = say
        self._said = False
        self._migrated = False
        self._runs: dict[str, dict] = {}

    def __enter__(self) -> "Catalog":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Lets another run have the catalog. Batches that still wait stay under OUT/parts."""
        self._lock.release()

    def write(self, rows: dict[str, list[dict]]) -> None:
        """Everything known of some videos, in one transaction; what stood there before goes.

        A row in `videos` with the same video_id or the same uri is the same video; its clips,
        scores, captions and, where a clip does not come back, decisions and shards go with it.

        Args:
            rows: table → rows. A row of `clips` belongs to a row of `videos`, a row of another
                table to one of `clips`; a column left out is NULL, and so is a score that is NaN.
        """
        self._put("whole", batch.whole(rows))

    def update(self, rows: dict[str, list[dict]]) -> None:
        """Some columns of what is there: scores computed again, captions made later.

        Args:
            rows: table → rows. In `videos`, `clips` and the score tables the columns given are
                set and `versions` is merged; a scorer whose column another has now
                written loses its version. Embeddings and thumbnails of the clip are replaced, and
                the captions of the same source. Clips that are gone are passed over.
        """
        self._put("partial", batch.partial(rows))

    def replace(self, table: str, profile: str, rows: list[dict]) -> None:
        """All rows of one profile in `decisions` or `shards`; waits until the file is free."""
        if wrong := {row["profile"] for row in rows} - {profile}:
            raise ValueError(f"rows of {sorted(wrong)} among those of {profile}")
        new = batch.arrow(table, rows)
        with self.transaction() as con:
            con.register("new_rows", new)
            con.execute(f"DELETE FROM {quoted(table)} WHERE profile = ?", [profile])
            con.execute(f"INSERT INTO {quoted(table)} BY NAME SELECT * FROM new_rows")

    def start_run(self, configuration: dict, versions: dict) -> str:
        """A row in `runs`; one left at `running` by a run that died becomes `killed`. Its id."""
        start = datetime.now(UTC).replace(tzinfo=None)
        run = f"{start:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
        self._runs[run] = {
            "id": run,
            "configuration": json.dumps(configuration, sort_keys=True, ensure_ascii=False),
            "versions": json.dumps(versions, sort_keys=True, ensure_ascii=False),
            "start": start,
            "end": None,
            "status": "running",
        }
        self.write({"runs": [self._runs[run]]})
        return run

    def finish_run(self, run: str, status: str) -> None:
        """How that run ended: `done`, `failed`, `interrupted`."""
        self._runs[run] |= {"end": datetime.now(UTC).replace(tzinfo=None), "status": status}
        self.write({"runs": [self._runs[run]]})

    def flush(self, wait: bool = True) -> bool:
        """Brings in the batches that wait under OUT/parts.

        Args:
            wait: until the file is free, saying so.

        Returns:
            whether all are in.
        """
        if not self._parts.pending():
            return True
        try:
            with self._writing(wait):
                return True
        except _HeldError:
            return False

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection in one transaction, once the file is free and all batches are in."""
        with self._writing(wait=True) as con:
            yield con

    @contextmanager
    def reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection; it may make temporary tables. Waits while another writes."""
        if self._lock.taken:
            self.flush(wait=False)
        if not self.file.exists():
            command = f"python curation/run.py out={self.folder}"
            raise UsageError(f"{self.folder}: no catalog there; `{command}` makes one")
        with self._connected(wait=True, read_only=True) as con:
            yield con

    def query(self, sql: str, parameters: list | dict | None = None) -> list[dict]:
        """The rows of one SELECT, each as column → value."""
        with self.reading() as con:
            result = con.execute(sql, parameters)
            names = [column[0] for column in result.description]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def columns(self, sql: str, parameters: list | dict | None = None) -> dict:
        """The same as column → NumPy array, masked where there are NULLs; fast for millions."""
        with self.reading() as con:
            return con.execute(sql, parameters).fetchnumpy()

    def known(self) -> dict[str, tuple[int, int, str, str]]:
        """uri → (bytes, mtime_ns, video_id, status) of every file in the catalog or in a batch."""
        wanted = ["uri", "bytes", "mtime_ns", "video_id", "status"]
        # The waiting batches first: one that goes in between the two reads is then seen twice.
        waiting = list(self._parts.videos(wanted))
        rows = []
        if self.file.exists():
            with self.reading() as con:
                rows = con.execute(f"SELECT {', '.join(wanted)} FROM videos").fetchall()
        return {uri: tuple(rest) for uri, *rest in (*rows, *waiting)}

    def stale(self, scorers: list[Scorer]) -> dict[str, list[str]]:
        """video_id → names of the scorers that any of its clips lacks in their present version.

        `embeddings` and `thumbnails` keep no versions: there one is stale whose row is missing.
        """
        found: dict[str, set[str]] = {}
        with self.reading() as con:
            for step in SCORES:
                wanted = {one.name: one.version for one in scorers if one.step == step}
                entries = [{"key": name, "value": version} for name, version in wanted.items()]
                # A catalog holds few different version maps, so each is judged once.
                rows = con.execute(
                    f"SELECT s.versions, list(DISTINCT c.video_id) FROM clips c "
                    f"LEFT JOIN {step} s USING (clip_id) WHERE NOT coalesce(list_has_all("
                    "map_entries(s.versions), ?::STRUCT(key VARCHAR, value VARCHAR)[]), false) "
                    "GROUP BY ALL",
                    [entries],
                ).fetchall()
                for versions, videos in rows if wanted else ():
                    had = (versions or {}).items()
                    for video in videos:
                        found.setdefault(video, set()).update(dict(wanted.items() - had))
            for step in {one.step for one in scorers} - SCORES.keys():
                rows = con.execute(
                    f"SELECT DISTINCT video_id FROM clips ANTI JOIN {step} USING (clip_id)"
                )
                for (video,) in rows.fetchall():
                    found.setdefault(video, set()).update(o.name for o in scorers if o.step == step)
        return {video: sorted(names) for video, names in sorted(found.items())}

    def _put(self, kind: str, rows: batch.Batch) -> None:
        try:
            with self._writing(wait=False) as con:
                batch.put(con, kind, rows)
        except _HeldError as held:
            self._parts.keep(kind, rows)
            if not self._said:
                self._say(f"{held}: finished clips wait in {self._parts.folder}")
                self._said = True

    @contextmanager
    def _writing(self, wait: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        self._lock.take()
        if not self.file.exists():
            self._create()
        with self._connected(wait, read_only=False) as con:
            if not self._migrated:
                con.begin()
                migrate(con)
                con.commit()
                self._migrated = True
            self._parts.drain(con)
            con.begin()
            yield con
            con.commit()

    def _create(self) -> None:
        """A whole catalog or none: a run killed here must not leave half a file behind."""
        new = self.folder / ".catalog.new.duckdb"
        for left in (new, Path(f"{new}.wal"), Path(f"{self.file}.wal")):
            left.unlink(missing_ok=True)
        con = duckdb.connect(str(new))
        with batch.interruptible(), closing(con):
            con.begin()
            migrate(con)
            con.commit()
            con.execute("CHECKPOINT")  # closing would do it, and keep a full disk to itself
        new.rename(self.file)
        self._migrated = True

    @contextmanager
    def _connected(self, wait: bool, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        said = False
        while True:
            try:
                con = duckdb.connect(str(self.file), read_only=read_only)
                break
            except duckdb.Error as error:
                holder = _holder(error)
                if holder is None:
                    raise self._unusable(error) from None
                if not wait:
                    raise _HeldError(f"{self.file} is open in {holder}") from None
                if not said:
                    self._say(f"waiting: {self.file} is open in {holder}; close it there")
                    said = True
                time.sleep(POLL_S)
        try:
            with batch.interruptible():
                self._check(con)
                yield con
        except duckdb.Error as error:
            if "Corrupt database" in str(error):
                raise self._unusable(error) from None
            raise
        finally:
            con.close()

    def _check(self, con: duckdb.DuckDBPyConnection) -> None:
        try:
            rows = con.execute("SELECT value FROM meta WHERE key = 'schema'").fetchall()
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            raise self._unusable(error) from None
        if rows and int(rows[0][0]) > SCHEMA:
            raise UsageError(
                f"{self.file}: written by a later version (schema {rows[0][0]}, this one knows "
                f"{SCHEMA}); update, or choose another out="
            )

    def _unusable(self, error: duckdb.Error) -> UsageError:
        why = str(error).strip().splitlines()[0]
        advice = "move it away, or choose another out="
        return UsageError(f"{self.file}: not a catalog ({why}); {advice}")


def _holder(error: duckdb.Error) -> str | None:
    """Who has the file open, if that is what DuckDB 2.0 complains of."""
    message = str(error)
    if "different configuration" in message:
        return "this very process"
    if "Could not set lock" not in message:
        return None
    found = re.search(r"held in (.*) \(PID (\d+)\)", message)
    return f"{Path(found[1]).name} (process {found[2]})" if found else "another process"
