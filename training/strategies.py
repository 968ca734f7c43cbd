"""Lightning's strategies for one process, ddp and fsdp, and checkpoints that each of them reads.

A whole network's checkpoint is one file; a sharded one's is a folder to which every process writes
what it holds (PyTorch's distributed checkpoint). Either is resumed on any number of processes, with
any strategy.
"""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.optim import Optimizer

from recipes.training import Fit
from training.buckets import buckets
from training.parallel import Ranks


def strategy_of(config: Fit, ranks: Ranks) -> Strategy | str:
    """For Lightning's Trainer."""
    spread = ranks.spread
    if spread.strategy == "fsdp":
        return Sharded(spread.world // spread.shard, spread.shard)
    if spread.world == 1:
        return "auto"
    # an image passes a VAE by its convolutions over time
    images = any(one.is_image for one in buckets(config.buckets))
    idle = config.trains == "vae" and config.taps > 1 and images
    return DDPStrategy(
        find_unused_parameters=idle, gradient_as_bucket_view=True, forward_sync_buffers=False
    )


def plugins_of(ranks: Ranks) -> list[Any]:
    """For Lightning's Trainer, beside the strategy."""
    # Lightning would ask SLURM, where it finds it, though torchrun has started the processes
    found: list[Any] = [TorchElasticEnvironment()] if ranks.spread.world > 1 else []
    return found if ranks.spread.strategy == "fsdp" else [*found, Reading()]


class Reading(TorchCheckpointIO):
    """Reads a sharded network's folder as if it were a file."""

    def load_checkpoint(self, path: Path | str, *args: Any, **named: Any) -> dict[str, Any]:
        if Path(path).is_dir():
            return gathered(Path(path))
        return super().load_checkpoint(path, *args, **named)


class Sharded(ModelParallelStrategy):
    """A network that was sharded before it came here (`training.parallel.Shards`)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], *args: Any, **named: Any) -> None:
        """Raises: OSError, on every rank, if any could not write."""
        try:
            super().save_checkpoint(checkpoint, *args, **named)
        except CheckpointException as error:  # no Exception, and a wall of text
            (_, (first, _)), *_ = error.failures.items()
            raise first if isinstance(first, OSError) else OSError(str(first)) from error

    def load_checkpoint(
        self, checkpoint_path: Path | str, weights_only: bool | None = None
    ) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return super().load_checkpoint(path, weights_only)
        # Lightning's own way gives the optimiser's moments to the wrong weights, since it takes
        # them to be in the module's order, not in that of the groups
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        module, options = self.lightning_module, StateDictOptions(full_state_dict=True)
        set_model_state_dict(module, checkpoint.pop("state_dict"), options=options)
        states = checkpoint.pop("optimizer_states")
        for optimizer, state in zip(self.optimizers, states, strict=True):
            state = named(state, names_of(module, optimizer))
            set_optimizer_state_dict(module, optimizer, state, options=options)
        return checkpoint


# --- an optimiser's state: by number in a file, by name in a folder ------------------------------


def names_of(module: nn.Module, optimizer: Optimizer) -> list[str]:
    """Of the weights in the order of the optimiser's groups."""
    names = {id(weight): name for name, weight in module.named_parameters()}
    return [names[id(one)] for group in optimizer.param_groups for one in group["params"]]


def named(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """By the names of the weights, which the file numbers."""
    return _keyed(state, dict(enumerate(names)))


def numbered(state: dict[str, Any]) -> dict[str, Any]:
    """By number, in the order of the groups."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    return _keyed(state, {name: number for number, name in enumerate(names)})


def _keyed(state: dict[str, Any], keys: dict[Any, Any]) -> dict[str, Any]:
    return {
        "state": {keys[key]: value for key, value in state["state"].items()},
        "param_groups": [
            group | {"params": [keys[key] for key in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def gathered(folder: Path) -> dict[str, Any]:
    """What the processes wrote to a folder, as one of them would have written it to a file."""
    found: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner()
    _load_state_dict(found, FileSystemReader(folder), planner=planner, no_dist=True)
    checkpoint = torch.load(folder / _METADATA_FILENAME, weights_only=True)
    optimizers = sorted(name for name in found if name.startswith("optimizer_"))
    return checkpoint | {
        "state_dict": found["state_dict"],
        "optimizer_states": [numbered(found[name]) for name in optimizers],
    }
