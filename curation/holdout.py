"""Which sources are held out for validation."""

import duckdb
import pyarrow as pa

from recipes.load import UsageError


def divide(con: duckdb.DuckDBPyConnection, share: float) -> None:
    """Makes the temporary table `splits` (video_id, split), a row for each video with clips.

    Videos with near-duplicate clips, directly or through other videos, are one group, and a whole
    group goes to one side, by hash: no source and no copy stands on both. At least one group goes
    to val and at least one to train; a lone one is train. What a profile keeps plays no part.

    Args:
        share: of the groups, for val; 0 holds out none.

    Raises:
        UsageError: the share is none.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"select.val_share={share}: a share lies between 0 and 1")
    links = con.execute(
        "SELECT DISTINCT a.video_id, b.video_id FROM duplicates d "
        "JOIN clips a ON a.clip_id = d.clip_id JOIN clips b ON b.clip_id = d.duplicate_of "
        "WHERE a.video_id != b.video_id"
    ).fetchall()
    first = groups(links)
    con.register(
        "linked",
        pa.table(
            {
                "video_id": pa.array(first.keys(), pa.string()),
                "first": pa.array(first.values(), pa.string()),
            }
        ),
    )
    con.execute(
        """
        CREATE OR REPLACE TEMP TABLE splits AS
        WITH videos AS (SELECT DISTINCT video_id FROM clips),
        grouped AS (
            SELECT video_id, coalesce(first, video_id) AS first
            FROM videos LEFT JOIN linked USING (video_id)
        ),
        hashed AS (
            SELECT first, ('0x' || md5(first)[1:8])::UBIGINT / 4294967296 AS place,
                row_number() OVER (ORDER BY md5(first)) AS number, count(*) OVER () AS groups
            FROM (SELECT DISTINCT first FROM grouped)
        )
        SELECT video_id, CASE WHEN $share > 0 AND number < groups AND (place < $share OR number = 1)
            THEN 'val' ELSE 'train' END AS split
        FROM grouped JOIN hashed USING (first)
        """,
        {"share": share},
    )


def groups(links: list[tuple[str, str]]) -> dict[str, str]:
    """Connected components: each linked name → the smallest name of its component."""
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while (up := above.setdefault(name, name)) != name:
            above[name] = name = above[up]
        return name

    for a, b in links:
        low, high = sorted((root(a), root(b)))
        above[high] = low
    return {name: root(name) for name in sorted(above)}
