"""The report says what the catalog holds."""

import dataclasses
import re

import numpy as np
import pytest

from curation import report, scorer, selection
from recipes.schema import Select
from tests import reporting, rows
from tests.reporting import HOSTILE, Page, options
from tests.running import ROOT

CLIP = {"clip_id", "name", "start_s", "end_s", "width", "height", "kept", "reason"}


@pytest.fixture(autouse=True)
def made_up_scorers(monkeypatch):
    monkeypatch.setattr(scorer, "REGISTRY", rows.registry())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with reporting.made(tmp_path_factory.mktemp("made")) as found:
        yield found


def test_the_totals_are_those_of_the_catalog(made):
    catalog, _, facts, _ = made
    (videos,) = catalog.query(
        "SELECT count(*) n, count_if(status = 'error') b, sum(duration_s) s FROM videos"
    )
    (clips,) = catalog.query("SELECT count(*) n, sum(end_s - start_s) s FROM clips")
    (kept,) = catalog.query(
        "SELECT count(*) n, sum(end_s - start_s) s FROM clips WHERE clip_id IN "
        "(SELECT clip_id FROM decisions WHERE kept AND profile = '480p')"
    )
    assert facts["totals"] == {
        "files": videos["n"],
        "broken": videos["b"],
        "images": 1,
        "without_clips": 0,
        "video_s": videos["s"],
        "clips": clips["n"],
        "clip_s": clips["s"],
        "kept": kept["n"],
        "kept_s": kept["s"],
    }
    assert (videos["n"], videos["b"], clips["n"]) == (11, 3, 15)
    assert 0 < kept["n"] < clips["n"]


def test_the_funnel_drops_what_the_decisions_say(made):
    catalog, config, facts, _ = made
    reasons = catalog.query(
        "SELECT reason, count(*) n FROM decisions WHERE profile = '480p' AND NOT kept GROUP BY ALL"
    )
    dropped = {row["criterion"]: row["dropped"] for row in facts["funnel"] if row["dropped"]}
    assert dropped == {row["reason"]: row["n"] for row in reasons}
    assert {"min_sharpness", "max_text_area", "min_short_side", "tiers"} <= dropped.keys()
    left = facts["totals"]["clips"]
    for row in facts["funnel"]:
        left -= row["dropped"]
        assert row["left"] == left
        assert row["limit"] == getattr(config.select, row["criterion"])
    assert left == facts["totals"]["kept"]


def test_criteria_of_one_step_stand_together(made):
    catalog, before, _, _ = made
    scores = " ".join(rows.DOUBLES.values()).split()
    keys = {field.name for field in dataclasses.fields(Select)}
    every = {f"{side}_{name}": 0.5 for name in scores for side in ("min", "max")}
    every = {key: limit for key, limit in every.items() if key in keys}
    config = options(catalog.folder, **every, cluster_quota=1, min_duration_s=1.0)
    found = selection.select(catalog, config)
    with catalog.reading() as con:
        funnel = report.funnel(con, found)
    selection.select(catalog, before)  # as it was
    steps = [row["step"] for row in funnel]
    assert list(dict.fromkeys(steps)) == ["basic", "visual", "motion", "duplicates", "captions"]
    assert steps == sorted(steps, key=list(dict.fromkeys(steps)).index)


def test_every_numeric_column_with_data_has_a_histogram_that_counts_all_its_clips(made):
    catalog, _, facts, _ = made
    for step, names in rows.DOUBLES.items():
        for name in names.split():
            (there,) = catalog.query(f'SELECT count("{name}") n FROM {step}')
            score = facts["scores"][name]
            assert score["step"] == step
            assert sum(score["counts"]) == score["clips"] == there["n"]
            assert len(score["edges"]) == len(score["counts"]) + 1 == len(score["kept"]) + 1
            assert all(k <= n for k, n in zip(score["kept"], score["counts"], strict=True))
    # from the clips' shape: an image has no duration, but a size
    assert sum(facts["scores"]["duration_s"]["counts"]) == 14
    assert sum(facts["scores"]["short_side"]["counts"]) == 15
    assert (
        facts["scores"]["short_side"]["quantiles"] | {"0": 360, "100": 720}
        == (facts["scores"]["short_side"]["quantiles"])
    )


def test_the_kept_bars_count_the_kept_clips(made):
    _, _, facts, _ = made
    assert sum(facts["scores"]["sharpness"]["kept"]) == facts["totals"]["kept"]


@pytest.mark.parametrize(
    ("name", "step", "side"),
    [("sharpness", "basic", "min"), ("text_area", "basic", "max")],
)
def test_the_clips_beside_a_threshold_are_the_nearest_on_their_side(made, name, step, side):
    catalog, config, facts, _ = made
    at = getattr(config.select, f"{side}_{name}")
    values = [row["v"] for row in catalog.query(f"SELECT {name} AS v FROM {step} ORDER BY v")]
    passes = [v for v in values if (v >= at if side == "min" else v <= at)]
    fails = [v for v in values if not (v >= at if side == "min" else v <= at)]
    assert at in passes  # one that equals it, which passes
    nearest = {
        "inside": sorted(sorted(passes, key=lambda v: abs(v - at))[: report.NEAR]),
        "outside": sorted(sorted(fails, key=lambda v: abs(v - at))[: report.NEAR]),
    }
    border = facts["scores"][name]["borders"][side]
    assert {k: [row["value"] for row in some] for k, some in border.items()} == nearest
    ids = {row["clip_id"] for some in border.values() for row in some}
    truth = {
        row["clip_id"]: row
        for row in catalog.query(
            f"SELECT clip_id, {name} AS v, kept FROM {step} JOIN decisions d "
            "USING (clip_id) WHERE profile = '480p'"
        )
    }
    for some in border.values():
        for row in some:
            assert (row["value"], row["kept"]) == (
                truth[row["clip_id"]]["v"],
                truth[row["clip_id"]]["kept"],
            )
    assert len(ids) == len(nearest["inside"]) + len(nearest["outside"])


def test_the_examples_are_the_ends_and_the_middle_and_none_stands_twice(made):
    catalog, _, facts, _ = made
    values = [r["v"] for r in catalog.query("SELECT sharpness AS v FROM basic ORDER BY v")]
    found = facts["scores"]["sharpness"]["examples"]
    assert [row["value"] for row in found["low"]] == values[: report.ENDS]
    assert [row["value"] for row in found["high"]] == values[-report.ENDS :]
    assert [row["value"] for row in found["middle"]] == values[6:9]
    ids = [row["clip_id"] for place in found.values() for row in place]
    assert len(ids) == len(set(ids)) == 3 * report.ENDS


def test_a_histogram_shows_the_bulk_and_its_threshold_and_counts_what_lies_beyond():
    value = np.append(np.linspace(0, 0.02, 5000), [0.9, 1.0])
    found = report.histogram(value, value < 0.01, [0.03], "0–1")
    assert 0.03 < found["edges"][-1] < 0.05
    assert found["above"] == 2
    assert found["below"] == 0
    assert sum(found["counts"]) == 5002
    assert found["counts"][-1] == 2
    assert 0.03 in found["edges"]


@pytest.mark.parametrize(
    ("value", "limits"),
    [([0.0], []), ([5.0, 5.0], []), ([-3.0, 2.0], [1.0]), ([1e-9], [0.5]), ([1.0], [1.0]),
     ([1e6, 2e6], [-1.0]), ([0.0, 0.0], [0.0])],
)  # fmt: skip
def test_a_histogram_holds_every_value_and_threshold_on_its_axis(value, limits):
    found = report.histogram(np.array(value), np.ones(len(value), bool), limits, "")
    assert sum(found["counts"]) == sum(found["kept"]) == len(value)
    assert (found["below"], found["above"]) == (0, 0)
    assert all(found["edges"][0] <= at <= found["edges"][-1] for at in (*value, *limits))
    assert np.all(np.diff(found["edges"]) > 0)
    assert 10 <= len(found["counts"]) <= 80


def test_tiers_buckets_captions_and_sizes_are_those_of_the_catalog(made):
    catalog, _, facts, _ = made
    tiers = catalog.query("SELECT tier, count(*) n FROM motion GROUP BY ALL")
    assert {r["tier"]: r["clips"] for r in facts["tiers"]} == {r["tier"]: r["n"] for r in tiers}
    assert {r["tier"]: r["weight"] for r in facts["tiers"]} == {"optimal": 1.0, "low": 0.0}
    assert sum(row["clips"] for row in facts["buckets"]) == facts["totals"]["kept"]
    assert [(r["language"], r["captions"]) for r in facts["captions"]["kinds"]] == [
        ("en", 15),
        ("zh", 14),
    ]
    for one in facts["captions"]["examples"]:
        assert [text["language"] for text in one["texts"]] == ["en", "zh"]
    assert sum(row["files"] for row in facts["sizes"]["shown"]) == 8


def test_errors_are_counted_by_kind(made):
    _, _, facts, html = made
    assert [(kind["files"], kind["names"]) for kind in facts["errors"]] == [
        (2, ["a.mp4", "b.mp4"]),
        (1, [f"b/{HOSTILE}"]),
    ]
    assert "cannot be opened" in Page(html).text


def test_duplicates_name_the_pair_and_what_became_of_it(made):
    catalog, _, facts, html = made
    (pair,) = catalog.query("SELECT * FROM duplicates")
    (shown,) = facts["duplicates"]["alike"]
    assert (facts["duplicates"]["pairs"], facts["duplicates"]["near"]) == (1, 0)
    assert (shown["clip"]["clip_id"], shown["of"]["clip_id"]) == (
        pair["clip_id"],
        pair["duplicate_of"],
    )
    assert "1 pair of clips" in Page(html).text


def test_another_threshold_gives_another_report(made, tmp_path):
    catalog, config, before, _ = made
    other = options(tmp_path, min_sharpness=0.1)
    found = selection.select(catalog, other)
    with catalog.reading() as con:
        facts = report.collect(con, other, found)
    selection.select(catalog, config)  # as it was
    assert facts["totals"]["kept"] > before["totals"]["kept"]
    assert facts["scores"]["sharpness"]["borders"]["min"]["inside"][0]["value"] == 0.1


def patterns(value, path: str = "") -> set[str]:
    """Every path to a value in report.json; `<…>` for keys that are names of something."""
    if re.fullmatch(r"run\.configuration|funnel\[\]\.limit", path):
        return {path}
    if isinstance(value, list):
        if not value or not isinstance(value[0], dict | list):
            return {path}
        return set().union(*(patterns(one, f"{path}[]") for one in value))
    if not isinstance(value, dict):
        return {path}
    if value.keys() >= CLIP:  # a clip is described once
        rest = {k: v for k, v in value.items() if k not in CLIP | {"value"}}
        return {path} | set().union(set(), *(patterns(v, f"{path}.{k}") for k, v in rest.items()))
    names = {"scores": "<score>", "run.versions": "<package>"}
    found: set[str] = set()
    for key, one in value.items():
        name = names.get(path, key)
        if path.endswith((".limits", ".borders")):
            name = "<side>"
        if path.endswith(".quantiles"):
            name = "<percent>"
        found |= patterns(one, f"{path}.{name}".removeprefix("."))
    return found


def test_the_keys_of_report_json_are_those_that_data_readme_explains(made):
    _, _, facts, _ = made
    section = (ROOT / "data/README.md").read_text("utf-8").partition("\n## The report\n")[2]
    section = section.partition("\n## ")[0]
    told = set()
    for line in re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE):
        base = ""
        for name in re.findall(r"`(.+?)`", line):
            base = name.rpartition(".")[0] if not name.startswith(".") else base
            told.add(f"{base}{name}" if name.startswith(".") else name)
    assert CLIP | {"value"} <= set(re.findall(r"`(\w+)`", section))
    empty = {"shards[].split", "shards[].shards", "shards[].samples", "shards[].bytes"}
    written = patterns(facts) - {"shards", "duplicates.inside", "duplicates.outside"} | empty
    written.discard("scores.<score>.borders.<side>.outside")  # where nothing fails
    pair = {
        f"duplicates.{k}[].{v}" for k in ("inside", "outside") for v in ("similarity", "clip", "of")
    }
    written = {
        re.sub(r"duplicates\.(alike|inside|outside)", "duplicates.<kind>", w)
        for w in written | pair
    }
    assert told == written
