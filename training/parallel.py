"""Several processes train one network: who reads what, who holds what, who waits for whom.

    ddp      every process has the whole network; their gradients are averaged (PyTorch's DDP)
    fsdp     `compute.shard` of them hold one copy of weights, gradients, optimiser and EMA between
             them, and gather a block's weights when it is its turn (fully_shard, FSDP2)
    context  `compute.context` neighbours share each sequence (Ulysses); goes with both

A rank is a process. Neighbours that share a sequence read the same batches and draw the same noise,
since that depends on nothing but seed, step and batch. Each holds the gradient of its own tokens;
the average over all ranks, times their number, is the whole one, as it is for the shares of
different batches (`training.module`).

DDP is used for ddp, not fully_shard with one holder: then a network's weights are plain tensors,
saved in one file, and a VAE's convolutions over time may lie idle where a batch holds images.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from model.dit import WanDiT
from recipes.keys import UsageError
from recipes.training import Fit
from training.launch import launch, launched
from training.memory import Spread
from training.ulysses import Ulysses

HINT = (
    "torchrun --nnodes=N --nproc-per-node=GPUS --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT "
    "training/fit.py …, on each machine"
)
FIRST = 10.0  # seconds in which the first process says a mistake that all of them find


# --- processes -----------------------------------------------------------------------------------


def run(train: Callable[[Fit], int | None], config: Fit) -> int | None:
    """Trains in as many processes as the recipe asks for; plan=true in this one.

    Args:
        train: what each of them does.

    Raises:
        UsageError: more GPUs than there are, or a process that knows nothing of the other machines.
    """
    if config.trains == "chain":  # as its first recipe asks
        from training import chain

        asks = chain.first(config)
    else:
        asks = config
    if asks.compute.threads:
        torch.set_num_threads(asks.compute.threads)
    if launched():
        join(asks)
        try:
            status = train(config)
        except UsageError:
            if dist.get_rank():
                time.sleep(FIRST)
            raise
        dist.destroy_process_group()
        return status
    if asks.compute.nodes > 1 and not asks.plan:
        raise UsageError(f"compute.nodes={asks.compute.nodes}: start it with {HINT}")
    count = 1 if asks.plan else processes(asks)
    return launch(count) if count > 1 else train(config)


def device(config: Fit) -> str:
    """cpu or cuda.

    Raises:
        UsageError: a GPU is asked for, and there is none.
    """
    has = torch.cuda.is_available()
    if config.compute.device == "cuda" and not has:
        raise UsageError("compute.device=cuda: PyTorch sees no CUDA GPU here")
    return "cuda" if has and config.compute.device != "cpu" else "cpu"


def processes(config: Fit) -> int:
    """How many run on this machine."""
    asked = config.compute.devices
    if device(config) == "cpu":
        return max(1, asked)
    there = torch.cuda.device_count()
    if asked > there:
        raise UsageError(f"compute.devices={asked}: PyTorch sees {there} CUDA GPUs here")
    return asked or there


def join(config: Fit) -> None:
    """Meets the other processes."""
    if device(config) == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
        dist.init_process_group("nccl", device_id=own)
    else:
        dist.init_process_group("gloo")


@contextmanager
def leader_first() -> Iterator[None]:
    """What is inside is done by rank 0, and then, when that is there, by all the others."""
    waits = dist.is_initialized() and dist.get_rank() > 0
    if waits:
        dist.barrier()
    yield
    if dist.is_initialized() and not waits:
        dist.barrier()


# --- who is who ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training."""

    spread: Spread = field(default_factory=lambda: Spread("single"))
    rank: int = 0
    group: ProcessGroup | None = None  # that share its sequence

    @property
    def reader(self) -> int:
        """Which part of each step it reads, of `spread.readers`."""
        return self.rank // self.spread.context


def here(config: Fit, spread: Spread) -> Ranks:
    """This process's place.

    Args:
        spread: what the plan says; as many processes must be there.

    Raises:
        UsageError: they are not, or can't be spread so.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    if spread.world != world:
        raise UsageError(
            f"compute.devices={config.compute.devices} and nodes={config.compute.nodes} are "
            f"{spread.world} processes, but {world} were started; say how many a machine, and on "
            "how many machines"
        )
    check(config, spread)
    if world == 1:
        return Ranks(spread)
    rank, group = dist.get_rank(), None
    if spread.context > 1:
        group, _ = dist.new_subgroups(spread.context)
    return Ranks(spread, rank, group)


def check(config: Fit, spread: Spread) -> None:
    """That the processes can be divided as the recipe says.

    Raises:
        UsageError: one line with the key that does not fit.
    """
    how, world = config.compute, spread.world
    if how.strategy == "single" and world > 1:
        raise UsageError(f"compute.strategy=single: but there are {world} processes; take auto")
    if how.strategy in ("ddp", "fsdp") and world == 1:
        raise UsageError(
            f"compute.strategy={how.strategy}: wants several processes, and there is one; "
            "give compute.devices, or take auto"
        )
    if how.context < 1 or world % how.context:
        raise UsageError(
            f"compute.context={how.context}: does not divide the {world} processes there are"
        )
    if spread.strategy == "fsdp" and (how.shard < 0 or world % spread.shard):
        raise UsageError(
            f"compute.shard={how.shard}: does not divide the {world} processes there are"
        )
    if config.trains == "vae":
        if how.context > 1:
            raise UsageError(
                f"compute.context={how.context}: only a DiT has a sequence to share; a VAE takes 1"
            )
        if spread.strategy == "fsdp":
            raise UsageError("compute.strategy=fsdp: a VAE is small, and trained whole; take ddp")


# --- the network ---------------------------------------------------------------------------------


def spread(network: nn.Module, config: Fit, ranks: Ranks) -> nn.Module:
    """Lays a network out over the processes, where they share it; the same network.

    Raises:
        UsageError: its heads or tokens can't be shared by so many.
    """
    if ranks.group:
        share(network, config, ranks)
    if ranks.spread.strategy == "fsdp":
        half = torch.bfloat16 if config.compute.precision == "bfloat16" else None
        Shards(mesh(ranks.spread, device(config)), half).apply(network)
    return network


def share(network: WanDiT, config: Fit, ranks: Ranks) -> None:
    """Lets neighbours share each sequence."""
    from training.buckets import buckets

    context, heads = ranks.spread.context, network.config["num_heads"]
    if heads % context:
        raise UsageError(
            f"compute.context={context}: does not divide the {heads} heads of model={config.model}"
        )
    short = [one.name for one in buckets(config.buckets) if one.tokens < context]
    if short:
        raise UsageError(f"compute.context={context}: bucket {short[0]} has fewer tokens")
    network.context = Ulysses(ranks.group, config.compute.backend)


def mesh(spread: Spread, kind: str) -> DeviceMesh:
    """Copies × holders; neighbours hold the shards of one copy."""
    copies = spread.world // spread.shard
    if copies == 1:
        return init_device_mesh(kind, (spread.shard,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (copies, spread.shard), mesh_dim_names=("copy", "shard"))


class Shards:
    """How a DiT is sharded: block by block, and what is left as one.

    Weights are float32 where they are held. In bfloat16 a block's are rounded before they are
    gathered, its small biases of the modulation and gains of its norms among them; the modulation
    itself, computed once for all blocks, is float32 and stays so (`cast_forward_inputs=False`).

    Args:
        half: what blocks compute in, if not float32. Gradients are averaged in float32.
    """

    def __init__(self, mesh: DeviceMesh, half: torch.dtype | None) -> None:
        self.mesh = mesh
        self.policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)

    def apply(self, network: WanDiT, frees: bool | None = None) -> None:
        """Leaves of each weight only what this process holds, on its device.

        Args:
            frees: whether what is left beside the blocks is freed after each forward pass; None:
                not while backward is to come.
        """
        for block in network.blocks:
            fully_shard(block, mesh=self.mesh, mp_policy=self.policy)
        fully_shard(network, mesh=self.mesh, reshard_after_forward=frees)
        network.shards = self

    @torch.no_grad()
    def copy(self, network: WanDiT) -> WanDiT:
        """A network with the same weights, sharded alike; at no time is it whole."""
        with torch.device("meta"):
            other = WanDiT(**network.config)
        other.context, other.recompute = network.context, copy(network.recompute)
        self.apply(other, frees=True)
        other.to_empty(device=next(network.parameters()).device)
        for mine, theirs in zip(other.parameters(), network.parameters(), strict=True):
            local(mine).copy_(local(theirs))
        return other


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def meet(network: nn.Module, wrapped: nn.Module, now: bool) -> None:
    """Whether gradients are averaged in the next backward pass: a step's last.

    Shards are brought to their holders in every pass, since a whole gradient would take as much as
    the network; only copies of it wait.

    Args:
        wrapped: the module as the strategy has it.
    """
    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
        wrapped.require_backward_grad_sync = now
    for one in network.modules():
        if isinstance(one, FSDPModule):
            one.set_requires_all_reduce(now, recurse=False)


__all__ = ["Ranks", "Shards", "check", "device", "here", "leader_first", "local", "meet", "run"]
