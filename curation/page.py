"""The report as one HTML page: `report.html.jinja` beside this file, filled in.

No script and no network; every text that comes from a file is escaped.
"""

import base64
import json
import math
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import duckdb
import jinja2

PICTURES = 2_000_000  # bytes of base64: past that, clips stand without their picture


def pictures(con: duckdb.DuckDBPyConnection, facts: dict) -> dict[str, str]:
    """clip_id → data URL of the clips that the report shows, the most telling first."""
    wanted = list(dict.fromkeys(shown(facts)))
    jpegs = dict(
        con.execute(
            "SELECT clip_id, jpeg FROM thumbnails WHERE list_contains($ids, clip_id)",
            {"ids": wanted},
        ).fetchall()
    )
    found, left = {}, PICTURES
    for clip_id in wanted:
        if jpegs.get(clip_id):
            url = "data:image/jpeg;base64," + base64.b64encode(jpegs[clip_id]).decode()
            if len(url) <= left:
                found[clip_id] = url
                left -= len(url)
    return found


def shown(facts: dict) -> Iterator[str]:
    """The clip_ids in the report, those at thresholds first; one may come more than once."""
    scores = facts["scores"].values()
    for side in ("inside", "outside"):
        for one in scores:
            for border in one["borders"].values():
                yield from (row["clip_id"] for row in border[side])
    for kind in ("alike", "inside", "outside"):
        for pair in facts["duplicates"][kind]:
            yield from (pair["clip"]["clip_id"], pair["of"]["clip_id"])
    yield from (row["clip_id"] for row in facts["captions"]["examples"])
    for place in ("low", "high", "middle"):
        for one in scores:
            yield from (row["clip_id"] for row in one["examples"][place])


def render(facts: dict, pictures: dict[str, str]) -> str:
    """The page.

    Args:
        facts: what `report.collect` returned.
        pictures: clip_id → data URL; a clip without one is shown by its name alone.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": number,
        "duration": duration,
        "share": share,
        "size": size,
        "file": file,
        "ticks": ticks,
    }
    number_of = {clip_id: i for i, clip_id in enumerate(sorted(pictures))}
    return environment.get_template("report.html.jinja").render(
        facts=facts,
        pictures=[(i, pictures[clip_id]) for clip_id, i in number_of.items()],
        number_of=number_of,
        steps=[(step, list(some)) for step, some in groupby(facts["funnel"], itemgetter("step"))],
        tables=[
            (step, list(some))
            for step, some in groupby(facts["scores"], lambda name: facts["scores"][name]["step"])
        ],
        missing=len(set(shown(facts)) - pictures.keys()),
        configuration=json.dumps(facts["run"]["configuration"], ensure_ascii=False, indent=1),
    )


def number(value: float | None) -> str:
    """Three digits that matter; thousands apart."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return "≈ 0"
    return f"{float(f'{value:.3g}'):g}"


def duration(seconds: float | None) -> str:
    """Seconds below a minute, m:ss below an hour, then hours."""
    seconds = seconds or 0.0
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 360_000:
        return f"{whole // 3600}:{whole // 60 % 60:02d} h"
    return f"{whole / 3600:,.0f} h"


def share(part: float, whole: float) -> str:
    """A percentage."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def size(count: float) -> str:
    """Bytes as a person says them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{number(count)} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def ticks(edges: list[float]) -> list[float]:
    """At most seven of a histogram's edges: all multiples of one round number."""
    width = edges[1] - edges[0]
    for many in (1, 2, 4, 5, 10, 20, 40):
        found = [at for at in edges if abs(at / width / many - round(at / width / many)) < 1e-6]
        if len(found) <= 7:
            return found
    return [edges[0], edges[-1]]


def file(name: str, most: int = 30) -> str:
    """The last part of a path, its middle left out where it is long."""
    name = name.rsplit("/", 1)[-1]
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
