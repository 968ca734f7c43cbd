"""The catalog's tables: every column's type and meaning, in one place.

The DDL, the comments inside the DuckDB file and the schema in data/README.md all come from here.
The columns of `basic`, `visual` and `motion` are what the registered scorers declare.
"""

from dataclasses import dataclass

import duckdb

from curation import scorer

SCHEMA = 1  # a catalog with a larger number was written by a later version of this code


@dataclass(frozen=True)
class Field:
    """One column: DuckDB's type, and what it means, with units."""

    type: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """One table. `key` is its primary key, where it has one."""

    meaning: str
    columns: dict[str, Field]
    key: tuple[str, ...] = ()


def _table(meaning: str, *columns: tuple[str, str, str], key: str = "") -> Table:
    fields = {name: Field(type, what) for name, type, what in columns}
    return Table(meaning, fields, tuple(key.split()))


CLIP = ("clip_id", "VARCHAR", "clips.clip_id")
VERSIONS = Field("MAP(VARCHAR, VARCHAR)", "scorer → its version when it wrote this row")
SCORES = {
    "basic": "step 1: fundamental dimensions, one row a clip",
    "visual": "step 2: visual quality, one row a clip",
    "motion": "step 3: motion, one row a clip; NULL for images",
}

TABLES: dict[str, Table] = {
    "meta": _table(
        "what the catalog says of itself",
        (
            "key",
            "VARCHAR",
            "schema: version of these tables; others: fingerprints of what was derived",
        ),
        ("value", "VARCHAR", "its value"),
        key="key",
    ),
    "videos": _table(
        "one row a source file, broken ones too",
        ("video_id", "VARCHAR", "first 16 hex digits of sha256(name, 0, sha256 of the content)"),
        ("uri", "VARCHAR", "absolute path or URL; archive.tar!member"),
        ("name", "VARCHAR", "path below the source's root, with /"),
        ("bytes", "BIGINT", "size of the file"),
        ("mtime_ns", "BIGINT", "time of last change, nanoseconds since 1970"),
        ("hash", "VARCHAR", "sha256 of the content, hex"),
        ("container", "VARCHAR", "as FFmpeg names it"),
        ("codec", "VARCHAR", "as FFmpeg names it"),
        ("pix_fmt", "VARCHAR", "as FFmpeg names it"),
        ("width", "INTEGER", "pixels, upright and square"),
        ("height", "INTEGER", "pixels, upright and square"),
        ("fps", "DOUBLE", "mean frame rate"),
        ("frames", "BIGINT", "frames that were decoded"),
        ("duration_s", "DOUBLE", "seconds"),
        ("rotation", "INTEGER", "degrees to turn the stored picture clockwise: 0, 90, 180, 270"),
        ("sar", "VARCHAR", "width:height of a stored pixel"),
        ("interlaced", "BOOLEAN", "stored as fields"),
        ("bit_depth", "INTEGER", "bits a component"),
        ("has_audio", "BOOLEAN", "there is an audio stream"),
        ("is_image", "BOOLEAN", "one frame: its motion is NULL"),
        ("decode_errors", "INTEGER", "packets that did not decode"),
        ("split", "VARCHAR", "version and options of the splitter that cut it into clips"),
        ("status", "VARCHAR", "ok or error"),
        ("error", "VARCHAR", "one line; NULL when ok"),
        key="video_id",
    ),
    "clips": _table(
        "one row a clip: a shot, or a window of a long one; an image is one frame",
        ("clip_id", "VARCHAR", "<video_id>-<start_frame>-<end_frame>, the same on every machine"),
        ("video_id", "VARCHAR", "videos.video_id"),
        ("start_frame", "BIGINT", "first frame, counted from 0"),
        ("end_frame", "BIGINT", "one past the last frame"),
        ("start_s", "DOUBLE", "seconds from the file's first frame"),
        ("end_s", "DOUBLE", "seconds, the last frame's own included; 0 for an image"),
        ("fps", "DOUBLE", "mean frame rate of the source"),
        ("width", "INTEGER", "source pixels, upright and square"),
        ("height", "INTEGER", "source pixels, upright and square"),
        ("crop_x", "INTEGER", "left edge of what remains without black borders, source pixels"),
        ("crop_y", "INTEGER", "top edge of it"),
        ("crop_w", "INTEGER", "width of it"),
        ("crop_h", "INTEGER", "height of it"),
        ("frames_16fps", "INTEGER", "frames after resampling to 16 fps"),
        (
            "length_4k1",
            "INTEGER",
            "the largest 4k+1 that fits into them: what a model can train on",
        ),
        ("bucket", "VARCHAR", "native bucket, e.g. 480p-81f-16x9"),
        ("bytes", "BIGINT", "bytes of the source's video stream that it takes"),
        key="clip_id",
    ),
    "embeddings": _table(
        "what clusters and duplicates are found in",
        CLIP,
        ("model", "VARCHAR", "what made the vector"),
        ("vector", "FLOAT[]", "unit length"),
    ),
    "clusters": _table(
        "the clip's cluster among the embeddings",
        CLIP,
        ("model", "VARCHAR", "embeddings.model"),
        ("cluster", "INTEGER", "number of the cluster, from 0"),
        ("distance", "DOUBLE", "to the cluster's centre; 0 is nearest"),
    ),
    "duplicates": _table(
        "pairs of near-duplicates, each pair once; of a clip with very many, the most similar",
        ("clip_id", "VARCHAR", "the lesser of the two: smaller, then with fewer bits a pixel"),
        ("duplicate_of", "VARCHAR", "the one preferred to it"),
        ("model", "VARCHAR", "embeddings.model"),
        ("similarity", "DOUBLE", "cosine, at least 0.9"),
    ),
    "captions": _table(
        "all captions of a clip",
        CLIP,
        ("source", "VARCHAR", "where it comes from"),
        ("model", "VARCHAR", "the captioner; NULL for a caption that came with the clip"),
        ("language", "VARCHAR", "en, zh, …"),
        ("text", "VARCHAR", "the caption"),
    ),
    "thumbnails": _table(
        "a picture for the report",
        CLIP,
        ("jpeg", "BLOB", "JPEG, about 160 pixels wide"),
        key="clip_id",
    ),
    "decisions": _table(
        "step 4: one row a clip and profile, the dropped ones too",
        ("profile", "VARCHAR", "which set of thresholds decided"),
        CLIP,
        ("kept", "BOOLEAN", "goes into the shards"),
        ("reason", "VARCHAR", "the first key of `select` that it failed; NULL when kept"),
        ("sampling_weight", "DOUBLE", "of its motion tier; 0 when dropped"),
        ("bucket", "VARCHAR", "capped at the profile's resolution"),
        ("split", "VARCHAR", "train or val, the same in every profile"),
    ),
    "shards": _table(
        "where each kept clip went",
        ("profile", "VARCHAR", "decisions.profile"),
        ("split", "VARCHAR", "train or val"),
        ("shard", "VARCHAR", "file name of the tar"),
        CLIP,
        ("key", "VARCHAR", "the sample's key in the tar"),
        ("bytes", "BIGINT", "of the sample's media file"),
        ("sha256", "VARCHAR", "of the sample's media file, hex"),
    ),
    "runs": _table(
        "one row a run",
        ("id", "VARCHAR", "start and a random part"),
        ("configuration", "VARCHAR", "the whole configuration, JSON"),
        ("versions", "VARCHAR", "of Python, packages and scorers, JSON"),
        ("start", "TIMESTAMP", "UTC"),
        ("end", "TIMESTAMP", "UTC; NULL while it runs, or when it was killed"),
        ("status", "VARCHAR", "running, or how it ended"),
        key="id",
    ),
}


def tables() -> dict[str, Table]:
    """All tables, those of the scores included, in the order in which they are documented.

    Two scorers (one for `scorers=light`, one for `full`) may declare the same column.

    Raises:
        ValueError: they declare it with different types.
    """
    scores = {name: {CLIP[0]: Field(*CLIP[1:])} for name in SCORES}
    for one in (one for one in scorer.REGISTRY.values() if one.step in SCORES):
        for name, column in one.columns.items():
            meaning = f"{column.meaning} ({column.unit})" if column.unit else column.meaning
            known = scores[one.step].setdefault(name, Field(column.type, meaning))
            if known.type != column.type:
                raise ValueError(
                    f"{one.step}.{name}: {known.type}, but {one.name} says {column.type}"
                )
    steps = {
        name: Table(SCORES[name], columns | {"versions": VERSIONS}, ("clip_id",))
        for name, columns in scores.items()
    }
    first = ("meta", "videos", "clips")
    return {name: TABLES[name] for name in first} | steps | TABLES


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A string as an SQL literal, for statements that take no parameters."""
    return "'" + value.replace("'", "''") + "'"


def migrate(con: duckdb.DuckDBPyConnection) -> None:
    """Makes what a catalog lacks: tables, columns, comments, the schema's number. Loses nothing."""
    rows = con.execute(
        "SELECT table_name, NULL, comment FROM duckdb_tables() WHERE NOT temporary UNION ALL "
        "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal"
    ).fetchall()
    there = {(table, column): comment for table, column, comment in rows}
    for name, table in tables().items():
        if (name, None) not in there:
            columns = [f"{quoted(c)} {field.type}" for c, field in table.columns.items()]
            if table.key:
                columns.append(f"PRIMARY KEY ({', '.join(map(quoted, table.key))})")
            con.execute(f"CREATE TABLE {quoted(name)} ({', '.join(columns)})")
        else:
            for column, field in table.columns.items():
                if (name, column) not in there:
                    con.execute(
                        f"ALTER TABLE {quoted(name)} ADD COLUMN {quoted(column)} {field.type}"
                    )
        if there.get((name, None)) != table.meaning:
            con.execute(f"COMMENT ON TABLE {quoted(name)} IS {text(table.meaning)}")
        for column, field in table.columns.items():
            if there.get((name, column)) != field.meaning:
                where = f"{quoted(name)}.{quoted(column)}"
                con.execute(f"COMMENT ON COLUMN {where} IS {text(field.meaning)}")
    con.execute("INSERT OR REPLACE INTO meta VALUES ('schema', ?)", [str(SCHEMA)])


def score_tables(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Score → the table that it stands in, as the catalog has them."""
    return dict(
        con.execute(
            "SELECT column_name, table_name FROM duckdb_columns() WHERE table_name IN "
            f"({', '.join(map(text, SCORES))}) AND column_name NOT IN ('clip_id', 'versions')"
        ).fetchall()
    )
