"""The report of a catalog: `report.json` for programs, one self-contained `report.html` for people.

Everything in it is a query over the catalog, so it can be written again at any time, without a
single frame decoded. However large the catalog, it shows a bounded number of clips: those at the
ends and in the middle of each score, and those nearest to each threshold. What the keys mean stands
in data/README.md; `curation.page` makes the page.
"""

import dataclasses
import json
import re
from pathlib import Path

import duckdb
import numpy as np

from curation import page
from curation.catalog import Catalog
from curation.schema import SCORES, quoted, score_tables
from curation.scorer import REGISTRY
from curation.selection import GEOMETRY, Funnel
from recipes.schema import Curation

BARS = 40  # of a histogram, about
TAIL = 0.5  # percent of the clips that may lie beyond a histogram's axis on each side
ENDS = 3  # clips at the low end, in the middle and at the high end of a score
NEAR = 4  # clips on each side of a threshold
PAIRS = 6  # duplicates of each kind
KINDS = 30  # rows of a table whose length grows with the catalog
TEXT = 400  # characters of a caption or an error
NUMERIC = {"DOUBLE", "FLOAT", "INTEGER", "BIGINT", "SMALLINT", "UBIGINT", "UINTEGER"}
UNITS = {"duration_s": "s", "short_side": "pixels", "aspect_ratio": "≥ 1"}
MEANINGS = {
    "duration_s": "length of the clip; an image has none",
    "short_side": "short side of the picture within the borders",
    "aspect_ratio": "long side over short side of the picture within the borders",
}
CLIPS = """
    SELECT c.clip_id, v.name, c.start_s, c.end_s, c.crop_w AS width, c.crop_h AS height,
        coalesce(d.kept, false) AS kept, d.reason
    FROM clips c JOIN videos v USING (video_id)
    LEFT JOIN decisions d ON d.clip_id = c.clip_id AND d.profile = $profile
"""


def write(catalog: Catalog, config: Curation, found: Funnel) -> tuple[Path, Path]:
    """Writes report.json and report.html into the catalog's folder, each under a temporary name.

    Args:
        found: what `selection.select` returned for the same catalog and configuration.

    Returns:
        the paths of report.html and report.json.
    """
    with catalog.reading() as con:
        facts = collect(con, config, found)
        pictures = page.pictures(con, facts)
    html, plain = catalog.folder / "report.html", catalog.folder / "report.json"
    text = json.dumps(facts, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    _put(plain, text + "\n")
    _put(html, page.render(facts, pictures))
    return html, plain


def _put(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8", errors="replace")  # a name may hold half a character
    new.replace(path)


def rows(con: duckdb.DuckDBPyConnection, sql: str, **parameters) -> list[dict]:
    """The rows of one SELECT, each as column → value."""
    used = {name: value for name, value in parameters.items() if f"${name}" in sql}
    result = con.execute(sql, used or None)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def collect(con: duckdb.DuckDBPyConnection, config: Curation, found: Funnel) -> dict:
    """All facts of the report, as report.json has them; their keys stand in data/README.md."""

    def ask(sql: str, **parameters) -> list[dict]:
        return rows(con, sql, profile=config.profile, **parameters)

    (totals,) = ask(
        """SELECT (SELECT count(*) FROM videos) AS files,
        (SELECT count(*) FROM videos WHERE status = 'error') AS broken,
        (SELECT count(*) FROM videos WHERE status = 'ok' AND is_image) AS images,
        (SELECT count(*) FROM videos ANTI JOIN clips USING (video_id) WHERE status = 'ok')
            AS without_clips,
        (SELECT round(coalesce(sum(duration_s), 0), 3) FROM videos WHERE status = 'ok') AS video_s,
        count(*) AS clips, round(coalesce(sum(end_s - start_s), 0), 3) AS clip_s,
        count(*) FILTER (d.kept) AS kept,
        round(coalesce(sum(end_s - start_s) FILTER (d.kept), 0), 3) AS kept_s
        FROM clips c LEFT JOIN decisions d ON d.clip_id = c.clip_id AND d.profile = $profile"""
    )
    tiers = ask(
        """SELECT tier, count(*) AS clips, round(sum(end_s - start_s), 3) AS seconds,
        count(*) FILTER (kept) AS kept, coalesce(sum(sampling_weight) FILTER (kept), 0) AS drawn
        FROM motion JOIN clips USING (clip_id) LEFT JOIN decisions d
        ON d.clip_id = motion.clip_id AND d.profile = $profile
        WHERE tier IS NOT NULL GROUP BY tier ORDER BY clips DESC, tier"""
    )
    sizes = ask(
        """SELECT width, height, codec, CASE WHEN NOT is_image THEN round(fps, 2) END AS fps,
        count(*) AS files, round(coalesce(sum(duration_s), 0), 3) AS seconds
        FROM videos WHERE status = 'ok'
        GROUP BY ALL ORDER BY files DESC, width DESC, height DESC, codec, fps"""
    )
    return {
        "profile": config.profile,
        "source": config.source,
        "totals": totals,
        "funnel": funnel(con, found),
        "scores": scores(con, config),
        "tiers": [row | {"weight": config.select.tiers.get(row["tier"])} for row in tiers],
        "sizes": {"kinds": len(sizes), "shown": sizes[:KINDS]},
        "buckets": ask(
            """SELECT bucket, split, count(*) AS clips, sum(sampling_weight) AS weight
            FROM decisions WHERE profile = $profile AND kept GROUP BY ALL ORDER BY ALL"""
        ),
        "errors": errors(
            ask("SELECT name, error FROM videos WHERE status = 'error' ORDER BY name")
        ),
        "duplicates": duplicates(con, config),
        "captions": {
            "kinds": ask(
                f"""SELECT source, model, language, count(*) AS captions,
                count(DISTINCT clip_id) AS clips, round(median(length(text)), 1) AS characters
                FROM captions GROUP BY ALL
                ORDER BY captions DESC, source, model, language LIMIT {KINDS}"""
            ),
            "examples": caption_examples(con, config),
        },
        "shards": ask(
            """SELECT split, count(DISTINCT shard) AS shards, count(*) AS samples,
            coalesce(sum(bytes), 0)::BIGINT AS bytes FROM shards WHERE profile = $profile
            GROUP BY split ORDER BY split"""
        ),
        "run": run(con, config),
    }


def run(con: duckdb.DuckDBPyConnection, config: Curation) -> dict:
    """The last run's times and versions, and which scorers' numbers stand in the catalog."""
    last = rows(con, 'SELECT id, start, "end", status, versions FROM runs ORDER BY start DESC, id')
    took = last[0] if last else dict.fromkeys(("id", "start", "end", "status"))
    spoke = []
    for step in SCORES:
        spoke += rows(
            con,
            f"""SELECT '{step}' AS step, e.key AS name, e.value AS version, count(*) AS clips
            FROM (SELECT unnest(map_entries(versions)) AS e FROM {step})
            GROUP BY ALL ORDER BY ALL""",
        )
    for row in spoke:
        row["source"] = REGISTRY[row["name"]].source if row["name"] in REGISTRY else None
    return {
        "id": took["id"],
        "start": took["start"].isoformat(timespec="seconds") if took["start"] else None,
        "end": took["end"].isoformat(timespec="seconds") if took["end"] else None,
        "status": took["status"],
        "versions": json.loads(last[0]["versions"] or "{}") if last else {},
        "runs": len(last),
        "scorers": spoke,
        "configuration": dataclasses.asdict(config),
    }


def funnel(con: duckdb.DuckDBPyConnection, found: Funnel) -> list[dict]:
    """What each criterion drops in its turn, would drop alone, and leaves; and its step."""
    tables = score_tables(con) | dict.fromkeys(GEOMETRY, "basic")
    stages = {"tiers": "motion", "require_caption": "captions"}
    return [
        {
            "step": stages.get(one.name) or tables.get(one.name.partition("_")[2], "duplicates"),
            "criterion": one.name,
            "limit": one.limit,
            "alone": one.alone,
            "dropped": one.dropped,
            "left": one.left,
            "left_s": round(one.left_hours * 3600, 1),
        }
        for one in found.criteria
    ]


def errors(broken: list[dict]) -> list[dict]:
    """Errors by kind: the same line but for numbers, and for names in quotes or of the file."""
    kinds: dict[str, list[dict]] = {}
    for row in broken:
        line = (row["error"] or "").replace(row["name"], "…")
        kinds.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "…", line), []).append(row)
    found = [
        {
            "error": (some[0]["error"] or "")[:TEXT],
            "files": len(some),
            "names": [row["name"] for row in some[:5]],
        }
        for some in kinds.values()
    ]
    found.sort(key=lambda kind: (-kind["files"], kind["error"]))
    rest = sum(kind["files"] for kind in found[KINDS:])
    other = {"error": f"{len(found) - KINDS} other kinds", "files": rest, "names": []}
    return found[:KINDS] + ([other] if rest else [])


def scores(con: duckdb.DuckDBPyConnection, config: Curation) -> dict[str, dict]:
    """Every numeric score that has a value, in the order of the steps and of their columns."""
    declared = {n: column for one in REGISTRY.values() for n, column in one.columns.items()}
    columns = rows(
        con,
        "SELECT table_name AS step, column_name AS name, data_type AS type, comment "
        "FROM duckdb_columns() WHERE NOT internal ORDER BY column_index",
    )
    wanted = [("basic", name, None) for name in GEOMETRY] + [
        (step, one["name"], one["comment"])
        for step in SCORES
        for one in columns
        if one["step"] == step and one["type"] in NUMERIC and one["name"] not in GEOMETRY
    ]
    found = {}
    for step, name, comment in wanted:
        con.execute(
            f"""CREATE OR REPLACE TEMP TABLE score AS SELECT * FROM (
            SELECT c.clip_id, ({GEOMETRY.get(name, f"s.{quoted(name)}")})::DOUBLE AS value,
                coalesce(d.kept, false) AS kept
            FROM clips c JOIN videos v USING (video_id)
            LEFT JOIN {step} s ON s.clip_id = c.clip_id
            LEFT JOIN decisions d ON d.clip_id = c.clip_id AND d.profile = $profile
            ) WHERE isfinite(value)""",
            {"profile": config.profile},
        )
        values = con.execute("SELECT value, kept FROM score").fetchnumpy()
        if not len(values["value"]):
            continue
        limits = {side: getattr(config.select, f"{side}_{name}", None) for side in ("min", "max")}
        limits = {side: float(at) for side, at in limits.items() if at is not None}
        unit = declared[name].unit if name in declared else UNITS.get(name, "")
        meaning = declared[name].meaning if name in declared else comment or ""
        found[name] = {
            "step": step,
            "unit": unit,
            "meaning": MEANINGS.get(name, meaning),
            "limits": limits,
            **histogram(values["value"], values["kept"].astype(bool), [*limits.values()], unit),
            "examples": examples(con, config.profile),
            "borders": {side: border(con, config.profile, side, at) for side, at in limits.items()},
        }
    return found


def histogram(value: np.ndarray, kept: np.ndarray, limits: list[float], unit: str) -> dict:
    """Counts over an axis that shows the bulk of the clips and every threshold.

    Args:
        value: [n ≥ 1] finite numbers.
        kept: bool [n].

    Returns:
        clips, quantiles, edges [bars + 1], counts and kept [bars] and how many clips lie `below`
        and `above` the axis; these are counted in the first and in the last bar.
    """
    few, many = np.percentile(value, (TAIL, 100 - TAIL))
    low, high = min(few, *limits, many), max(many, *limits, few)
    if value.max() - low <= 1.5 * (high - low):  # nothing lies far out: show all
        high = max(high, value.max())
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    if high <= low:
        low, high = low - 0.5 * (low != 0), low + 0.5
    high += 0.04 * (high - low)
    if unit.startswith("0–1") and value.max() <= 1:
        high = min(high, 1.0)
    width = bar_width(high - low, limits)
    edges = width * np.arange(np.floor(low / width), np.ceil(high / width - 1e-9) + 1)
    edges = np.round(edges, 12)  # so that 3 × 0.05 is the threshold 0.15
    low, high = edges[0], edges[-1]
    inside = np.clip(value, low, high)
    return {
        "clips": len(value),
        "quantiles": {str(q): float(np.percentile(value, q)) for q in (0, 5, 25, 50, 75, 95, 100)},
        "edges": edges.tolist(),
        "counts": np.histogram(inside, edges)[0].tolist(),
        "kept": np.histogram(inside[kept], edges)[0].tolist(),
        "below": int((value < low).sum()),
        "above": int((value > high).sum()),
    }


def bar_width(span: float, limits: list[float]) -> float:
    """A round width that cuts `span` into about BARS bars, and at the thresholds if it can."""
    power = 10.0 ** np.floor(np.log10(span / BARS))
    widths = [power * step for step in (0.5, 1, 2, 2.5, 5, 10)]
    few = [width for width in widths if 0.5 * BARS <= span / width <= 1.7 * BARS]
    even = [w for w in few if all(abs(at / w - round(at / w)) < 1e-6 for at in limits)]
    return min(even or few, key=lambda width: abs(np.log(span / width / BARS)))


def examples(con: duckdb.DuckDBPyConnection, profile: str) -> dict[str, list[dict]]:
    """Clips at the low end, in the middle and at the high end of the score; none stands twice.

    Among equals the hash of the clip_id decides, so that they come from many files.
    """
    ranked = f"""WITH ranked AS (SELECT clip_id, value,
            row_number() OVER (ORDER BY value, md5(clip_id)) AS rank, count(*) OVER () AS n,
            greatest(1, least({ENDS}, n // 3)) AS k, (n - k) // 2 AS before FROM score),
        chosen AS (SELECT *, CASE WHEN rank <= k THEN 'low' WHEN rank > n - k THEN 'high'
            WHEN rank > before AND rank <= before + k THEN 'middle' END AS place FROM ranked)
        SELECT place, value, x.* FROM (FROM chosen WHERE place IS NOT NULL) JOIN ({CLIPS}) x
        USING (clip_id) ORDER BY rank"""
    found: dict[str, list[dict]] = {"low": [], "middle": [], "high": []}
    for row in rows(con, ranked, profile=profile):
        found[row.pop("place")].append(row)
    return found


def border(
    con: duckdb.DuckDBPyConnection, profile: str, side: str, at: float
) -> dict[str, list[dict]]:
    """The clips nearest to a threshold that pass it (`inside`) and that fail it (`outside`).

    Each with rising values. A clip whose value equals the threshold passes it.
    """
    passes, fails = (">=", "<") if side == "min" else ("<=", ">")
    found = {}
    for name, compare in (("inside", passes), ("outside", fails)):
        order = "ASC" if compare.startswith(">") else "DESC"
        found[name] = rows(
            con,
            f"""SELECT value, x.* FROM (FROM score WHERE value {compare} {at!r}::DOUBLE
            ORDER BY value {order}, md5(clip_id) LIMIT {NEAR}) JOIN ({CLIPS}) x USING (clip_id)
            ORDER BY value, clip_id""",
            profile=profile,
        )
    return found


def duplicates(con: duckdb.DuckDBPyConnection, config: Curation) -> dict:
    """Pairs of near-duplicates: the most alike, and those on either side of the threshold."""
    limit = config.select.duplicate_similarity
    least = limit or 0.0
    counts = "count(*) FILTER (similarity >= $least), count(*) FILTER (similarity < $least)"
    pairs, near = con.execute(f"SELECT {counts} FROM duplicates", {"least": least}).fetchone()
    found: dict = {"limit": limit, "pairs": pairs, "near": near}
    seen: set[tuple[str, str]] = set()
    for name, compare, order in (
        ("alike", ">=", "DESC"),
        ("inside", ">=", "ASC"),
        ("outside", "<", "DESC"),
    ):
        some = rows(
            con,
            f"""SELECT similarity, a AS clip, b AS of FROM (FROM duplicates
            WHERE similarity {compare} $least
            ORDER BY similarity {order}, clip_id, duplicate_of LIMIT {2 * PAIRS}) p
            JOIN ({CLIPS}) a ON a.clip_id = p.clip_id JOIN ({CLIPS}) b ON b.clip_id = duplicate_of
            ORDER BY similarity {order}, p.clip_id, duplicate_of""",
            least=least,
            profile=config.profile,
        )
        keys = {(pair["clip"]["clip_id"], pair["of"]["clip_id"]): pair for pair in some}
        found[name] = [pair for key, pair in keys.items() if key not in seen][:PAIRS]
        seen |= {(pair["clip"]["clip_id"], pair["of"]["clip_id"]) for pair in found[name]}
    return found


def caption_examples(con: duckdb.DuckDBPyConnection, config: Curation) -> list[dict]:
    """Clips of different files with their captions, first those in most languages, then kept."""
    return rows(
        con,
        f"""SELECT x.*, texts FROM ({CLIPS}) x JOIN (
            SELECT clip_id, count(DISTINCT language) AS languages, list({{'language': language,
                'source': source, 'text': text[:{TEXT}]}}
                ORDER BY language, source, text)[:4] AS texts
            FROM captions WHERE trim(text) != '' GROUP BY clip_id
        ) USING (clip_id)
        QUALIFY row_number() OVER (PARTITION BY name ORDER BY kept DESC, md5(clip_id)) = 1
        ORDER BY languages DESC, kept DESC, md5(clip_id) LIMIT {NEAR}""",
        profile=config.profile,
    )
