"""Which sources are held out for validation."""

import duckdb
import pyarrow as pa

from recipes.load import UsageError

LONG = 81  # frames at 16 fps: five seconds, what the later stages train on


def divide(con: duckdb.DuckDBPyConnection, share: float) -> None:
    """Makes the temporary table `splits` (video_id, split), a row for each video with clips.

    Videos with near-duplicate clips, directly or through other videos, are one group, and a whole
    group goes to one side, by hash: no source and no copy stands on both. At least one group goes
    to val and at least one to train; a lone one is train. Where the hash chooses none for val, it
    is one of those with the longest clips, which most profiles keep some of; but what a profile
    keeps plays no part.

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
        WITH grouped AS (
            SELECT video_id, coalesce(any_value(first), video_id) AS first,
                least(max(length_4k1), $long) AS long
            FROM clips LEFT JOIN linked USING (video_id) GROUP BY video_id
        ),
        placed AS (
            SELECT first, md5(first) AS hash, max(long) AS long,
                ('0x' || md5(first)[1:8])::UBIGINT / 4294967296 < $share AS chosen
            FROM grouped GROUP BY first
        ),
        ranked AS (
            SELECT first, chosen, count(*) OVER () AS groups, bool_or(chosen) OVER () AS enough,
                row_number() OVER (ORDER BY hash DESC) AS last,
                row_number() OVER (ORDER BY long DESC NULLS LAST, hash) AS best
            FROM placed
        )
        SELECT video_id, CASE WHEN $share > 0 AND groups > 1 AND
            CASE WHEN enough THEN chosen AND last > 1 ELSE best = 1 END
            THEN 'val' ELSE 'train' END AS split
        FROM grouped JOIN ranked USING (first)
        """,
        {"share": share, "long": LONG},
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
