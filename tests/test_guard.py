"""Steps that are not taken, on planted losses."""

import math
import random

import pytest

from recipes.training import Optimizer
from training.guard import SETTLED, Diverged, Guard


def settled(**keys: float) -> Guard:
    """One that has seen a noisy, slowly falling loss."""
    guard, draw = Guard(Optimizer(**keys)), random.Random(0)
    for step in range(3 * SETTLED):
        assert guard.admits(1 - step / 1000 + draw.gauss(0, 0.05), 1.0, list)
    return guard


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (math.inf, 1.0), (0.7, math.nan)])
def test_what_is_no_number_is_skipped_from_the_first_step_on(loss, gradient):
    guard = Guard(Optimizer())
    assert not guard.admits(loss, gradient, list)
    assert guard.admits(0.7, 1.0, list)
    assert guard.skipped == 1


def test_a_leap_is_skipped_and_noise_is_not():
    guard = settled()
    assert not guard.admits(2.0, 1.0, list)
    assert guard.admits(0.8, 1.0, list)
    assert guard.skipped == 1


def test_a_leap_does_not_teach_the_guard_that_leaps_are_normal():
    guard = settled(give_up=100)
    assert not any(guard.admits(2.0, 1.0, list) for _ in range(50))


def test_what_begins_afresh_takes_a_loss_that_would_have_been_a_leap():
    guard = settled()
    guard.afresh()
    assert all(guard.admits(2.0, 1.0, list) for _ in range(3 * SETTLED))
    assert not guard.admits(9.0, 1.0, list)


def test_the_beginning_is_no_leap():
    guard = Guard(Optimizer())
    assert all(guard.admits(loss, 1.0, list) for loss in (1.0, 5.0, 0.5, 20.0))


def test_a_spike_of_zero_switches_leaps_off():
    assert settled(spike=0).admits(1e6, 1.0, list)


def test_mean_and_deviation_are_those_of_the_first_losses():
    guard, losses = Guard(Optimizer()), [1.0, 2.0, 4.0, 3.0]
    for loss in losses:
        guard.admits(loss, 1.0, list)
    assert guard.mean == pytest.approx(2.5)
    assert guard.variance == pytest.approx(sum((x - 2.5) ** 2 for x in losses) / 4)


def test_several_in_a_row_stop_the_run_and_name_what_was_read():
    guard = Guard(Optimizer(give_up=3))
    keys = [f"clip-{number}" for number in range(12)]
    assert not guard.admits(math.nan, 1.0, lambda: keys)
    assert not guard.admits(math.nan, 1.0, lambda: keys)
    assert guard.admits(1.0, 1.0, lambda: keys)  # between them one that is well: counted anew
    assert not guard.admits(math.nan, 1.0, lambda: keys)
    assert not guard.admits(math.nan, 1.0, lambda: keys)
    with pytest.raises(Diverged, match=r"3 steps in a row .*nan.* clip-0, .*clip-7, …$"):
        guard.admits(math.nan, 1.0, lambda: keys)


def test_a_resumed_guard_judges_as_one_that_never_stopped():
    whole = settled()
    resumed = Guard(Optimizer())
    resumed.load_state_dict(whole.state_dict())
    for loss in (0.9, 2.0, math.nan, 0.6):
        assert whole.admits(loss, 1.0, list) == resumed.admits(loss, 1.0, list)
    assert whole.state_dict() == resumed.state_dict()
