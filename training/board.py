"""TensorBoard of a run, and its validation.jsonl.

    tensorboard --logdir runs        then http://localhost:6006/#custom_scalars

A resumed run goes on in the same folder: what was written after the checkpoint is hidden and comes
again, so that each step stands there once. Only the first rank writes; the others' calls do
nothing.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from recipes.load import to_yaml
from recipes.training import Fit
from training.charts import held_out, layout, multiline
from training.movie import picture
from training.record import Record

# The keys that runs are compared by, as hyperparameters; TensorBoard shows the first few
COMPARED = ("recipe", "model", "starts_from", "seed", "buckets.tokens", "buckets.batches")
COMPARED += tuple(f"optimizer.{name}" for name in ("lr", "weight_decay", "warmup", "decay", "ema"))
OWN = {
    "dit": ("objective.distribution", "objective.shift", "objective.text_dropout"),
    "vae": ("taps", "loss.l1", "loss.kl", "loss.perceptual", "loss.gan"),
}
RESULTS = {"dit": ("held-out/loss",), "vae": ("held-out/loss", "held-out/psnr")}


class Board(Callback):
    """Writes what other callbacks measure, and every validation.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.record = Record(run / "validation.jsonl")
        self.tags: set[str] = set()
        self.writer: SummaryWriter | None = None
        self.repeats = False  # whether a validation is done a second time, with the same numbers
        self._layout: dict[str, Any] = {}

    # --- what others write ---------------------------------------------------------------------

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves; a value that is no number leaves a gap."""
        if self.writer is None:
            return
        for tag, value in values.items():
            if math.isfinite(value):
                self.writer.add_scalar(tag, value, step)
                self.tags.add(tag)
        charts = layout(self.tags)
        if charts != self._layout:
            self._layout = charts
            self.writer.add_custom_scalars(multiline(charts))

    def movie(self, tag: str, frames: np.ndarray, fps: float, step: int) -> None:
        """A moving picture of uint8 [T, H, W, 3]."""
        if self.writer is None:
            return
        height, width = frames.shape[1:3]
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=picture(frames, fps)
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self.writer.file_writer.add_summary(summary, step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        if self.writer is not None:
            self.writer.add_text(tag, markdown, step)

    def flush(self) -> None:
        if self.writer is not None:
            self.writer.flush()

    # --- Lightning's hooks ---------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.open(module.step, module.config)

    def open(self, step: int, config: Fit) -> None:
        """Goes on after a step."""
        self.record.cut(step)
        is_new = not any(self.run.glob("events.out.tfevents.*"))
        self.writer = SummaryWriter(self.run, purge_step=None if is_new else step + 1)
        self.describe(config)

    def describe(self, config: Fit) -> None:
        """The configuration: whole, as text; and what runs are compared by, as hyperparameters."""
        self.text("config", f"```yaml\n{to_yaml(config)}```")
        if config.expect:
            self.text("expect", config.expect)
        results = dict.fromkeys(RESULTS.get(config.trains, ()), 0.0)
        for summary in hparams(compared(config), results):
            self.writer.file_writer.add_summary(summary)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        # resumed from a checkpoint that was taken just before a validation
        self.repeats = self.record.has(module.step)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.writer is None or not module.validation or self.repeats:
            return
        found = module.validation
        self.scalars({held_out(name): value for name, value in found.items()}, module.step)
        self.flush()  # before the line, which says that the curves have it
        self.record.add(module.step, found)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.flush()  # a resumed run writes nothing again that came before its checkpoint

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        self.close()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def state_dict(self) -> dict[str, Any]:
        return {"tags": sorted(self.tags)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tags = set(state["tags"])


def compared(config: Fit) -> dict[str, bool | int | float | str]:
    """The keys that runs are compared by."""
    found = {}
    for key in (*COMPARED, *OWN.get(config.trains, ())):
        value = config
        for name in key.split("."):
            value = getattr(value, name)
        found[key] = "null" if value is None else value
    return found
