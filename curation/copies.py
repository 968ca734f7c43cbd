"""The tables `duplicates` and `clusters`: what the embeddings say of the clips to one another."""

import duckdb
import pyarrow as pa

from curation import batch, neighbours
from curation.catalog import Catalog
from curation.schema import score_tables

SIMILARITY = 0.9  # cosine from which a pair stands in `duplicates`
# The order in which copies are preferred, whatever a profile asks for.
PREFERRED = "crop_w::BIGINT * crop_h DESC NULLS LAST, bits_per_pixel DESC NULLS LAST, clip_id"


def refresh(catalog: Catalog) -> None:
    """Fills both tables again, if the embeddings, the preference or the method have changed.

    A row of `meta` keeps the fingerprint of what they were made from. It leaves out the vectors
    themselves (hashing a million takes longer than all else here): whoever writes some through
    `Catalog` takes that row away.
    """
    with catalog.reading() as con:
        bits_per_pixel = "bits_per_pixel" if "bits_per_pixel" in score_tables(con) else "NULL"
        con.execute(
            "CREATE TEMP VIEW vectors AS SELECT clip_id, model, vector, crop_w, crop_h, "
            f"{bits_per_pixel} AS bits_per_pixel FROM embeddings JOIN clips USING (clip_id) "
            "LEFT JOIN basic USING (clip_id)"
        )
        ((state,),) = con.execute(
            "SELECT count(*) || ' ' || coalesce(sum(hash(clip_id, model, crop_w, crop_h, "
            "bits_per_pixel)), 0) FROM vectors"
        ).fetchall()
        fingerprint = f"{neighbours.VERSION} {SIMILARITY} {state}"
        was = con.execute("SELECT value FROM meta WHERE key = 'neighbours'").fetchall()
        if was == [(fingerprint,)]:
            return
        models = con.execute("SELECT DISTINCT model FROM vectors ORDER BY ALL").fetchall()
        new = [_among(con, model) for (model,) in models]
    with catalog.transaction() as con:
        for table in ("duplicates", "clusters"):
            con.execute(f"DELETE FROM {table}")
            for found in new:
                con.register("found", found[table])
                con.execute(f"INSERT INTO {table} BY NAME FROM found")
        con.execute("INSERT OR REPLACE INTO meta VALUES ('neighbours', ?)", [fingerprint])


def _among(con: duckdb.DuckDBPyConnection, model: str) -> dict[str, pa.Table]:
    """Rows of both tables among the vectors that one model made."""
    rows = con.sql(
        f"SELECT clip_id, vector FROM vectors WHERE model = ? ORDER BY {PREFERRED}", params=[model]
    ).to_arrow_table()
    ids = rows["clip_id"].to_pylist()
    vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(ids), -1)
    clusters, distances = neighbours.clusters(vectors, ids)
    pairs = [
        {"clip_id": worse, "duplicate_of": better, "model": model, "similarity": similarity}
        for worse, better, similarity in neighbours.pairs(vectors, ids, SIMILARITY)
    ]
    of_clips = {"clip_id": ids, "model": [model] * len(ids)}
    return {
        "duplicates": batch.arrow("duplicates", pairs),
        "clusters": pa.table(of_clips | {"cluster": clusters, "distance": distances}),
    }
