"""Losses of training samples by tier and by decile of a score."""

import math

import pytest
import torch

from training.module import Sample
from training.tally import LEAST, MOST, Tally, deciles


def test_distinct_scores_fill_ten_equal_deciles_in_order():
    values = torch.randperm(200, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(deciles(values), (values // 20).long() + 1)


def test_equal_scores_stand_together_in_the_decile_of_their_middle():
    values = torch.tensor([0.0] * 60 + [0.5 + n / 100 for n in range(40)])
    found = deciles(values)
    assert found[:60].unique().tolist() == [3]  # the middle of ranks 0 to 60 is at 30 %
    assert found[60:].tolist() == [7] * 10 + [8] * 10 + [9] * 10 + [10] * 10


def test_the_mean_loss_of_each_decile_is_that_of_its_samples():
    tally = Tally()
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1)).tolist()
    tally.add(Sample(str(n), None, {"aesthetic": n / 10}, loss=float(n // 50) ** 2) for n in order)
    assert tally.by_decile() == {"aesthetic": {one + 1: float(one**2) for one in range(10)}}


def test_the_mean_loss_of_each_tier_is_that_of_its_samples():
    tally = Tally()
    tally.add([Sample("a", "static", {}, 1.0), Sample("b", "static", {}, 3.0)])
    tally.add([Sample("c", "optimal", {}, 0.5), Sample("d", None, {}, 100.0)])
    assert tally.by_tier() == {"static": 2.0, "optimal": 0.5}


def test_scores_without_a_threshold_are_left_out_unless_there_are_no_others():
    tally = Tally()
    tally.add(Sample(str(n), None, {"shake": n, "clip": n}, 1.0) for n in range(LEAST))
    assert set(tally.by_decile()) == {"shake"}
    tally.clear()
    tally.add(Sample(str(n), None, {"theirs": n}, 1.0) for n in range(LEAST))
    assert set(tally.by_decile()) == {"theirs"}


@pytest.mark.parametrize("value", [None, "high", math.nan])
def test_samples_without_a_score_count_for_the_other_scores_only(value):
    tally = Tally()
    rows = range(2 * LEAST)
    tally.add(
        Sample(str(n), None, {"shake": n, "sharpness": n if n % 2 else value}, float(n % 2))
        for n in rows
    )
    assert set(tally.by_decile()["sharpness"].values()) == {1.0}
    assert set(tally.by_decile()["shake"].values()) == {0.5}


def test_a_score_seen_too_rarely_or_always_the_same_says_nothing():
    tally = Tally()
    tally.add(Sample(str(n), None, {"shake": n, "nsfw": 0.0}, 1.0) for n in range(LEAST - 1))
    assert tally.by_decile() == {}
    tally.add([Sample("one more", None, {"shake": 0.0, "nsfw": 0.0}, 1.0)])
    assert set(tally.by_decile()) == {"shake"}


def test_the_table_says_how_much_more_or_less_than_the_mean_a_decile_loses():
    tally = Tally()
    tally.add(Sample(str(n), None, {"shake": n}, 1.0 + (n >= 90)) for n in range(LEAST))
    lines = tally.table().splitlines()
    assert lines[0].split(" | ")[1:] == [*map(str, range(1, 10)), "10 |"]
    assert lines[2] == f"| shake | {' | '.join(['0.909'] * 9)} | 1.818 |"


def test_a_loss_that_is_no_number_is_passed_over():
    tally = Tally()
    tally.add([Sample("a", "static", {}, math.nan), Sample("b", "static", {}, 2.0)])
    assert tally.by_tier() == {"static": 2.0}


def test_the_last_samples_are_remembered_and_no_more():
    tally = Tally()
    tally.add(Sample(str(n), "medium", {"shake": n}, float(n)) for n in range(MOST + 10))
    assert len(tally) == MOST
    assert tally.losses[0] == tally.scores["shake"][0] == 10.0


def test_it_goes_on_from_its_state_as_if_nothing_had_happened():
    whole, first, second = Tally(), Tally(), Tally()
    samples = [Sample(str(n), f"t{n % 3}", {"shake": n / 7}, n**0.5) for n in range(400)]
    whole.add(samples)
    first.add(samples[:150])
    second.load_state_dict(first.state_dict())
    second.add(samples[150:])
    assert second.by_tier() == whole.by_tier()
    assert second.by_decile() == whole.by_decile()
