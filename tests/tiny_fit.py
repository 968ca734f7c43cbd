"""A training that takes a second: a network of a few weights through the real module and Trainer.

The losses of a sample are planted: `level` of its tier and score, times what the weights say.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from recipes.training import Fit
from training.batch import Batch, Bucket, Step
from training.module import Losses, Trained

BUCKETS = (Bucket(64, 64, 9), Bucket(64, 64, 1))
TIERS = {"static": 2.0, "medium": 1.0, "optimal": 0.5}


class Toy(Trained):
    """Fits one number to zero; `timestep/…` and `bucket/…` as a DiT measures them."""

    kind = "dit"

    def __init__(self, config: Fit) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(1, 1), config)

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        said = self.network(torch.ones(len(batch), 1))[:, 0].square()
        level = [TIERS[tier] + 0.1 * s["aesthetic"] for tier, s in batch.rows]
        noise = 0.01 * torch.rand(len(batch), generator=generator)
        each = (said + 1) * torch.tensor(level) + noise
        return Losses(each, {"l1": each.mean() / 2})

    def measure(self, batch: Batch, index: int) -> dict[str, Tensor]:
        said = self.averaged(torch.ones(len(batch), 1))[:, 0].square()
        name = batch.bucket.name
        found = {f"timestep/{one:04d}": said * one for one in (50, 950)}
        found |= {f"{one}/{name}": value for one, value in found.items()}
        return found | {f"bucket/{name}": said, "loss": said, "psnr": 20 - said}


class Rows(Batch):
    @property
    def rows(self) -> zip:
        return zip(self.tiers, self.scores, strict=True)


def batch(number: int, bucket: Bucket = BUCKETS[0], size: int = 6) -> Rows:
    """Samples whose tier and score follow from their numbers."""
    rows = range(number * size, (number + 1) * size)
    return Rows(
        bucket,
        keys=[f"clip-{row}" for row in rows],
        prompts=[f"prompt {row}" for row in rows],
        video=torch.zeros(size, 3, bucket.frames, 64, 64, dtype=torch.uint8),
        tiers=[list(TIERS)[row % 3] for row in rows],
        scores=[{"aesthetic": float(row % 10), "offbeat": float(row)} for row in rows],
    )


class ToyData(LightningDataModule):
    """Steps of one batch; goes on after the last step handed out."""

    broken = 0

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.taken = steps, 0

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Steps(self), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        clips = [batch(1000 + number, bucket) for number, bucket in enumerate(BUCKETS)]
        return DataLoader(clips, batch_size=None)

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.trainer.lightning_module.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.taken = state["taken"]


class Steps(IterableDataset):
    def __init__(self, data: ToyData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Step]:
        for number in range(self.data.taken, self.data.steps):
            one = batch(number)
            yield Step(number, [one], one.tokens, len(one), {})


def fit(
    config: Fit,
    callbacks: list[Callback],
    resume: Path | None = None,
    module: Trained | None = None,
) -> Trained:
    """Trains to the end of the recipe."""
    module = module or Toy(config)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=1,
        val_check_interval=config.validate.every,
        check_val_every_n_epoch=None,
        callbacks=callbacks,
    )
    data = ToyData(config.optimizer.steps)
    with warnings.catch_warnings():  # Lightning's own
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*overridden `transfer_batch_to_device`")
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module
