"""Counts the bytes of all tensors that exist at a time, real ones or such without memory.

    with FakeTensorMode():
        network = WanVAE()                            # has shapes, takes no memory
        held = measure(network, lambda: network.decode(latents).mean())

On a CPU it finds what the allocator gives out, to the byte.
"""

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass(frozen=True)
class Footprint:
    """Bytes of a batch's forward and backward pass, beside parameters and their gradients."""

    activations: int  # at the end of the forward pass: the batch, and what backward needs
    copies: int  # of the weights, in the precision of the arithmetic
    working: int  # the most that comes on top until backward is through


class Ledger(TorchDispatchMode):
    """Notes when storages come and go.

    Args:
        own: tensors that are not counted; casts of them are counted apart.
    """

    def __init__(self, own: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.own = {one.untyped_storage()._cdata for one in own}
        self.live: dict[int, int] = {}  # storage → its number
        self.sizes: list[int] = []  # bytes, by number
        self.casts: set[int] = set()
        self.events: list[tuple[int, int]] = []  # (number, +1 or −1)
        self._kept: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        is_cast = (
            func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self.own
        )
        for one in tree_iter(out):
            if isinstance(one, Tensor):
                self._see(one.untyped_storage(), is_cast)
        return out

    def _see(self, storage: torch.UntypedStorage, is_cast: bool) -> None:
        key = storage._cdata
        if key in self.own or key in self.live:
            return
        number = len(self.sizes)
        self.sizes.append(storage.nbytes())
        self.live[key] = number
        self.events.append((number, 1))
        if is_cast:
            self.casts.add(number)

        def gone(_) -> None:
            if self.live.get(key) == number:  # an address is used again
                del self.live[key]
            self._kept.pop(number, None)
            self.events.append((number, -1))

        self._kept[number] = weakref.ref(storage, gone)

    def held(self, casts: bool) -> int:
        """Bytes now: of casts, or of all else."""
        numbers = (one for one in self.live.values() if (one in self.casts) == casts)
        return sum(self.sizes[one] for one in numbers)

    def peak(self, without: Iterable[Tensor] = ()) -> int:
        """The most bytes at any one time, leaving out some tensors that are still there."""
        keys = {one.untyped_storage()._cdata for one in without}
        skipped = {number for key, number in self.live.items() if key in keys}
        now = most = 0
        for number, sign in self.events:
            if number not in skipped:
                now += sign * self.sizes[number]
                most = max(most, now)
        return most


def measure(
    network: nn.Module,
    loss: Callable[[], Tensor],
    bfloat16: bool = False,
    others: Iterable[Tensor] = (),
) -> Footprint:
    """Runs a loss forward and backward.

    Args:
        network: whose parameters and their gradients are left out.
        bfloat16: under autocast, as Lightning's bf16-mixed does: backward too.
        others: tensors that are not counted, such as a frozen network's.
    """
    parameters = list(network.parameters())
    ledger = Ledger([*parameters, *network.buffers(), *others])
    with ledger, autocast(bfloat16):
        value = loss()
        activations, copies = ledger.held(casts=False), ledger.held(casts=True)
        value.backward()
    gradients = [one.grad for one in parameters if one.grad is not None]
    working = ledger.peak(without=gradients) - activations - copies
    for one in parameters:
        one.grad = None
    return Footprint(activations, copies, max(0, working))


def autocast(bfloat16: bool) -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
