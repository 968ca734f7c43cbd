"""One checkpoint: written by all ranks together, seen by others only when it is whole.

    checkpoints/step=NNNNNNNN/
        model.safetensors   the trained network, whatever it was sharded over
        ema.safetensors     its running mean
        config.json         the network's sizes
        trainer.ckpt        what Lightning resumes from: a file or, of sharded weights, a folder
        meta.json           step, validation, the run's parts; written last

It is written as `.new-step=…`, brought to the disk, and takes its name in one rename.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.layout import CLASSES
from model.tensors import Entry, entry
from model.writer import write_file
from training.notes import as_json


class NotSaved(Exception):
    """A checkpoint could not be written; those before it are whole."""


def write(trainer: Trainer, module: LightningModule, folder: Path, meta: dict[str, Any]) -> None:
    """Writes a checkpoint; every rank calls it.

    Args:
        module: has `network`, with its sizes as `config`, `ema` (or None) and `kind`.
        folder: checkpoints/step=NNNNNNNN; one that is there already is replaced.
        meta: for meta.json, besides the class.

    Raises:
        NotSaved: it can't be written; raised on every rank, and nothing of it is left.
    """
    new = folder.with_name(f".new-{folder.name}")
    name = CLASSES[module.kind]
    leads = trainer.is_global_zero
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    files = None if sharded else Files()
    if files:
        trainer.strategy.checkpoint_io = files

    def begin() -> None:
        if leads:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)

    def resumable() -> None:
        trainer.save_checkpoint(new / "trainer.ckpt", weights_only=False)
        if files and files.error:
            raise files.error

    def finish() -> None:
        if leads:
            config = {"class": name, **module.network.config}
            (new / "config.json").write_text(as_json(config), encoding="utf-8")
            (new / "meta.json").write_text(as_json({"class": name, **meta}), encoding="utf-8")
            synced(new)
            take_place(new, folder)

    networks = {"model": module.network}
    if module.ema is not None:
        networks["ema"] = module.ema.network
    try:
        together(module, begin)
        together(module, resumable)
        for stem, network in networks.items():
            place = new / f"{stem}.safetensors" if leads else None
            together(module, lambda place=place, network=network: weights(network, place))
        together(module, finish)
    except OSError as error:
        raise NotSaved(f"{folder} could not be written ({error.strerror or error})") from error
    finally:
        if leads and new.exists():
            shutil.rmtree(new, ignore_errors=True)


def together(module: LightningModule, act: Callable[[], None]) -> None:
    """All ranks do it, and go on only where it worked for all.

    Raises:
        OSError: on every rank, if the system failed on any.
    """
    error = None
    try:
        act()
    except Exception as caught:
        error = caught
    failed = agreed(module, float(error is not None))[0]
    if error:
        raise error
    if failed:
        raise OSError("another process failed at it")


def agreed(module: LightningModule, *values: float) -> list[float]:
    """The largest of each over all ranks."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return list(values)
    told = torch.tensor(values, dtype=torch.float32, device=module.device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return told.tolist()


class Files(TorchCheckpointIO):
    """Writes a checkpoint as it goes; Lightning's own builds all of it in memory, twice.

    Attributes:
        error: why the last one failed. Only rank 0 writes, and it must not leave the others
            waiting at Lightning's barrier.
    """

    error: BaseException | None = None

    def save_checkpoint(self, checkpoint: dict, path: Path, storage_options: Any = None) -> None:
        self.error = None
        try:
            with open(path, "wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            self.error = cause(error)


def cause(error: BaseException) -> BaseException:
    """The first error, after which PyTorch's writer stumbles again and reports that instead."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError | SystemExit):
            return below
        below = below.__context__
    return error


# --- weights ------------------------------------------------------------------------------------


def weights(network: nn.Module, place: Path | None) -> None:
    """A network's weights as safetensors, gathered one tensor at a time.

    Args:
        place: the file; None: only help to gather.
    """
    tensors = {name.replace("_orig_mod.", ""): one for name, one in network.state_dict().items()}
    # in the order of the file, which the others follow
    waiting = [one for one in tensors.values() if isinstance(one, DTensor)]
    waiting.sort(key=lambda one: -one.dtype.itemsize)

    def whole(tensor: Tensor) -> Entry:
        """Its bytes come from all ranks once they are asked for."""
        if not isinstance(tensor, DTensor):
            return entry(tensor) if place else replace(entry(tensor), chunks=lambda: iter(()))

        def chunks() -> Iterator[memoryview]:
            waiting[:] = [one for one in waiting if one is not tensor]
            full = tensor.full_tensor()
            if place:
                yield from entry(full).chunks()

        return replace(entry(tensor), chunks=chunks)

    entries = {name: whole(one) for name, one in tensors.items()}
    try:
        write_file(place or Path(os.devnull), entries, {"format": "pt"})
    finally:
        for one in waiting:  # the disk failed, but the other ranks are still at it
            one.full_tensor()


# --- the disk -----------------------------------------------------------------------------------


def synced(folder: Path, inside: bool = True) -> None:
    """Brings a folder's names to the disk itself, and all that is in it."""
    for path in [*(folder.rglob("*") if inside else ()), folder]:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def take_place(new: Path, folder: Path) -> None:
    """Gives a whole checkpoint its name; `training.runs.tidy` mends what a kill leaves between."""
    old = folder.with_name(f".old-{folder.name}")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    synced(folder.parent, inside=False)
    shutil.rmtree(old, ignore_errors=True)


def remove(folder: Path) -> None:
    """Removes a checkpoint: first its name, so that nobody picks it half gone."""
    gone = folder.with_name(f".gone-{folder.name}")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
