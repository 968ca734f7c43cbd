"""The weights' exponential moving average: a second network that follows the trained one.

It is a whole network, so that it is evaluated, sharded and saved like the first (Polyak and
Juditsky, 1992). Whether Wan keeps one is not stated; the nearest open trainers do, at 0.9999.
"""

from copy import deepcopy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from training.parallel import local


class EMA(nn.Module):
    """A network that follows another.

    Args:
        network: what is followed; copied as it is.
        decay: share of itself that it keeps a step. The first steps keep less, (1 + n) / (10 + n),
            so that the random beginning is soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"decay {decay}: between 0 and 1")
        self.decay = decay
        sharded = isinstance(network, FSDPModule)
        other = network.shards.copy(network) if sharded else deepcopy(network)
        self.network = other.requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> "EMA":
        return self  # always in eval mode

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """One step towards a network of the same shape, sharded or not."""
        self.steps += 1
        steps = int(self.steps)
        share = 1 - min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(held(self.network), held(network), share)

    @torch.no_grad()
    def drift(self, network: nn.Module) -> float:
        """How far it lags: the distance over the network's own length."""
        away, length = 0.0, 0.0
        for mine, theirs in zip(held(self.network), held(network), strict=True):
            away += float((mine - theirs).square().sum())
            length += float(theirs.square().sum())
        if isinstance(network, FSDPModule):
            sums = torch.tensor([away, length], dtype=torch.float64, device=theirs.device)
            dist.all_reduce(sums)
            away, length = sums.tolist()
        return (away / max(length, 1e-30)) ** 0.5


def held(network: nn.Module) -> list[Tensor]:
    """Its weights, or what this process holds of them."""
    return [local(one.detach()) for one in network.parameters()]
