"""No source and no copy stands in both train and val."""

import random

import pytest

from curation import scorer
from curation.catalog import Catalog
from curation.holdout import groups
from tests import rows
from tests.deciding import clip, decided, near, select


@pytest.fixture(autouse=True)
def made_up_scorers(monkeypatch):
    monkeypatch.setattr(scorer, "REGISTRY", rows.registry())


@pytest.fixture
def catalog(tmp_path):
    with Catalog(tmp_path) as one:
        yield one


def test_no_source_and_no_copy_stands_on_both_sides(catalog):
    bases = [rows.vector(f"base{i}") for i in range(20)]
    batches = []
    for i in range(120):
        base = bases[i // 3] if i < 60 else rows.vector(f"own{i}")  # twenty groups of three videos
        one = rows.batch(f"v{i:03d}", clips=3)
        one["embeddings"][1]["vector"] = near(base, 0.98, f"n{i}")
        batches.append(one)
    catalog.write(rows.merged(*batches))
    funnel = select(catalog, profile="tiny", val_share=0.2)
    found = catalog.query(
        "SELECT video_id, list(DISTINCT split) AS splits FROM decisions JOIN clips USING (clip_id) "
        "GROUP BY ALL"
    )
    side = {row["video_id"]: row["splits"] for row in found}
    assert all(len(splits) == 1 for splits in side.values())
    for group in range(20):
        assert len({tuple(side[f"v{3 * group + i:03d}"]) for i in range(3)}) == 1
    in_val = [video for video, splits in side.items() if splits == ["val"]]
    assert 8 <= len(in_val) <= 45  # of 80 groups of one to three videos, a fifth
    assert funnel.val == 3 * len(in_val)
    before = decided(catalog, "split")
    select(catalog, profile="480p", val_share=0.2, min_sharpness=0.9)
    assert decided(catalog, "split", "480p") == before


@pytest.mark.parametrize("share", [0.02, 1.0])
@pytest.mark.parametrize("count", [2, 5])
def test_val_has_at_least_one_source_and_never_all(catalog, share, count):
    catalog.write(rows.merged(*(clip(f"v{i}") for i in range(count))))
    select(catalog, val_share=share)
    sides = list(decided(catalog, "split").values())
    assert sides.count("val") == (1 if share < 0.5 else count - 1)


def test_the_one_source_held_out_for_want_of_others_is_not_too_short_to_be_kept(catalog):
    many = [clip(f"v{i}") for i in range(9)]
    for i, one in enumerate(many):
        one["clips"][0]["length_4k1"] = {2: 81, 5: 121}.get(i, 17)
    catalog.write(rows.merged(*many))
    select(catalog)
    held = {name for name, split in decided(catalog, "split").items() if split == "val"}
    assert len(held) == 1
    assert held < {"v2", "v5"}


def test_a_lone_source_is_for_training_and_a_share_of_nothing_holds_out_nothing(catalog):
    catalog.write(clip("a"))
    select(catalog, val_share=0.5)
    assert decided(catalog, "split") == {"a": "train"}
    catalog.write(rows.merged(*(clip(f"v{i}") for i in range(9))))
    select(catalog, val_share=0.0)
    assert set(decided(catalog, "split").values()) == {"train"}


def test_linked_names_are_one_group_however_the_links_are_given():
    chance = random.Random(1)
    links = [(f"n{i:03d}", f"n{i + 2:03d}") for i in range(200)]
    chance.shuffle(links)
    links = [pair if chance.random() < 0.5 else pair[::-1] for pair in links]
    found = groups(links)
    assert len(found) == 202
    assert {found[f"n{i:03d}"] for i in range(0, 202, 2)} == {"n000"}
    assert {found[f"n{i:03d}"] for i in range(1, 202, 2)} == {"n001"}
    assert groups([]) == {}
