"""A training of two numbers, with all that a run is saved from, resumed and stopped with."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from recipes.load import load
from recipes.training import Fit
from training.checkpoints import Saver
from training.ema import EMA
from training.runs import Run, open_run

EVERY = 3  # steps between validations
# Lightning's: its own use of PyTorch, the EMA, which is never trained, and loaders that it would
# resume by itself
QUIET = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        ".*LeafSpec",
        "Found .* in eval mode",
        ".*does not have many workers",
        "You're resuming from a checkpoint that ended before the epoch",
    )
]


class Line(nn.Module):
    """y = a x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"sizes": [1]}
        self.a = nn.Parameter(torch.zeros(1, 1))
        self.b = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a + self.b


@dataclass
class Numbers:
    """A step's data."""

    number: int
    x: torch.Tensor
    state: dict[str, int]  # of the data, once the step is taken

    def to(self, device: torch.device) -> "Numbers":
        return self


class Steps:
    """Those from `first` on, of `total`."""

    def __init__(self, first: int, total: int) -> None:
        self.first, self.total = first, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Numbers]:
        for number in count(self.first):
            x = torch.randn(4, 1, generator=torch.Generator().manual_seed(number))
            yield Numbers(number, x, {"next": number + 1})


class Data(LightningDataModule):
    """The state is that of the step that is taken, not of one that is read ahead."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total
        self.next = 0

    def train_dataloader(self) -> Iterable[Numbers]:
        return Steps(self.next, self.total)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([torch.full((2, 1), float(i)) for i in range(2)], batch_size=None)

    def on_before_batch_transfer(self, batch, dataloader_idx: int):
        if isinstance(batch, Numbers):
            self.next = batch.state["next"]
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.next = state_dict["next"]


class Module(LightningModule):
    """The attributes of `training.module.Trained`."""

    kind = "dit"
    automatic_optimization = False

    def __init__(self, config: Fit, network: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.network = network or Line()
        self.ema = EMA(self.network, 0.9)
        self.step = 0
        self.scale = 1.0  # of the learning rate; lowered by every validation
        self.validation: dict[str, float] = {}
        self.losses: list[tuple[int, int, float]] = []
        self.validated: list[int] = []

    def training_step(self, batch: Numbers, index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = (self.network(batch.x) - 3 * batch.x - 1).square().mean()
        self.manual_backward(loss)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * self.scale
        optimizer.step()
        self.ema.follow(self.network)
        self.step += 1
        self.losses.append((self.step, batch.number, loss.item()))

    def validation_step(self, x: torch.Tensor, index: int) -> None:
        self.found = float((self.ema.network(x) - 3 * x - 1).square().mean())

    def on_validation_epoch_end(self) -> None:
        self.validation = {"loss": self.found}
        self.scale *= 0.9
        self.validated.append(self.step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), 0.1)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["trained"] = {"step": self.step, "scale": self.scale}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.step, self.scale = checkpoint["trained"].values()


class At(Callback):
    """Does something in a step, or in a validation's last batch."""

    def __init__(self, step: int, act, validating: bool = False) -> None:
        self.step, self.act, self.validating = step, act, validating

    def on_train_batch_start(self, trainer: Trainer, module: Module, *_) -> None:
        if not self.validating and module.step + 1 == self.step:
            self.act()

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, *_) -> None:
        if self.validating and module.step == self.step and batch_idx == 1:
            self.act()


def config(folder: Path, *arguments: str) -> Fit:
    given = [f"runs={folder}", "recipe=tiny", "save.every=4", "save.minutes=0", "save.keep=2"]
    return load(Fit, [*given, *arguments], folder=recipes(folder))


def recipes(folder: Path) -> Path:
    """Where `tiny` differs in nothing."""
    place = folder / ".recipes"
    place.mkdir(parents=True, exist_ok=True)
    for name in ("tiny", "tiny-vae", "curriculum"):
        (place / f"{name}.yaml").write_text("expect: nothing\n")
    return place


def train(
    config: Fit, steps: int, *callbacks: Callback, module=None, data=None, **saver
) -> tuple[Module, Run]:
    """As training/fit.py does it, but for the last lines: the run stays unfinished."""
    config = replace(config, optimizer=replace(config.optimizer, steps=steps))
    module = module or Module(config)
    with open_run(config) as run:
        trainer = trainer_of(*callbacks, Saver(run, **saver))
        path = run.resume_path()
        trainer.fit(module, datamodule=data or Data(steps), ckpt_path=path, weights_only=True)
    return module, run


def trainer_of(*callbacks: Callback, **more) -> Trainer:
    return Trainer(
        **{"accelerator": "cpu", "devices": 1, **more},
        max_epochs=1,
        val_check_interval=EVERY,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
    )


def steps(run: Run) -> list[int]:
    """Of the checkpoints that are there."""
    return [one.step for one in run.checkpoints()]


def same(a: Module, b: Module) -> bool:
    """Bit for bit: weights, averages, losses of the steps that both took."""
    one, other = a.state_dict(), b.state_dict()
    both = {(s, n): x for s, n, x in a.losses}
    shared = [(both[s, n], x) for s, n, x in b.losses if (s, n) in both]
    return (
        one.keys() == other.keys()
        and all(torch.equal(one[name], other[name]) for name in one)
        and all(x == y and math.isfinite(x) for x, y in shared)
        and a.scale == b.scale
    )
