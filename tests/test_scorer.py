"""What the catalog promises of its scores, and what a scorer may return."""

import numpy as np
import pytest

from curation import analyse, scorer
from curation.schema import tables
from recipes.schema import Curation

PROMISED = {
    "basic": "duration_s short_side aspect_ratio bits_per_pixel border_area luma_mean overexposed "
    "underexposed sharpness text_area nsfw watermark watermark_box synthetic",
    "visual": "colorfulness contrast noise blockiness quality aesthetic",
    "motion": "flow_mean flow_peak camera_share subject_motion shake freeze flicker tier",
}


@pytest.mark.parametrize("step", PROMISED)
def test_every_score_that_is_promised_has_its_column_and_a_scorer(step):
    columns = {name for one in scorer.REGISTRY.values() if one.step == step for name in one.columns}
    assert set(PROMISED[step].split()) <= columns
    assert columns <= tables()[step].columns.keys()


def test_each_set_fills_each_column_once():
    for chosen in ("light", "full"):
        config = Curation(scorers=chosen)
        names = [name for one in analyse.chosen(config) for name in one.columns]
        assert len(names) == len(set(names))
    assert "aesthetic" in names


def test_borders_are_found_before_anything_looks_inside_them():
    names = [one.name for one in analyse.chosen(Curation())]
    assert names[0] == "border"
    assert names.index("tier") > names.index("speed")


def test_the_order_of_imports_changes_nothing(monkeypatch):
    names = [one.name for one in analyse.in_order()]
    upside_down = dict(reversed(scorer.REGISTRY.items()))
    monkeypatch.setattr(analyse, "REGISTRY", upside_down)
    assert [one.name for one in analyse.in_order()] == names


def test_every_scorer_says_where_it_comes_from_and_in_what_unit():
    for one in scorer.REGISTRY.values():
        assert one.source
        assert one.version
        assert all(column.meaning and column.unit for column in one.columns.values())


def clip(frames: int) -> scorer.Clip:
    gray = np.zeros((frames, 9, 16), np.uint8)
    rgb = np.zeros((1, 9, 16, 3), np.uint8)
    return scorer.Clip(gray, np.arange(frames) / 25, rgb, [gray[0]], np.array([0]), 16, 9, 25.0, 0)


def test_a_scorer_that_returns_other_columns_than_it_declared_is_an_error(monkeypatch):
    monkeypatch.setattr(scorer, "REGISTRY", {})
    declared = {"a": scorer.Column("0–1", "one")}
    scorer.scorer("basic", version="1", source="here", **declared)(lambda clip: {"b": 1.0})
    (wrong,) = scorer.REGISTRY.values()
    with pytest.raises(ValueError, match=r"returned \['b'\], declared \['a'\]"):
        scorer.score(clip(3), [wrong])


def test_an_image_gets_null_where_only_video_has_a_score():
    chosen = [one for one in analyse.chosen(Curation()) if one.step == "motion"]
    row = scorer.score(clip(1), chosen)["motion"]
    assert {row[name] for name in PROMISED["motion"].split()} == {None}
    assert row["versions"].keys() == {one.name for one in chosen}
