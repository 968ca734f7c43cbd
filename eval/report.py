"""What was found, as one dictionary: `report.json`, from which the page is made.

format           of this file: 1
suite            name, SHA-256, prompts, seeds a prompt
measures         name → unit, higher_is_better (null: neither), says, backbone
contenders       name, identity, means by measure, videos (prompt, seed, file), broken and odd
                 files, where it came from
comparisons      of each other with the first: verdict, and by measure delta, low, high (95 %),
                 wins, ties, losses, p, adjusted p, detectable, floor
totals           VBench's quality, semantic, total, or which dimensions they lack; where others
                 stand in for those, quality_substituted and so on
prompts          each with every contender's values, the largest regressions first
validation       what each run recorded while it trained: step → loss
levels           the same at fixed noise levels, bucket by bucket, at each checkpoint's step
learning         of runs with several checkpoints here: measure → (step, mean)
cost             seconds a video: by measure, of what was measured now; and by contender, of
                 sampling, when it was sampled (null: unknown)
configuration    keys in which the contenders' runs differ
votes            Bradley–Terry scores, and which measures foretell them; null: none
self_test        what planted faults did to the measures; null: not run
provenance       commit, versions, command, date
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from eval import ballot, preference, provenance, recorded, stats, totals
from eval.contenders import Contender
from eval.measures.measure import Measure
from eval.scoring import Table
from eval.stats import Draws, compare, holm, plain
from eval.suite import Suite
from eval.video_out import whole
from recipes.evaluation import Evaluation

FORMAT = 1


def report(
    config: Evaluation,
    suite: Suite,
    measures: Sequence[Measure],
    contenders: Sequence[Contender],
    tables: Sequence[Table],
    self_test: dict[str, Any] | None,
    out: Path,
) -> dict[str, Any]:
    """Everything that the page shows; plain values.

    Args:
        out: where votes may lie (eval/vote.py).
    """
    draws = Draws([one.text for one in suite.prompts], config.resamples)
    names = labels([one.name for one in contenders])
    return {
        "format": FORMAT,
        "suite": {
            "name": suite.name,
            "sha256": suite.sha256,
            "prompts": len(suite.prompts),
            "seeds": config.seeds,
        },
        "measures": {
            one.name: {
                "unit": one.unit,
                "higher_is_better": one.higher_is_better,
                "says": one.says,
                "backbone": one.backbone,
            }
            for one in measures
        },
        "contenders": [
            {
                "name": name,
                "path": one.name,
                "identity": one.identity,
                "means": {measure: plain(found.mean) for measure, found in table.scores.items()},
                "videos": [
                    [*key, str(path.absolute())] for key, path in sorted(one.videos.items())
                ],
                "broken": table.broken,
                "odd": one.odd,
                "about": {k: v for k, v in one.about.items() if k != "run"},
            }
            for name, one, table in zip(names, contenders, tables, strict=True)
        ],
        "comparisons": [
            compared(names[0], name, measures, tables[0], table, draws)
            for name, table in zip(names[1:], tables[1:], strict=True)
        ],
        "totals": [
            vbenchs(names[0], name, measures, tables[0], table, draws)
            for name, table in zip(names[1:], tables[1:], strict=True)
        ],
        "prompts": by_prompt(suite, measures, tables),
        "validation": recorded.curves(names, contenders),
        "levels": recorded.levels(names, contenders),
        "learning": recorded.learning(contenders, measures, tables),
        "cost": {
            "measuring": seconds_of([table.seconds for table in tables]),
            "sampling": {
                name: sampling_seconds(one) for name, one in zip(names, contenders, strict=True)
            },
        },
        "configuration": differing(names, [one.about.get("run") for one in contenders]),
        "votes": voted(out, names, contenders, measures, tables),
        "self_test": self_test,
        "provenance": {
            "commit": provenance.commit(),
            "versions": provenance.versions(),
            "command": shlex.join(["python", *sys.argv]),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "configuration": asdict(config),
        },
    }


def compared(
    first: str,
    second: str,
    measures: Sequence[Measure],
    before: Table,
    after: Table,
    draws: Draws,
) -> dict[str, Any]:
    """One contender with the first."""
    judged = [one.name for one in measures if one.higher_is_better is not None]
    found, left_out = {}, []
    for one in measures:
        pair = before.scores[one.name], after.scores[one.name]
        try:
            found[one.name] = compare(*pair, draws, max(1, len(judged)))
        except ValueError:  # nothing that both were measured on
            left_out.append(one.name)
    deciding = {name: one for name, one in found.items() if name in judged}
    adjusted = dict(zip(deciding, holm([one.p for one in deciding.values()]), strict=True))
    verdict = stats.verdict(deciding)
    return {
        "first": first,
        "second": second,
        "verdict": verdict.words,
        "better": list(verdict.better),
        "worse": list(verdict.worse),
        "measures": {name: one.told(adjusted.get(name)) for name, one in found.items()},
        "left_out": left_out,
    }


def vbenchs(
    first: str,
    second: str,
    measures: Sequence[Measure],
    before: Table,
    after: Table,
    draws: Draws,
) -> dict[str, Any]:
    """VBench's totals of both, or what they lack; with substitutes, under another name."""
    found: dict[str, Any] = {"first": first, "second": second}
    measured = [
        (one.name, one.dimension)
        for one in measures
        if all(np.isfinite(each.scores[one.name].values).any() for each in (before, after))
    ]
    for name in totals.TOTALS:
        of = totals.standing(name, measured)
        substitutes = {dimension: one for dimension, one in of.items() if one != dimension}
        if lacks := totals.missing(name, set(of) - set(substitutes)):
            found[name] = {"missing": lacks}
        if totals.missing(name, set(of)):
            continue
        pairs = [[table.scores[one] for one in of.values()] for table in (before, after)]
        values = stats.total(
            *pairs, lambda means, n=name, s=tuple(substitutes): totals.combine(n, means, s), draws
        )
        keys = ("first", "second", "delta")
        told = {
            key: {name: plain(number) for name, number in asdict(value).items()}
            for key, value in zip(keys, values, strict=True)
        }
        if substitutes:
            found[f"{name}_substituted"] = told | {"substitutes": substitutes}
        else:
            found[name] = told
    return found


def voted(
    out: Path,
    names: Sequence[str],
    contenders: Sequence[Contender],
    measures: Sequence[Measure],
    tables: Sequence[Table],
) -> dict[str, Any] | None:
    """What votes on these contenders say; None where there are none."""
    known = {one.identity: name for name, one in zip(names, contenders, strict=True)}
    texts = next(iter(tables[0].scores.values())).prompts if tables else ()
    votes = ballot.votes_of(out, known, texts) if len(known) == len(names) > 1 else []
    if not votes:
        return None
    values: dict[str, dict[tuple[str, int, int], float]] = {}
    for one in measures:
        if one.higher_is_better is None:
            continue
        sign = 1 if one.higher_is_better else -1
        values[one.name] = {
            (name, i, j): sign * table.scores[one.name].values[i, j]
            for name, contender, table in zip(names, contenders, tables, strict=True)
            for i, j in contender.videos
            if np.isfinite(table.scores[one.name].values[i, j])
        }
    weights, agreement = preference.foretelling(votes, values)
    return {
        "count": len(votes),
        "scores": {n: asdict(v) for n, v in preference.bradley_terry(votes, names).items()},
        "weights": {n: asdict(v) for n, v in weights.items()},
        "agreement": plain(agreement),
    }


def seconds_of(spent: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    """Mean seconds of each measure, over the videos of all contenders."""
    together: dict[str, list[float]] = {}
    for one in spent:
        for name, seconds in one.items():
            together.setdefault(name, []).extend(seconds)
    return {name: float(np.mean(seconds)) for name, seconds in together.items()}


def sampling_seconds(one: Contender) -> float | None:
    """Mean over videos, as the JSON beside each tells it."""
    spent = []
    for path in one.videos.values():
        try:
            told = json.loads(path.with_suffix(".json").read_text("utf-8"))
            spent.append(sum(told["took_s"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return float(np.mean(spent)) if spent else None


def by_prompt(
    suite: Suite, measures: Sequence[Measure], tables: Sequence[Table]
) -> list[dict[str, Any]]:
    """Each prompt's values, those first that lost most: the mean over measures of how many standard
    deviations of the first contender the last one fell."""
    rows = []
    falls, counts = np.zeros(len(suite.prompts)), np.zeros(len(suite.prompts))
    for one in measures:
        if len(tables) < 2 or one.higher_is_better is None:
            continue
        before, after = (table.scores[one.name].by_prompt for table in (tables[0], tables[-1]))
        there = np.isfinite(before) & np.isfinite(after)
        spread = np.std(before[there]) if there.any() else 0
        if spread > 0:
            sign = 1 if one.higher_is_better else -1
            falls[there] += sign * (before - after)[there] / spread
            counts[there] += 1
    falls /= np.maximum(counts, 1)
    for i in np.argsort(-falls, kind="stable"):
        values = {
            one.name: [[plain(v) for v in table.scores[one.name].values[i]] for table in tables]
            for one in measures
        }
        prompt = suite.prompts[i]
        rows.append(
            {"number": int(i), "prompt": prompt.text, "fall": plain(falls[i]), "values": values}
        )
    return rows


def differing(names: Sequence[str], runs: Sequence[dict[str, Any] | None]) -> dict[str, list[Any]]:
    """Keys whose values are not the same in all runs, with each contender's."""
    flat = [flattened(run["config"]) if run else {} for run in runs]
    keys = sorted({key for one in flat for key in one})
    found = {key: [one.get(key) for one in flat] for key in keys}
    return {key: row for key, row in found.items() if any(one != row[0] for one in row)}


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    found = {}
    for name, value in tree.items():
        found |= flattened(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def labels(paths: Sequence[str]) -> list[str]:
    """Short names that are all different: the last parts of the paths that tell them apart; one
    that is there again is numbered."""
    different = list(dict.fromkeys(paths))
    parts = [Path(one).parts or (one,) for one in different]
    depth = 1  # two spellings of one path are one
    while len({one[-depth:] for one in parts}) < len(set(parts)):
        depth += 1
    short = {path: "/".join(one[-depth:]) for path, one in zip(different, parts, strict=True)}
    found = [short[path] for path in paths]
    return [
        f"{one} ({found[:k].count(one) + 1})" if one in found[:k] else one
        for k, one in enumerate(found)
    ]


def write(found: dict[str, Any], out: Path) -> None:
    """`report.json`."""
    with whole(out / "report.json") as part:
        part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


def write_vbenchs(contenders: Sequence[Contender], tables: Sequence[Table], out: Path) -> None:
    """`vbench-<identity>.json` of each: `{dimension: [mean, [{video_path, video_results}, …]]}`, as
    VBench's own tools read it, with what bears VBench's names and nothing else."""
    known = {*totals.QUALITY, *totals.SEMANTIC}
    for one, table in zip(contenders, tables, strict=True):
        content = {}
        for name in sorted(known & set(table.scores)):
            values = table.scores[name].values
            rows = [
                {"video_path": str(path), "video_results": float(values[key])}
                for key, path in sorted(one.videos.items())
                if np.isfinite(values[key])
            ]
            if rows:
                content[name] = [float(np.mean([row["video_results"] for row in rows])), rows]
        with whole(out / f"vbench-{one.identity}.json") as part:
            part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def closing(found: dict[str, Any], out: Path) -> list[str]:
    """What the terminal says at the end."""
    lines = ["Evaluated"]
    for one in found["contenders"]:
        troubles = len(one["broken"]) + len(one["odd"])
        lines.append(
            f" {one['name']}" + (f"  ({troubles} notes in the report)" if troubles else "")
        )
    for one in found["comparisons"]:
        lines.append(f" {one['second']} against {one['first']}: {one['verdict']}")
    if found["self_test"]:
        faults = found["self_test"]["faults"]
        failed = [row["fault"] for row in faults if not row["noticed"]]
        said = f"not noticed: {', '.join(failed)}" if failed else "all faults noticed"
        lines.append(f" self-test: {said if faults else 'no fault is for these measures'}")
    return [*lines, f" took   {found['took_s']} s", f" report {out / 'report.html'}"]
