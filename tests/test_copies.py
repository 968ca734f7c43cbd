"""Of near-duplicates the best stays, and they are found again when they must be."""

import itertools
import random

import numpy as np
import pytest

from curation import neighbours, scorer
from curation.catalog import Catalog
from tests import rows
from tests.deciding import clip, decided, near, select


@pytest.fixture(autouse=True)
def made_up_scorers(monkeypatch):
    monkeypatch.setattr(scorer, "REGISTRY", rows.registry())


@pytest.fixture
def catalog(tmp_path):
    with Catalog(tmp_path) as one:
        yield one


def test_of_two_copies_the_larger_stays_then_the_one_with_more_bits_then_the_first(catalog):
    one, two, three = rows.vector("1"), rows.vector("2"), rows.vector("3")
    catalog.write(
        rows.merged(
            clip("small", one, size=(640, 360), bits_per_pixel=0.9),
            clip("large", near(one, 0.97, "x"), size=(1280, 720), bits_per_pixel=0.1),
            clip("few", two, bits_per_pixel=0.1),
            clip("many", near(two, 0.97, "y"), bits_per_pixel=0.2),
            clip("first", three),
            clip("second", near(three, 0.97, "z")),
            clip("alike", near(three, 0.93, "w")),
        )
    )
    select(catalog, duplicate_similarity=0.95)
    fallen = {name for name, reason in decided(catalog).items() if reason}
    assert fallen == {"small", "few", "second"}
    assert set(decided(catalog).values()) == {None, "duplicate_similarity"}


def test_a_copy_that_fails_a_threshold_itself_takes_no_other_with_it(catalog):
    base = rows.vector("1")
    catalog.write(
        rows.merged(
            clip("blurred", base, size=(1920, 1080), sharpness=0.1),
            clip("sharp", near(base, 0.97, "x"), size=(640, 360), sharpness=0.9),
        )
    )
    select(catalog, duplicate_similarity=0.95, min_sharpness=0.5)
    assert decided(catalog) == {"blurred": "min_sharpness", "sharp": None}


def test_a_copy_without_a_caption_does_not_replace_one_that_has_one(catalog):
    base = rows.vector("1")
    mute = clip("mute", base, size=(1920, 1080)) | {"captions": []}
    catalog.write(rows.merged(mute, clip("told", near(base, 0.97, "x"), size=(640, 360))))
    select(catalog, duplicate_similarity=0.95, require_caption=True)
    assert decided(catalog) == {"mute": "duplicate_similarity", "told": None}
    select(catalog, duplicate_similarity=0.95, require_caption=False)
    assert decided(catalog) == {"mute": None, "told": "duplicate_similarity"}


def test_in_a_chain_of_copies_no_two_similar_clips_stay_and_none_falls_without_one(catalog):
    # On a circle in one plane, 12 degrees apart: each is similar to its two neighbours alone.
    x, y = rows.vector("x"), rows.vector("y")
    y = (y - (x @ y) * x) / np.linalg.norm(y - (x @ y) * x)
    angles = [np.deg2rad(12 * i) for i in range(12)]
    vectors = [(np.cos(a) * x + np.sin(a) * y).astype(np.float32) for a in angles]
    order = list(range(12))
    random.Random(3).shuffle(order)
    catalog.write(
        rows.merged(
            *(clip(f"c{i:02d}", v, bits_per_pixel=order[i] / 12) for i, v in enumerate(vectors))
        )
    )
    select(catalog, duplicate_similarity=0.95)
    stays = [decided(catalog)[f"c{i:02d}"] is None for i in range(12)]
    assert stays[order.index(11)]  # the best of all
    assert not any(a and b for a, b in itertools.pairwise(stays))
    for i in range(12):
        beside = [j for j in (i - 1, i + 1) if 0 <= j < 12]
        better = [j for j in beside if stays[j] and order[j] > order[i]]
        assert stays[i] == (not better)


def test_of_hundreds_of_copies_one_stays_though_not_every_pair_is_listed(catalog):
    base = rows.vector("black")
    many = rows.batch("film", clips=5 * neighbours.MOST)
    for i, row in enumerate(many["embeddings"]):
        row["vector"] = near(base, 0.9999, f"n{i}")
    for i, row in enumerate(many["basic"]):
        row["sharpness"] = i % 2
    catalog.write(many)
    funnel = select(catalog, duplicate_similarity=0.95, min_sharpness=0.5)
    assert len(catalog.query("FROM duplicates")) <= neighbours.MOST * 5 * neighbours.MOST
    assert funnel.kept == 1
    assert [one.alone for one in funnel.criteria if one.name == "duplicate_similarity"] == [
        5 * neighbours.MOST - 1
    ]


def test_neighbours_are_found_again_only_when_what_they_come_from_changed(catalog, monkeypatch):
    asked = []
    real = neighbours.pairs
    monkeypatch.setattr(neighbours, "pairs", lambda *a, **k: asked.append(1) or real(*a, **k))
    base = rows.vector("1")
    catalog.write(rows.merged(clip("a", base), clip("b", near(base, 0.97, "x"))))
    select(catalog)
    select(catalog, profile="480p")
    assert len(asked) == 1
    assert len(catalog.query("FROM duplicates")) == 1
    catalog.write(clip("c", rows.vector("far")))
    select(catalog)
    assert len(catalog.query("FROM duplicates")) == 1
    moved = {"clip_id": "c-00000000-00000100", "model": "made-up", "vector": base}
    catalog.update({"embeddings": [moved]})
    select(catalog)
    assert len(asked) == 3
    before = [catalog.query(f"FROM {one} ORDER BY ALL") for one in ("duplicates", "clusters")]
    assert len(before[0]) == 3
    catalog.write(clip("b", near(base, 0.97, "x")))  # the very same again
    select(catalog)
    after = [catalog.query(f"FROM {one} ORDER BY ALL") for one in ("duplicates", "clusters")]
    assert after == before
    lesser = {"clip_id": before[0][0]["duplicate_of"], "crop_w": 64}
    catalog.update({"clips": [lesser]})
    select(catalog)
    listed = {row["clip_id"] for row in catalog.query("FROM duplicates")}
    assert lesser["clip_id"] in listed
    catalog.write({"videos": [clip("c")["videos"][0] | {"status": "error", "error": "gone"}]})
    select(catalog)
    assert len(catalog.query("FROM duplicates")) == 1
    assert len(catalog.query("FROM clusters")) == 2
