"""Prompts as data: ours, lines, objects, and VBench's own file."""

import json
from dataclasses import replace

import numpy as np
import pytest

from eval import report, totals
from eval.measures import rendered
from eval.measures.measure import Measure
from eval.scoring import Table
from eval.stats import Draws, Scores
from eval.suite import read_suite
from recipes.keys import UsageError


def test_the_rendered_suite_asks_for_everything_in_both_languages():
    suite = read_suite("rendered")
    asked = [rendered.wanted(one.text) for one in suite.prompts]
    assert len(asked) == 96
    assert all(set(one) == {"color", "shape", "direction"} for one in asked)
    combinations = {tuple(one.values()) for one in asked}
    assert len(combinations) == 4 * 3 * 4
    assert sum(one.text.isascii() for one in suite.prompts) == 48
    first = [rendered.wanted(one.text)["color"] for one in read_suite("rendered", 24).prompts]
    assert len(set(first)) == 4  # the first few are a fair sample


def test_vbenchs_file_is_read_as_it_is(tmp_path):
    color, thing = {"color": {"color": "red"}}, {"object_class": {"object": "cat"}}
    rows = [
        {"prompt_en": "a red bicycle", "dimension": ["color"], "auxiliary_info": color},
        {"prompt_en": "a cat", "dimension": ["subject_consistency", "dynamic_degree"]},
        {"prompt_en": "a cat", "dimension": ["object_class"], "auxiliary_info": thing},
    ]
    path = tmp_path / "VBench_full_info.json"
    path.write_text(json.dumps(rows))
    red, cat = read_suite(str(path)).prompts
    assert (red.dimensions, red.asked) == (("color",), {"color": "red"})
    assert cat.dimensions == ("subject_consistency", "dynamic_degree", "object_class")
    assert cat.asked == {"object_class": {"object": "cat"}}


def test_lines_and_objects_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\n\n一只猫\n", "utf-8")
    assert [one.text for one in read_suite(str(tmp_path / "a.txt")).prompts] == ["a cat", "一只猫"]
    row = {"prompt": "a cat", "dimensions": ["color"], "asked": {"color": "red"}}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (one,) = read_suite(str(tmp_path / "a.jsonl")).prompts
    assert (one.dimensions, one.asked) == (("color",), {"color": "red"})


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "a\nb\na\n", "'a' is there twice"),
        ("a.txt", "\n", "no prompt in it"),
        ("a.txt", b"\xff\xfe", "no UTF-8"),
        ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}', "line 2: wants an object"),
        ("a.jsonl", "a cat", "line 1: wants an object"),
        ("a.json", '{"a": 1}', "not of VBench's form"),
    ],
)
def test_what_is_no_suite_is_refused(name, content, says, tmp_path):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=says):
        read_suite(str(tmp_path / name))


def test_pictures_lie_beside_the_suite_or_where_it_is_said(tmp_path):
    """VBench-I2V's file, three rows of its form; and ours."""
    moves = {"prompt_en": "a cat, camera zooms out", "dimension": ["camera_motion"]}
    rows = [
        {"prompt_en": "a cat", "dimension": ["i2v_subject"], "image_name": "猫.png"},
        {"prompt_en": "a cat", "dimension": ["aesthetic_quality"], "image_name": "猫.png"},
        moves | {"image_name": "猫.png"},
    ]
    (tmp_path / "i2v.json").write_text(json.dumps(rows), "utf-8")
    (tmp_path / "ours.jsonl").write_text('{"prompt": "a cat", "image": "猫.png"}', "utf-8")
    with pytest.raises(UsageError, match="is not there; images= names its folder"):
        read_suite(str(tmp_path / "i2v.json"))
    (tmp_path / "crop").mkdir()
    (tmp_path / "crop" / "猫.png").touch()
    cat, moving = read_suite(str(tmp_path / "i2v.json"), images=str(tmp_path / "crop")).prompts
    assert cat.image == moving.image == tmp_path / "crop" / "猫.png"
    assert cat.dimensions == ("i2v_subject", "aesthetic_quality")
    assert moving.dimensions == ("camera_motion",)
    (tmp_path / "猫.png").touch()
    assert read_suite(str(tmp_path / "ours.jsonl")).prompts[0].image == tmp_path / "猫.png"


# --- VBench's totals -----------------------------------------------------------------------------


def test_totals_are_vbenchs():
    """cal_final_score.py restated, on drawn scores."""
    random = np.random.default_rng(0)
    names = [*totals.QUALITY, *totals.SEMANTIC]
    scores = dict(zip(names, random.random(16), strict=True))
    norms = totals.QUALITY | totals.SEMANTIC
    normal = {
        name: (scores[name] - norms[name][0]) / (norms[name][1] - norms[name][0]) * norms[name][2]
        for name in names
    }
    quality = sum(normal[name] for name in totals.QUALITY) / 6.5
    semantic = sum(normal[name] for name in totals.SEMANTIC) / 9
    found = totals.combine("total", np.array([scores[name] for name in names]))
    assert found == pytest.approx((4 * quality + semantic) / 5)
    # a whole stack of resamples at once
    many = random.random((5, 16))
    assert totals.combine("total", many).shape == (5,)
    assert totals.combine("total", many)[2] == pytest.approx(totals.combine("total", many[2]))


def test_a_total_lacks_what_was_not_measured():
    assert totals.missing("quality", set(totals.QUALITY)) == []
    assert totals.missing("total", set(totals.QUALITY)) == list(totals.SEMANTIC)


def test_substitutes_count_as_they_are_and_make_no_total_of_vbenchs():
    own = [(name, name) for name in totals.QUALITY if name != "motion_smoothness"]
    measured = [*own, ("smoothness_dis", "motion_smoothness"), ("smoother", "motion_smoothness")]
    of = totals.standing("quality", measured)
    assert tuple(of) == totals.TOTALS["quality"]
    assert of["motion_smoothness"] == "smoothness_dis"
    # to the letter it goes before whatever stands for it
    assert totals.standing("quality", [*measured, ("motion_smoothness",) * 2])[
        "motion_smoothness"
    ] == ("motion_smoothness")
    means = np.linspace(0.3, 0.9, 7)
    at = list(totals.QUALITY).index("motion_smoothness")
    plain = totals.combine("quality", means)
    substituted = totals.combine("quality", means, ["motion_smoothness"])
    low, high, weight = totals.QUALITY["motion_smoothness"]
    assert substituted - plain == pytest.approx(
        (means[at] - (means[at] - low) / (high - low)) * weight / 6.5
    )


def test_a_report_names_the_total_by_what_it_is_made_of():
    prompts, random = tuple("abcdef"), np.random.default_rng(0)
    substitutes = {"motion_smoothness": "smoothness_dis", "scene": "scene_blip"}
    measures = [
        Measure(substitutes.get(name, name), len, "0–1", True, "", stands_for=name)
        for name in totals.TOTALS["total"]
    ]
    tables = [
        Table({one.name: Scores(prompts, random.random((6, 2))) for one in measures})
        for _ in range(2)
    ]
    found = report.vbenchs("a", "b", measures, *tables, Draws(prompts, 200))
    assert found["total"] == {"missing": ["motion_smoothness", "scene"]}
    assert found["quality"] == {"missing": ["motion_smoothness"]}
    assert found["semantic_substituted"]["substitutes"] == {"scene": "scene_blip"}
    said = found["total_substituted"]
    assert said["substitutes"] == substitutes
    means = [np.array([table.scores[one.name].mean for one in measures]) for table in tables]
    one, two = (totals.combine("total", some, list(substitutes)) for some in means)
    assert said["first"]["value"] == pytest.approx(one)
    assert said["delta"]["value"] == pytest.approx(two - one)
    # with everything to the letter it is VBench's, and nothing else is
    letters = [replace(one, name=one.dimension, stands_for=None) for one in measures]
    for table in tables:
        table.scores = {
            new.name: table.scores[old.name] for new, old in zip(letters, measures, strict=True)
        }
    found = report.vbenchs("a", "b", letters, *tables, Draws(prompts, 200))
    assert set(found) == {"first", "second", *totals.TOTALS}
    # without a dimension there is none, whatever stands in for others
    for table in tables:
        table.scores = {name: one for name, one in table.scores.items() if name != "color"}
    letters = [one for one in letters if one.name != "color"]
    found = report.vbenchs("a", "b", letters, *tables, Draws(prompts, 200))
    assert found["total"] == found["semantic"] == {"missing": ["color"]}
    assert not [name for name in found if "substituted" in name]
