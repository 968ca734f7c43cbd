"""Intervals cover as often as they say, tests cry wolf as seldom: on simulated checkpoints."""

import itertools

import numpy as np
import pytest
from scipy import stats as reference

from eval import stats
from eval.stats import Draws, Scores, compare, holm, verdict

NAMES = tuple(f"prompt {k}" for k in range(200))


def scores(values: np.ndarray, **how) -> Scores:
    values = np.asarray(values, float)
    return Scores(NAMES[: len(values)], values, **how)


def simulated(random, prompts: int, seeds: int, delta: float = 0.0, kind: str = "normal"):
    """Two checkpoints whose true difference is delta; prompts differ in how they take it."""
    hard = random.normal(size=(prompts, 1))
    shift = delta + 0.7 * (
        random.normal(size=(prompts, 1))
        if kind == "normal"
        else random.exponential(size=(prompts, 1)) - 1  # few prompts, large differences
    )
    one, two = random.normal(size=(2, prompts, seeds)) + hard
    return scores(one), scores(two + shift)


# --- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "prompts", "seeds"),
    [("normal", 12, 1), ("normal", 40, 5), ("skewed", 40, 2), ("normal", 100, 3)],
)
def test_intervals_cover_the_true_difference_at_their_level(kind, prompts, seeds):
    random, hits, trials = np.random.default_rng(7), 0, 600
    draws = Draws(NAMES[:prompts], resamples=1000)
    for _ in range(trials):
        found = compare(*simulated(random, prompts, seeds, 0.3, kind), draws)
        hits += found.delta.low <= 0.3 <= found.delta.high
    # of 600, three deviations of a share of 95 % are 2.7 %
    assert 0.923 < hits / trials < 0.977


def test_more_seeds_of_the_same_prompts_are_not_more_prompts():
    """Videos taken for independent would make an interval half as wide, and wrong."""
    random = np.random.default_rng(3)
    hard = random.normal(size=(20, 1))
    one, two = scores(np.tile(hard * 0, 9)), scores(np.tile(hard, 9))
    many = compare(one, two, Draws(NAMES[:20])).delta
    single = compare(scores(one.values[:, :1]), scores(two.values[:, :1]), Draws(NAMES[:20])).delta
    assert (many.low, many.high) == pytest.approx((single.low, single.high))


def test_an_interval_of_a_mean_is_students():
    random = np.random.default_rng(1)
    values = random.normal(size=(30, 1))
    found = compare(scores(values * 0), scores(values), Draws(NAMES[:30], resamples=100_000)).delta
    half = reference.t.ppf(0.975, 29) * values.std(ddof=1) / np.sqrt(30)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.03)


def test_totals_go_through_the_whole_normalisation_and_share_the_draws():
    """A total of one measure is that measure; of prompts in common, not more than they say."""
    random = np.random.default_rng(5)
    one, two = simulated(random, 50, 2, 0.4)
    draws = Draws(NAMES[:50])

    def combine(means: np.ndarray) -> np.ndarray:
        return (means[..., 0] + 2) / 4

    *_, delta = stats.total([one], [two], combine, draws)
    plain = compare(one, two, draws).delta
    assert delta.value == pytest.approx(plain.value / 4)
    assert (delta.low, delta.high) == pytest.approx((plain.low / 4, plain.high / 4))
    # the same measure twice: perfectly dependent, so no narrower
    doubled = stats.total([one, one], [two, two], lambda means: means.mean(-1), draws)[2]
    assert (doubled.low, doubled.high) == pytest.approx((plain.low, plain.high))


def test_totals_cover_where_measures_have_prompts_of_their_own():
    random, hits, trials = np.random.default_rng(11), 0, 400
    draws = Draws(NAMES[:80], resamples=800)
    for _ in range(trials):
        pairs = [simulated(random, 80, 1, shift) for shift in (0.2, 0.6)]
        parts = [(slice(0, 50), pairs[0]), (slice(30, 80), pairs[1])]
        first, second = (
            [Scores(NAMES[:80][some], pair[k].values[some]) for some, pair in parts] for k in (0, 1)
        )
        delta = stats.total(first, second, lambda m: m[..., 0] / 2 + m[..., 1] / 4, draws)[2]
        hits += delta.low <= 0.1 + 0.15 <= delta.high
    assert 0.915 < hits / trials < 0.983


# --- false alarms --------------------------------------------------------------------------------


def test_alarms_are_false_no_more_often_than_asked_for():
    random, trials = np.random.default_rng(2), 400
    draws = Draws(NAMES[:30], resamples=200)
    alone = family = 0
    for _ in range(trials):
        found = {}
        for name in ("a", "b", "c", "d"):
            one, two = simulated(random, 30, 2)
            found[name] = compare(one, two, draws)
        alone += found["a"].p < 0.05
        family += bool(verdict(found).better + verdict(found).worse)
    assert alone / trials < 0.05 + 0.033
    assert family / trials < 0.05 + 0.033


def test_seeds_of_one_prompt_are_not_independent_outcomes():
    """Binary outcomes that are all alike within a prompt: as videos, they would cry wolf."""
    random, trials = np.random.default_rng(4), 400
    alarms = naive = 0
    draws = Draws(NAMES[:30], resamples=10)
    for _ in range(trials):
        one, two = (np.repeat(random.integers(0, 2, (30, 1)), 8, 1) for _ in range(2))
        alarms += compare(scores(one), scores(two), draws).p < 0.05
        difference = two - one
        naive += stats.sign_test(int((difference > 0).sum()), int((difference < 0).sum())) < 0.05
    assert alarms / trials < 0.05 + 0.033
    assert naive / trials > 0.3


# --- against others ------------------------------------------------------------------------------


@pytest.mark.parametrize(("wins", "losses"), [(9, 2), (0, 6), (5, 5), (0, 0)])
def test_one_seed_is_mcnemars_exact_test(wins, losses):
    pairs = np.array([1] * wins + [-1] * losses + [0] * 4, float)[:, None]
    assert stats.signs_flipped(pairs) == pytest.approx(stats.sign_test(wins, losses))


def test_several_seeds_are_all_signs_counted():
    random = np.random.default_rng(9)
    pairs = random.integers(-1, 2, (9, 4)).astype(float)
    sums = np.abs(pairs.sum(1))
    totals = [np.dot(signs, sums) for signs in itertools.product((-1, 1), repeat=9)]
    by_hand = np.mean(np.abs(totals) >= abs(pairs.sum()) - 1e-9)
    assert stats.signs_flipped(pairs) == pytest.approx(by_hand)


def test_holm_by_hand():
    # 0.01 · 4, 0.02 · 3, 0.03 · 2, 0.9; never below the one before
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([]) == []
    assert holm([0.5, 0.6]) == [1.0, 1.0]


def test_what_is_called_detectable_is_detected_in_four_of_five():
    random, trials = np.random.default_rng(6), 1500
    found = 0
    known = stats.detectable(random.normal(size=200_000)) * np.sqrt(200_000 / 40)
    for _ in range(trials):
        differences = random.normal(known * 1.02, 1, 40)  # of 40, t reaches a little further
        found += reference.ttest_1samp(differences, 0).pvalue < 0.05
    assert found / trials == pytest.approx(0.8, abs=0.04)
    assert stats.detectable(random.normal(size=40), tests=12) > stats.detectable(
        random.normal(size=40)
    )


def test_the_noise_floor_is_how_far_two_samples_of_one_checkpoint_lie_apart():
    random, trials, over = np.random.default_rng(8), 800, 0
    hard = random.normal(size=(40, 1))
    floors = []
    for _ in range(trials):
        one, two = random.normal(size=(2, 40, 3)) * 0.5 + hard
        over += abs(one.mean() - two.mean()) > 0.5 * 1.96 * np.sqrt(2 / 120)
        floors.append(stats.noise_floor(scores(one), scores(two)))
    assert np.mean(floors) == pytest.approx(0.5 * 1.96 * np.sqrt(2 / 120), rel=0.02)
    assert over / trials == pytest.approx(0.05, abs=0.025)
    assert np.isnan(stats.noise_floor(scores(hard)))


# --- what is told --------------------------------------------------------------------------------


def test_a_checkpoint_against_itself_differs_nowhere():
    values = np.random.default_rng(0).random((25, 3))
    found = compare(scores(values), scores(values), Draws(NAMES[:25]))
    assert (found.wins, found.ties, found.losses, found.p) == (0, 25, 0, 1.0)
    assert (found.delta.low, found.delta.value, found.delta.high) == (0, 0, 0)
    assert verdict({"a": found}).words == "no difference found on 1"


def test_lower_is_better_where_it_is():
    values = np.random.default_rng(0).random((25, 3))
    draws = Draws(NAMES[:25])
    worse = [scores(values + shift, higher_is_better=False) for shift in (0, 0.2)]
    found = compare(*worse, draws)
    assert found.delta.value == pytest.approx(-0.2)
    assert (found.wins, found.losses) == (0, 25)
    better = compare(scores(values), scores(values + 0.2), draws)
    same = compare(scores(values), scores(values), draws)
    told = verdict({"a": found, "b": better, "c": same})
    assert told.words == "better on 1 of 3, worse on 1 of 3, no difference found on 1"
    assert (told.better, told.worse, told.undecided) == (("b",), ("a",), ("c",))


def test_what_could_not_be_measured_is_left_out_for_both():
    one, two = np.zeros((4, 2)), np.ones((4, 2))
    one[0] = np.nan
    two[1, 0] = np.nan
    found = compare(scores(one), scores(two), Draws(NAMES[:4]))
    assert (found.prompts, found.wins) == (3, 3)
    assert found.delta.value == 1
    with pytest.raises(ValueError, match="no video was measured for both"):
        compare(scores(one * np.nan), scores(two), Draws(NAMES[:4]))


def test_what_can_not_be_paired_is_refused():
    one = scores(np.zeros((4, 2)))
    for other in (
        scores(np.zeros((4, 3))),
        scores(np.zeros((3, 2))),
        Scores(NAMES[1:5], np.zeros((4, 2))),
        scores(np.zeros((4, 2)), higher_is_better=False),
    ):
        with pytest.raises(ValueError, match=r"same prompts and seeds|two directions"):
            compare(one, other, Draws(NAMES))
    with pytest.raises(ValueError, match="named twice"):
        Scores(("a", "a"), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="of 3 prompts"):
        Scores(NAMES[:3], np.zeros((2, 1)))
