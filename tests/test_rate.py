"""The learning rate against PyTorch's own schedules, and a plateau's lowering."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau

from recipes.training import Optimizer
from training.rate import Rate


def optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)


def test_warm_up_and_decay_are_pytorchs_linear_schedules():
    config = Optimizer(steps=100, lr=0.5, warmup=10, decay=0.2)
    rate = Rate(config)
    warm = optimizer(0.5)
    schedule = LinearLR(warm, start_factor=1 / 10, end_factor=1, total_iters=9)
    for step in range(10):
        assert rate.at(step) == pytest.approx(schedule.get_last_lr()[0])
        warm.step()
        schedule.step()
    assert {rate.at(step) for step in range(10, 81)} == {0.5}
    falling = optimizer(0.5)
    schedule = LinearLR(falling, start_factor=1, end_factor=0, total_iters=20)
    for step in range(80, 100):
        assert rate.at(step) == pytest.approx(schedule.get_last_lr()[0])
        falling.step()
        schedule.step()


def test_plateaus_lower_it_as_pytorchs_reduce_on_plateau_does():
    measures = [1.0, 0.9, 0.8999, 0.9, 0.91, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 0.3]
    config = Optimizer(lr=1.0, warmup=0, patience=2, factor=0.1, improvement=1e-3)
    rate, peer = Rate(config), optimizer(1.0)
    # PyTorch waits for `patience` validations and lowers it at the next
    schedule = ReduceLROnPlateau(peer, factor=0.1, patience=1, threshold=1e-3)
    for measure in measures:
        rate.saw(measure)
        schedule.step(measure)
        assert rate.at(10) == pytest.approx(peer.param_groups[0]["lr"]), measure


def test_without_patience_it_is_never_lowered():
    rate = Rate(Optimizer(lr=1.0, warmup=0, patience=0))
    assert not any(rate.saw(1.0) for _ in range(50))
    assert rate.at(0) == 1.0


def test_a_resumed_rate_goes_on_as_one_that_never_stopped():
    config = Optimizer(lr=1.0, warmup=0, patience=2, factor=0.5)
    whole, first, second = Rate(config), Rate(config), Rate(config)
    for measure in (1.0, 1.0):
        whole.saw(measure)
        first.saw(measure)
    second.load_state_dict(first.state_dict())
    assert whole.saw(1.0)
    assert second.saw(1.0)
    assert whole.at(5) == second.at(5) == 0.5


def test_a_measure_that_is_no_number_never_counts_as_the_best():
    rate = Rate(Optimizer(lr=1.0, warmup=0, patience=0))
    rate.saw(math.nan)
    assert rate.best == math.inf
