"""Votes to scores: known strengths come back, intervals cover, measures that decide are found."""

import numpy as np
import pytest

from eval.preference import Vote, bradley_terry, foretelling, strengths

NAMES = ("a", "b", "c")
TRUE = {"a": 0.8, "b": 0.0, "c": -0.8}


def voted(random, count: int, prompts: int = 40) -> list[Vote]:
    votes = []
    for _ in range(count):
        first, second = random.choice(NAMES, 2, replace=False)
        chance = 1 / (1 + np.exp(TRUE[second] - TRUE[first]))
        votes.append(
            Vote(int(random.integers(prompts)), first, second, float(random.random() < chance))
        )
    return votes


def test_known_strengths_come_back():
    found = bradley_terry(voted(np.random.default_rng(0), 4000), NAMES)
    for name, one in found.items():
        assert one.value == pytest.approx(TRUE[name], abs=0.1)
        assert one.low < one.value < one.high
    assert sum(one.value for one in found.values()) == pytest.approx(0, abs=1e-6)


def test_two_are_the_log_odds_of_their_wins():
    wins = np.array([[0, 30.0], [10.0, 0]])
    found = strengths(wins)
    assert found[0] - found[1] == pytest.approx(np.log(30.1 / 10.1), abs=1e-6)


def test_intervals_cover():
    random, hits, trials = np.random.default_rng(1), 0, 60
    for trial in range(trials):
        found = bradley_terry(voted(random, 300), NAMES, seed=trial)
        hits += sum(found[name].low <= TRUE[name] <= found[name].high for name in NAMES)
    assert 0.89 < hits / trials / 3 < 0.99


def test_ties_pull_together_and_no_score_is_infinite():
    votes = [Vote(k, "a", "b", 0.5) for k in range(9)]
    assert bradley_terry(votes, ("a", "b"))["a"].value == pytest.approx(0)
    won = bradley_terry([Vote(k, "a", "b", 1.0) for k in range(9)], ("a", "b"))
    assert np.isfinite(won["a"].value)
    assert won["a"].value > 1
    assert bradley_terry([], ("a", "b"))["a"].value == 0


def test_who_is_not_named_can_not_be_voted_for():
    with pytest.raises(ValueError, match="a vote on a and x"):
        bradley_terry([Vote(0, "a", "x", 1)], NAMES)


def test_the_measure_that_decides_is_found():
    random = np.random.default_rng(2)
    values = {"matters": {}, "noise": {}}
    votes = []
    for prompt in range(120):
        for name in ("a", "b"):
            values["matters"][name, prompt, 0] = random.normal()
            values["noise"][name, prompt, 0] = random.normal()
        ahead = values["matters"]["a", prompt, 0] - values["matters"]["b", prompt, 0]
        votes.append(Vote(prompt, "a", "b", float(ahead + 0.3 * random.normal() > 0)))
    weights, agreement = foretelling(votes, values)
    assert weights["matters"].low > 1
    assert weights["noise"].low < 0 < weights["noise"].high
    assert agreement > 0.85
    blind, chance = foretelling(votes, {"noise": values["noise"]})
    assert 0.3 < chance < 0.7
    assert blind["noise"].low < 0 < blind["noise"].high


def test_what_was_not_measured_says_nothing():
    votes = [Vote(0, "a", "b", 1.0), Vote(1, "a", "b", 0.0)]
    weights, agreement = foretelling(votes, {"m": {}})
    assert weights["m"].value == 0
    assert agreement in (0, 0.5)
