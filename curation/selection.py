"""Step 4: which clips a profile keeps, why the others fall, how often each is drawn, train or val.

    python curation/run.py steps=select profile=720p select.min_sharpness=0.4

SQL over the scores; nothing is decoded. The order is that of the fields of `recipes.schema.Select`:
thresholds, motion tiers, near-duplicates, the quota of each cluster, captions. A clip falls at the
first that it fails, and that key is its reason.
"""

import math
from dataclasses import dataclass, fields

import duckdb
import numpy as np
import pyarrow as pa

from curation import copies, holdout, neighbours
from curation.buckets import bucket
from curation.catalog import Catalog
from curation.schema import SCORES, quoted, score_tables, text
from recipes.load import UsageError
from recipes.schema import Curation, Select

RESOLUTION = {"192p": 192, "480p": 480, "720p": 720}  # of a profile: its buckets go no higher

# The shape that is trained on: without borders; an image has no duration.
GEOMETRY = {
    "duration_s": "CASE WHEN NOT v.is_image THEN c.end_s - c.start_s END",
    "short_side": "least(c.crop_w, c.crop_h)",
    "aspect_ratio": "greatest(c.crop_w, c.crop_h) / least(c.crop_w, c.crop_h)",
}
STAGES = ("tiers", "duplicate_similarity", "cluster_quota", "require_caption")  # after thresholds
# What tells the better of two clips, besides its size.
MERITS = ("quality", "aesthetic", "sharpness", "bits_per_pixel")


@dataclass(frozen=True)
class Criterion:
    """One stage of the funnel."""

    name: str  # the key of `select`
    limit: object  # its value
    dropped: int  # clips that fall here
    dropped_hours: float
    left: int  # clips that pass this and all before it
    left_hours: float
    alone: int  # clips that it would drop if it were the only criterion
    alone_hours: float


@dataclass(frozen=True)
class Funnel:
    """What a profile makes of the catalog. An image counts as a clip of 0 hours."""

    profile: str
    clips: int
    hours: float
    kept: int
    kept_hours: float
    train: int  # of the kept
    val: int
    criteria: tuple[Criterion, ...]  # those that are switched on, in order


def criteria(options: Select) -> dict[str, int]:
    """The criteria that are switched on, in order: key → its bit in a clip's `failed`.

    So `failed & (bit - 1) = 0` says that a clip passes all that come before.
    """
    on = [
        field.name
        for field in fields(options)
        if (field.name in STAGES or field.name.startswith(("min_", "max_")))
        and getattr(options, field.name) not in (None, False)
    ]
    return {name: 1 << i for i, name in enumerate(on)}


def select(catalog: Catalog, config: Curation) -> Funnel:
    """Decides every clip for `config.profile` and writes the rows of `decisions`.

    Duplicates and clusters are found again first, if the embeddings have changed. The same catalog
    and configuration give the same rows, and rows that would not change are not written.

    Raises:
        UsageError: a threshold names no score, a number is out of range, or a clip's tier has no
            weight.
    """
    catalog.flush(wait=True)
    copies.refresh(catalog)
    bits = criteria(config.select)
    with catalog.reading() as con:
        _judge(con, config.select, bits)
        _duplicates(con, config.select, bits)
        _quota(con, config.select, bits)
        holdout.divide(con, config.select.val_share)
        decisions = _decide(con, config, bits)
        funnel = _funnel(con, config, bits)
        con.register("new_decisions", decisions)
        every = "count(*), sum(hash(clip_id, kept, reason, sampling_weight, bucket, split))"
        was, new = con.execute(
            f"SELECT {every} FROM decisions WHERE profile = ? "
            f"UNION ALL SELECT {every} FROM new_decisions",
            [config.profile],
        ).fetchall()
    if was != new:
        with catalog.transaction() as con:
            con.register("new_decisions", decisions)
            con.execute("DELETE FROM decisions WHERE profile = ?", [config.profile])
            con.execute("INSERT INTO decisions BY NAME FROM new_decisions")
    return funnel


def failures(
    con: duckdb.DuckDBPyConnection, options: Select, bits: dict[str, int]
) -> dict[str, list[tuple[int, str]]]:
    """The thresholds: table → (bit, SQL that is true where a row fails). NULL fails nothing.

    Raises:
        UsageError: one names a column that no table of scores has, or is not a finite number.
    """
    tables = score_tables(con)
    found: dict[str, list[tuple[int, str]]] = {table: [] for table in ("clips", *SCORES)}
    for name in bits.keys() - set(STAGES):
        kind, _, score = name.partition("_")
        limit = getattr(options, name)
        if score not in tables.keys() | GEOMETRY.keys():
            raise UsageError(f"select.{name}: the catalog has no score named {score}")
        if not math.isfinite(limit):
            raise UsageError(f"select.{name}={limit}: not a number to compare with")
        value = GEOMETRY.get(score, quoted(score))
        table = "clips" if score in GEOMETRY else tables[score]
        sign = "<" if kind == "min" else ">"
        found[table].append((bits[name], f"{value} {sign} {float(limit)!r}::DOUBLE"))
    return found


def _judge(con: duckdb.DuckDBPyConnection, options: Select, bits: dict[str, int]) -> None:
    """Table `judged`: a row a clip, with the bits of what it fails and what later stages need."""
    wrong = {tier: w for tier, w in options.tiers.items() if not (math.isfinite(w) and w >= 0)}
    if wrong:
        raise UsageError(f"select.tiers: a weight is 0 or more, not {wrong}")
    tables, tests = score_tables(con), failures(con, options, bits)

    def failed(table: str) -> str:
        cases = [f"CASE WHEN {sql} THEN {bit} ELSE 0 END" for bit, sql in tests[table]]
        return f"({' + '.join(['0', *cases])})::BIGINT"

    values = dict.fromkeys(MERITS, "NULL::DOUBLE") | {"tier": "NULL::VARCHAR"}
    joins, sums = [], [failed("clips")]
    for table in SCORES:
        # Few columns go through the joins: those are what selection costs.
        some = [name for name in values if tables.get(name) == table]
        values |= {name: name for name in some}
        columns = ", ".join(["clip_id", f"{failed(table)} AS failed_{table}", *some])
        joins.append(f"LEFT JOIN (SELECT {columns} FROM {table}) USING (clip_id)")
        sums.append(f"coalesce(failed_{table}, 0)")
    weights = [f"WHEN tier = {text(t)} THEN {float(w)!r}" for t, w in options.tiers.items()]
    con.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE judged AS
        SELECT * REPLACE (failed + CASE WHEN weight = 0 THEN {bits["tiers"]} ELSE 0 END
            + CASE WHEN captioned THEN 0 ELSE {bits.get("require_caption", 0)} END AS failed)
        FROM (
            SELECT c.rowid AS n, clip_id, c.video_id, c.crop_w, c.crop_h, c.length_4k1,
                coalesce({GEOMETRY["duration_s"]}, 0) / 3600 AS hours,
                clip_id IN (SELECT clip_id FROM captions WHERE trim(text) != '') AS captioned,
                {", ".join(f"{sql} AS {name}" for name, sql in values.items())},
                CAST(CASE WHEN tier IS NULL THEN 1 {" ".join(weights)} END AS DOUBLE) AS weight,
                {" + ".join(sums)} AS failed
            FROM clips c JOIN videos v ON v.video_id = c.video_id {" ".join(joins)}
        )
        """
    )
    lost = con.execute("SELECT DISTINCT tier FROM judged WHERE weight IS NULL").fetchall()
    if lost:
        raise UsageError(f"select.tiers: no weight for {', '.join(sorted(t for (t,) in lost))}")


def _duplicates(con: duckdb.DuckDBPyConnection, options: Select, bits: dict[str, int]) -> None:
    """Clips that fall for a better copy; table `alone_duplicate_similarity` (n).

    Best first: a clip goes if one that stays is similar to it. So of two similar clips at most one
    stays, every clip that goes has one that stays beside it, and in a chain a ~ b ~ c where a and
    c differ, c outlives b. Of a clip with very many copies `duplicates` lists some only, and it
    goes for any of those. Better is (captioned, where that is required, then) larger, then more
    bits a pixel, then the smaller clip_id.
    """
    if "duplicate_similarity" not in bits:
        return
    con.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE copies AS
        SELECT n, clip_id, failed, coalesce(listed >= {neighbours.MOST}, false) AS cut,
            row_number() OVER (ORDER BY {_captioned_first(options)} {copies.PREFERRED}) AS rank
        FROM judged LEFT JOIN
            (SELECT clip_id, count(*) AS listed FROM duplicates GROUP BY ALL) USING (clip_id)
        WHERE clip_id IN (SELECT clip_id FROM duplicates UNION SELECT duplicate_of FROM duplicates)
        """
    )
    bit = bits["duplicate_similarity"]
    for name, before in (("copied", bit - 1), ("alone_duplicate_similarity", 0)):
        pairs = con.execute(
            """
            SELECT better.n AS better, worse.n AS worse, worse.cut FROM
                (SELECT clip_id AS a, duplicate_of AS b FROM duplicates WHERE similarity >= $least
                UNION ALL SELECT duplicate_of, clip_id FROM duplicates WHERE similarity >= $least)
            JOIN copies better ON better.clip_id = a JOIN copies worse ON worse.clip_id = b
            WHERE better.rank < worse.rank AND (better.failed | worse.failed) & $before = 0
            ORDER BY better.rank
            """,
            {"least": options.duplicate_similarity, "before": before},
        ).fetchnumpy()
        gone: set[int] = set()
        columns = (pairs[key].tolist() for key in ("better", "worse", "cut"))
        for better, worse, cut in zip(*columns, strict=True):
            if cut or better not in gone:
                gone.add(worse)
        con.register(name, pa.table({"n": np.fromiter(gone, np.int64, len(gone))}))
    con.execute(f"UPDATE judged SET failed = failed | {bit} WHERE n IN (SELECT n FROM copied)")


def _quota(con: duckdb.DuckDBPyConnection, options: Select, bits: dict[str, int]) -> None:
    """Clips beyond their cluster's quota; table `alone_cluster_quota` (n).

    The best stay: (captioned, where that is required, then) by quality, where it is NULL by
    aesthetic, then sharpness, then bits a pixel. A clip without an embedding has no quota.
    """
    if "cluster_quota" not in bits:
        return
    bit = bits["cluster_quota"]
    con.execute(
        "CREATE OR REPLACE TEMP TABLE clustered AS SELECT n, failed, captioned, clip_id, model, "
        f"cluster, {', '.join(MERITS)} FROM judged JOIN clusters USING (clip_id)"
    )
    order = ", ".join(f"{name} DESC NULLS LAST" for name in MERITS)
    for name, before in (("crowded", bit - 1), ("alone_cluster_quota", 0)):
        con.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE {name} AS SELECT DISTINCT n FROM (
                SELECT n FROM clustered WHERE failed & {before} = 0
                QUALIFY row_number() OVER (PARTITION BY model, cluster
                    ORDER BY {_captioned_first(options)} {order}, clip_id) > ?
            )
            """,
            [options.cluster_quota],
        )
    con.execute(f"UPDATE judged SET failed = failed | {bit} WHERE n IN (SELECT n FROM crowded)")


def _captioned_first(options: Select) -> str:
    """Else a clip could fall for one that then falls itself, for want of a caption."""
    return "captioned DESC, " if options.require_caption else ""


def _decide(con: duckdb.DuckDBPyConnection, config: Curation, bits: dict[str, int]) -> pa.Table:
    """The rows of `decisions`, by clip_id."""
    keys = ("crop_w", "crop_h", "length_4k1")
    shapes = con.execute(f"SELECT DISTINCT {', '.join(keys)} FROM judged").fetchall()
    cap = RESOLUTION.get(config.profile)
    columns = {key: pa.array([s[i] for s in shapes], pa.int32()) for i, key in enumerate(keys)}
    columns["bucket"] = pa.array([bucket(*shape, cap) for shape in shapes], pa.string())
    con.register("shapes", pa.table(columns))
    reasons = " ".join(f"WHEN {bit} THEN {text(name)}" for name, bit in bits.items())
    return con.sql(
        f"""
        SELECT {text(config.profile)} AS profile, clip_id, failed = 0 AS kept,
            CASE failed & -failed {reasons} END AS reason,
            CASE WHEN failed = 0 THEN weight ELSE 0 END AS sampling_weight, bucket, split
        FROM judged JOIN splits USING (video_id) JOIN shapes USING ({", ".join(keys)})
        ORDER BY clip_id
        """
    ).to_arrow_table()


def _funnel(con: duckdb.DuckDBPyConnection, config: Curation, bits: dict[str, int]) -> Funnel:
    # Clips that fail the same are counted once, so that many criteria cost no more than few.
    con.execute(
        "CREATE OR REPLACE TEMP TABLE counted AS SELECT failed, split, count(*) AS clips, "
        "sum(hours) AS hours FROM judged JOIN splits USING (video_id) GROUP BY ALL"
    )

    def count(condition: str, table: str = "counted", clips: str = "sum(clips)") -> tuple:
        ((n, hours),) = con.execute(
            f"SELECT coalesce({clips}, 0)::BIGINT, coalesce(sum(hours), 0) FROM {table} "
            f"WHERE {condition}"
        ).fetchall()
        return n, round(hours, 6)  # sums of doubles depend on their order in the last digits

    every, kept = count("true"), count("failed = 0")
    in_val, _ = count("failed = 0 AND split = 'val'")
    found = []
    left, left_hours = every
    for name, bit in bits.items():
        dropped, dropped_hours = count(f"failed & -failed = {bit}")
        left, left_hours = left - dropped, round(left_hours - dropped_hours, 6)
        if name in ("duplicate_similarity", "cluster_quota"):
            alone = count(f"n IN (SELECT n FROM alone_{name})", "judged", "count(*)")
        else:
            alone = count(f"failed & {bit} != 0")
        limit = getattr(config.select, name)
        found.append(Criterion(name, limit, dropped, dropped_hours, left, left_hours, *alone))
    return Funnel(config.profile, *every, *kept, kept[0] - in_val, in_val, tuple(found))
