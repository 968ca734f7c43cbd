"""The report as one HTML page: `report.html.jinja` beside this file, filled in.

Nothing is fetched: films are inside, as many as fit, those first that lost most.
"""

import base64
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from eval.contenders import Contender

SHOWN = 24  # prompts with players
MOST = 40e6  # bytes of films in a page
WIDTH, ROW, EDGE = 620, 26, 210  # of the forest plot, pixels
WHEEL, RIM = 380, 150  # of the radar: height and radius


def page(found: dict[str, Any], contenders: Sequence[Contender]) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "percent": percent, "told": told}
    return environment.get_template("report.html.jinja").render(
        found=found,
        films=films(found, contenders),
        forests=[forest(one) for one in found["comparisons"]],
        radar=radar(found),
        curves=curves(found["validation"]),
        sparks=[sparks(one["measures"]) for one in found["learning"]],
    )


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float) -> str:
    """A probability, as small as it matters."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def told(value: Any) -> str:
    """A value, or the names and values of several; hashes shortened."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {told(one)}" for name, one in value.items() if one is not None)
    text = str(value)
    return f"{text[:16]}…" if re.fullmatch("[0-9a-f]{64}", text) else text


def films(found: dict[str, Any], contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """Prompts and their players, one of each contender, side by side."""
    rows, left = [], MOST
    for row in found["prompts"][:SHOWN]:
        shown = []
        for one in contenders:
            path = one.videos.get((row["number"], 0))
            data = path.read_bytes() if path and path.is_file() else b""
            left -= len(data)
            shown.append(f"data:video/mp4;base64,{base64.b64encode(data).decode()}" if data else "")
        if left < 0:
            break
        rows.append({"prompt": row["prompt"], "fall": row["fall"], "films": shown})
    return rows


def forest(comparison: dict[str, Any]) -> dict[str, Any]:
    """Deltas and their intervals, each measure in units of its own smallest detectable effect, so
    that all stand on one axis."""
    rows = []
    for name, one in comparison["measures"].items():
        unit = one["detectable"]
        if not unit or one["low"] is None or one["high"] is None:
            continue
        rows.append(
            {
                "name": name,
                "at": one["delta"] / unit,
                "low": one["low"] / unit,
                "high": one["high"] / unit,
                "kind": kind(comparison, name),
            }
        )
    reach = min(max([2.0, *(abs(one[k]) for one in rows for k in ("low", "high"))]), 12.0)

    def across(value: float) -> float:
        inside = max(-reach, min(reach, value))
        return round(EDGE + (inside + reach) / (2 * reach) * (WIDTH - EDGE - 20), 1)

    for k, one in enumerate(rows):
        one |= {"y": 20 + k * ROW, "x": across(one["at"])}
        one |= {"x1": across(one["low"]), "x2": across(one["high"])}
    return {
        "rows": rows,
        "width": WIDTH,
        "height": 40 + len(rows) * ROW,
        "zero": across(0),
        "ones": (across(-1), across(1)),
    }


def radar(found: dict[str, Any]) -> dict[str, Any] | None:
    """All contenders on one wheel: an axis a measure that has a better side, as the share of the
    best contender's; None of fewer than three."""
    means = [one["means"] for one in found["contenders"]]
    if len(means) < 2:
        return None
    axes = {}
    for name, told in found["measures"].items():
        values = [one.get(name) for one in means]
        if told["higher_is_better"] is None or None in values or min(values) < 0:
            continue
        if told["higher_is_better"]:
            shares = [value / max(values) if max(values) else 1.0 for value in values]
        elif min(values) > 0:
            shares = [min(values) / value for value in values]
        else:  # nothing is a share of 0
            continue
        axes[name] = shares
    if len(axes) < 3:
        return None
    angles = [2 * math.pi * k / len(axes) - math.pi / 2 for k in range(len(axes))]

    def at(share: float, angle: float) -> tuple[float, float]:
        x, y = WIDTH / 2 + RIM * share * math.cos(angle), WHEEL / 2 + RIM * share * math.sin(angle)
        return round(x, 1), round(y, 1)

    def outline(shares: Sequence[float]) -> str:
        corners = (at(*pair) for pair in zip(shares, angles, strict=True))
        return " ".join(f"{x},{y}" for x, y in corners)

    spokes = []
    for name, angle in zip(axes, angles, strict=True):
        (x, y), (at_x, at_y) = at(1, angle), at(1.07, angle)
        side = "middle" if abs(math.cos(angle)) < 0.1 else "start" if math.cos(angle) > 0 else "end"
        spokes.append({"name": name, "x": x, "y": y, "at_x": at_x, "at_y": at_y, "anchor": side})
    lines = [
        {"name": one["name"], "points": outline([shares[k] for shares in axes.values()])}
        for k, one in enumerate(found["contenders"])
    ]
    rings = [outline([share] * len(axes)) for share in (0.25, 0.5, 0.75, 1)]
    return {"width": WIDTH, "height": WHEEL, "rings": rings, "spokes": spokes, "lines": lines}


def kind(comparison: dict[str, Any], name: str) -> str:
    if name in comparison["better"]:
        return "better"
    return "worse" if name in comparison["worse"] else "open"


def curves(validation: dict[str, list[list[float]]]) -> dict[str, Any] | None:
    """What runs recorded of themselves, as polylines in a box of 100 × 100."""
    known = {name: rows for name, rows in validation.items() if len(rows) > 1}
    if not known:
        return None
    points = [point for rows in known.values() for point in rows]
    last = max(step for step, _ in points)
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    wide = (high - low) or 1.0
    lines = [
        {
            "name": name,
            "points": " ".join(
                f"{100 * step / last:.1f},{100 - 100 * (loss - low) / wide:.1f}"
                for step, loss in rows
            ),
        }
        for name, rows in known.items()
    ]
    return {"lines": lines, "last": last, "low": low, "high": high}


def sparks(measures: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """A line for each measure over the steps of a run's checkpoints, in a box of 100 × 100."""
    found = []
    for name, rows in measures.items():
        values = [value for _, value in rows]
        low, wide = min(values), (max(values) - min(values)) or 1.0
        first, last = rows[0][0], rows[-1][0]
        points = " ".join(
            f"{100 * (step - first) / (last - first):.1f},{100 - 100 * (value - low) / wide:.1f}"
            for step, value in rows
        )
        found.append({"name": name, "points": points, "rows": rows})
    return found
