"""The averaged weights against PyTorch's AveragedModel and a closed form."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from training.ema import EMA


def walk(network: nn.Module) -> None:
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn(value.shape))


def test_it_is_pytorchs_average_with_the_same_shares():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    ema = EMA(network, decay=0.9)

    def average(mine, theirs, count):
        steps = int(count) + 1  # PyTorch counts from 0
        return torch.lerp(theirs, mine, min(0.9, (1 + steps) / (10 + steps)))

    peer = AveragedModel(network, avg_fn=average)
    peer.update_parameters(network)  # its first update only copies
    peer.n_averaged.zero_()
    first = deepcopy(network.state_dict())
    for step in range(30):
        walk(network)
        ema.follow(network)
        peer.n_averaged.fill_(max(step, 1))
        with torch.no_grad():
            for mine, theirs in zip(peer.module.parameters(), network.parameters(), strict=True):
                mine.copy_(average(mine, theirs, step))
    for name, value in ema.network.state_dict().items():
        torch.testing.assert_close(value, peer.module.state_dict()[name])
        assert not torch.equal(value, first[name])


def test_of_a_still_network_it_is_the_network():
    network = nn.Linear(3, 3)
    ema = EMA(network, decay=0.999)
    for _ in range(20):
        ema.follow(network)
    torch.testing.assert_close(ema.network.weight, network.weight)
    assert ema.drift(network) < 1e-6


def test_drift_is_the_distance_in_lengths_of_the_network():
    network = nn.Linear(4, 4, bias=False)
    ema = EMA(network, decay=0.9)
    with torch.no_grad():
        ema.network.weight.copy_(1.25 * network.weight)
    assert ema.drift(network) == pytest.approx(0.25)


def test_it_is_saved_with_its_count_and_never_trained():
    network = nn.Linear(2, 2)
    ema = EMA(network, decay=0.9)
    walk(network)
    ema.follow(network)
    again = EMA(nn.Linear(2, 2), decay=0.9)
    again.load_state_dict(ema.state_dict())
    walk(network)
    ema.follow(network)
    again.follow(network)
    assert torch.equal(again.network.weight, ema.network.weight)
    assert not any(value.requires_grad for value in ema.parameters())
    assert not ema.train().network.training


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_a_decay_outside_0_to_1_is_refused(decay):
    with pytest.raises(ValueError, match="between 0 and 1"):
        EMA(nn.Linear(1, 1), decay)
