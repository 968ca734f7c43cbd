"""The report of a catalog: `report.json` for machines, one self-contained `report.html` for people.

Everything in it is a query over the catalog, so it can be written again at any time, without a
single frame decoded. The page is `report.html.jinja` beside this file; it needs no network and no
script.
"""

import base64
import dataclasses
import json
import math
import re
from pathlib import Path

import jinja2
import numpy as np

from curation import selection
from curation.catalog import Catalog
from curation.scorer import REGISTRY, Column
from recipes.schema import Curation, Select

BINS = 32
SHOWN = 4  # clips at each end of a score, and on each side of a threshold
PAIRS = 8  # duplicates shown
SPAN = """
    SELECT c.clip_id, v.name, c.start_s, c.end_s, c.width, c.height, d.kept, d.reason
    FROM clips c JOIN videos v USING (video_id)
    LEFT JOIN decisions d ON d.clip_id = c.clip_id AND d.profile = $profile
"""
# scores of another table than a step's, or computed from several
DERIVED = {
    "duration_s": ("c.end_s - c.start_s", Column("s", "length of the clip")),
    "short_side": ("least(c.crop_w, c.crop_h)", Column("pixels", "short side without borders")),
}


def write(catalog: Catalog, config: Curation, found: selection.Funnel) -> tuple[Path, Path]:
    """Writes report.json and report.html into the catalog's folder, each under a temporary name."""
    facts = collect(catalog, config, found)
    pictures = thumbnails(catalog, facts)
    html, plain = catalog.folder / "report.html", catalog.folder / "report.json"
    _put(plain, json.dumps(facts, ensure_ascii=False, indent=1, sort_keys=True) + "\n")
    _put(html, page(facts, pictures))
    return html, plain


def _put(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def collect(catalog: Catalog, config: Curation, found: selection.Funnel) -> dict:
    """All facts of the report, as report.json has them.

    Returns:
        totals (files, clips, seconds, kept), funnel (in order), scores (histogram, thresholds,
        clips at its ends and at its thresholds), tiers, buckets, resolutions, lengths, errors,
        duplicates, captions, shards, run (configuration, versions, times).
    """
    profile = {"profile": config.profile}
    one = lambda sql: catalog.query(sql, profile if "$profile" in sql else None)  # noqa: E731
    totals = one(
        """SELECT (SELECT count(*) FROM videos) AS files,
        (SELECT count(*) FROM videos WHERE status = 'error') AS broken,
        (SELECT coalesce(sum(duration_s), 0) FROM videos) AS video_s,
        count(*) AS clips, coalesce(sum(end_s - start_s), 0) AS clip_s,
        count(*) FILTER (d.kept) AS kept,
        coalesce(sum(end_s - start_s) FILTER (d.kept), 0) AS kept_s
        FROM clips c LEFT JOIN decisions d ON d.clip_id = c.clip_id AND d.profile = $profile"""
    )[0]
    return {
        "profile": config.profile,
        "source": config.source,
        "totals": totals,
        "funnel": funnel(found),
        "scores": scores(catalog, config),
        "tiers": one(
            """SELECT tier, count(*) AS clips, count(*) FILTER (kept) AS kept,
            any_value(sampling_weight) FILTER (kept) AS weight
            FROM motion LEFT JOIN decisions d USING (clip_id)
            WHERE d.profile = $profile AND tier IS NOT NULL GROUP BY tier ORDER BY clips DESC, tier"""
        ),
        "buckets": one(
            """SELECT bucket, split, count(*) AS clips, sum(sampling_weight) AS weight
            FROM decisions WHERE profile = $profile AND kept GROUP BY ALL ORDER BY ALL"""
        ),
        "resolutions": one(
            """SELECT v.width || '×' || v.height AS size, v.codec, round(v.fps, 2) AS fps,
            count(*) AS files, sum(v.duration_s) AS seconds FROM videos v WHERE status = 'ok'
            GROUP BY ALL ORDER BY seconds DESC, size, codec LIMIT 20"""
        ),
        "errors": errors(
            one("SELECT name, error FROM videos WHERE status = 'error' ORDER BY name")
        ),
        "duplicates": one(
            f"""SELECT a.clip_id, p.duplicate_of, p.similarity, a.name, b.name AS of_name,
            a.start_s, b.start_s AS of_start_s, a.reason
            FROM duplicates p JOIN ({SPAN}) a ON a.clip_id = p.clip_id
            JOIN ({SPAN}) b ON b.clip_id = p.duplicate_of
            WHERE p.similarity >= {config.select.duplicate_similarity or 2}
            ORDER BY p.similarity DESC, a.clip_id, b.clip_id"""
        ),
        "captions": one(
            """SELECT source, coalesce(model, '–') AS model, language, count(*) AS captions,
            count(DISTINCT clip_id) AS clips, min_by(text, clip_id) AS example
            FROM captions GROUP BY ALL ORDER BY ALL"""
        ),
        "shards": one(
            """SELECT split, count(DISTINCT shard) AS shards, count(*) AS samples,
            sum(bytes) AS bytes FROM shards WHERE profile = $profile GROUP BY split ORDER BY split"""
        ),
        "run": {
            **_run(catalog),
            "configuration": dataclasses.asdict(config),
            "scorers": {
                s.name: {"step": s.step, "version": s.version, "source": s.source}
                for s in REGISTRY.values()
                if config.scorers in s.sets and s.name not in config.skip
            },
        },
    }


def _run(catalog: Catalog) -> dict:
    rows = catalog.query('SELECT id, start, "end", status, versions FROM runs ORDER BY start DESC')
    if not rows:
        return {}
    last = rows[0]
    return {
        "id": last["id"],
        "start": str(last["start"]),
        "end": str(last["end"]),
        "status": last["status"],
        "versions": json.loads(last["versions"]),
        "runs": len(rows),
    }


def funnel(found: selection.Funnel) -> list[dict]:
    """What each criterion drops in its turn, would drop alone, and leaves."""
    return [
        {
            "reason": one.name,
            "dropped": one.dropped,
            "alone": one.alone,
            "left": one.left,
            "left_s": one.left_hours * 3600,
        }
        for one in found.criteria
    ]


def errors(rows: list[dict]) -> list[dict]:
    """Errors by kind: the same line but for numbers and names."""
    kinds: dict[str, list[dict]] = {}
    for row in rows:
        kinds.setdefault(re.sub(r"\d+", "…", row["error"] or ""), []).append(row)
    found = [
        {"error": some[0]["error"], "files": len(some), "names": [r["name"] for r in some[:5]]}
        for some in kinds.values()
    ]
    return sorted(found, key=lambda kind: (-kind["files"], kind["error"]))


def scores(catalog: Catalog, config: Curation) -> dict[str, dict]:
    """Every numeric score: its histogram, its thresholds, and the clips that stand for it."""
    limits = {}
    for field in dataclasses.fields(Select):
        side, _, name = field.name.partition("_")
        if side in ("min", "max"):
            limits.setdefault(name, {})[side] = getattr(config.select, field.name)
    found = {}
    columns = {
        name: (column, one.step, f"s.{name}")
        for one in REGISTRY.values()
        for name, column in one.columns.items()
        if one.step in ("basic", "visual", "motion") and column.type == "DOUBLE"
    }
    for name, (column, step, sql) in columns.items():
        sql, column = DERIVED.get(name, (sql, column))
        rows = f"""SELECT {sql} AS value, x.* FROM ({SPAN}) x
            JOIN clips c ON c.clip_id = x.clip_id JOIN {step} s ON s.clip_id = x.clip_id"""
        values = catalog.columns(
            f"SELECT value, coalesce(kept, false) AS kept FROM ({rows}) WHERE value IS NOT NULL",
            {"profile": config.profile},
        )
        value = np.asarray(np.ma.filled(values["value"], np.nan), dtype=float)
        finite = np.isfinite(value)
        value, kept = value[finite], np.asarray(values["kept"], dtype=bool)[finite]
        if not len(value):
            continue
        limit = {side: at for side, at in limits.get(name, {}).items() if at is not None}
        bounds = [value.min(), value.max(), *limit.values()]
        low, high = (
            (0.0, 1.0) if 0 <= min(bounds) and max(bounds) <= 1 else (min(bounds), max(bounds))
        )
        if column.unit.startswith("0–1") is False and low >= 0:
            low, high = (0.0 if low < 0.5 * high else low), max(high, low + 1e-9)
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        found[name] = {
            "step": step,
            "unit": column.unit,
            "meaning": column.meaning,
            "clips": len(value),
            "quantiles": {
                str(q): float(np.percentile(value, q)) for q in (0, 5, 25, 50, 75, 95, 100)
            },
            "edges": [float(edge) for edge in edges],
            "counts": np.histogram(value, edges)[0].tolist(),
            "kept": np.histogram(value[kept], edges)[0].tolist(),
            "limits": limit,
            "examples": examples(catalog, rows, config.profile),
            "borders": {
                side: {
                    "inside": near(catalog, rows, config.profile, at, inside=True, side=side),
                    "outside": near(catalog, rows, config.profile, at, inside=False, side=side),
                }
                for side, at in limit.items()
            },
        }
    return found


def examples(catalog: Catalog, rows: str, profile: str) -> dict[str, list[dict]]:
    """Clips at the low end, in the middle and at the high end of a score."""
    ranked = f"""WITH r AS (SELECT *, row_number() OVER (ORDER BY value, clip_id) AS rank,
        count(*) OVER () AS n FROM ({rows}) WHERE value IS NOT NULL)
        SELECT * EXCLUDE (n), CASE WHEN rank <= {SHOWN} THEN 'low'
        WHEN rank > n - {SHOWN} THEN 'high' ELSE 'middle' END AS place FROM r
        WHERE rank <= {SHOWN} OR rank > n - {SHOWN} OR abs(rank - (n + 1) / 2) < {SHOWN} / 2
        ORDER BY rank"""
    found: dict[str, list[dict]] = {"low": [], "middle": [], "high": []}
    for row in catalog.query(ranked, {"profile": profile}):
        found[row.pop("place")].append(row)
    return found


def near(
    catalog: Catalog, rows: str, profile: str, at: float, *, inside: bool, side: str
) -> list[dict]:
    """The clips closest to a threshold, on one side of it."""
    above = (side == "min") == inside  # a minimum keeps what is above it, and itself
    compare = (">=" if side == "min" else ">") if above else ("<" if side == "min" else "<=")
    order = "ASC" if above else "DESC"
    return catalog.query(
        f"SELECT * FROM ({rows}) WHERE value {compare} {at!r} ORDER BY value {order}, clip_id "
        f"LIMIT {SHOWN}",
        {"profile": profile},
    )


def thumbnails(catalog: Catalog, facts: dict) -> dict[str, str]:
    """clip_id → data URL of every clip that the report shows."""
    wanted = set()
    for score in facts["scores"].values():
        groups = [*score["examples"].values()]
        groups += [rows for border in score["borders"].values() for rows in border.values()]
        wanted |= {row["clip_id"] for rows in groups for row in rows}
    for pair in facts["duplicates"][:PAIRS]:
        wanted |= {pair["clip_id"], pair["duplicate_of"]}
    rows = catalog.query(
        "SELECT clip_id, jpeg FROM thumbnails WHERE list_contains($ids, clip_id)",
        {"ids": sorted(wanted)},
    )
    return {
        row["clip_id"]: "data:image/jpeg;base64," + base64.b64encode(row["jpeg"]).decode()
        for row in rows
    }


def page(facts: dict, pictures: dict[str, str]) -> str:
    """The HTML page; everything that comes from a file's name or text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "duration": duration, "share": share}
    number_of = {clip_id: i for i, clip_id in enumerate(sorted(pictures))}
    return environment.get_template("report.html.jinja").render(
        facts=facts,
        pictures=[(i, pictures[clip_id]) for clip_id, i in number_of.items()],
        number_of=number_of,
        pairs=PAIRS,
        tall=max,
        configuration=json.dumps(facts["run"]["configuration"], ensure_ascii=False, indent=1),
    )


def number(value: float) -> str:
    """Three digits that matter."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """h:mm:ss, or seconds below a minute."""
    seconds = seconds or 0.0
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def share(part: float, whole: float) -> str:
    """A percentage."""
    return f"{100 * part / whole:.1f} %" if whole else "–"
