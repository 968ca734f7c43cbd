"""What a step costs, and what it did: the curves of training.

    machine/…     seconds, data wait, samples, tokens and FLOP a second, MFU, memory
    loss/…        of the training batches, and what it is made of
    optimizer/…   rate, gradient norm, skipped steps; how far the EMA lags
    data/broken   samples that could not be read
    tier/…, score …/…   the loss of training samples by what curation said of them

A point stands for all steps since the last one. A step begins when the next batch is asked for and
ends when the weights are new; what is done between steps (validation, samples, saving) is no part
of it, and shown as `machine/beside`.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler

from training.batch import Step
from training.board import Board
from training.charts import SCORE
from training.tally import Tally

GIB = 2**30
FETCH = "train_dataloader_next"  # Lightning's name for the wait for a batch


class Watch(Profiler):
    """Notes how long training waits for its loader, and tells another profiler everything.

    Attributes:
        began: when the last batch was asked for, in seconds of `clock`.
        waited: seconds until it was there.
    """

    def __init__(self, inner: Profiler, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.inner, self.clock = inner, clock
        self.began: float | None = None
        self.waited = 0.0

    def start(self, action_name: str) -> None:
        self.inner.start(action_name)
        if action_name.endswith(FETCH):
            self.began = self.clock()

    def stop(self, action_name: str) -> None:
        self.inner.stop(action_name)
        if action_name.endswith(FETCH) and self.began is not None:
            self.waited = self.clock() - self.began

    def summary(self) -> str:
        return self.inner.summary()

    def setup(self, stage: str, *args: Any, **named: Any) -> None:
        self.inner.setup(stage, *args, **named)

    def teardown(self, stage: str | None) -> None:
        self.inner.teardown(stage)


class Window:
    """Sums over the steps since the last point."""

    def __init__(self) -> None:
        self.steps = 0
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """A step's; what is no number is passed over."""
        for name, value in values.items():
            if math.isfinite(value):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def sum(self, name: str) -> float:
        return self.sums.get(name, 0.0)

    def mean(self, name: str) -> float:
        """Over the steps that had a number; NaN where none had."""
        return self.sums[name] / self.counts[name] if self.counts.get(name) else math.nan


class Meters(Callback):
    """Measures every step; stands before the callback that saves, which keeps its sums.

    Args:
        board: what is written to.
        every: steps between two points.
        flops: what a step costs on this GPU, in floating-point operations; None: not counted.
        peak: FLOP/s that the GPU can do at best; None: unknown, so no MFU.
        clock: seconds, rising.

    Attributes:
        seconds: of the last step, data wait included.
        waited: of them, for data.
    """

    def __init__(
        self,
        board: Board,
        every: int = 10,
        flops: Callable[[Step], float] | None = None,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.board, self.every, self.flops, self.peak = board, every, flops, peak
        self.clock = clock
        self.tally = Tally()
        self.window = Window()
        self.skipped = 0
        self.seconds = self.waited = 0.0
        self._last_end: float | None = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.watch = Watch(trainer.profiler, self.clock)
        trainer.profiler = self.watch

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        trainer.profiler = self.watch.inner

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._last_end = None
        if self.board.record.has(module.step):  # the checkpoint was taken just before a validation
            self.tally.clear()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Step, index: int
    ) -> None:
        now, measured = self.clock(), module.last
        self.seconds, self.waited = now - self.watch.began, self.watch.waited
        beside = self.watch.began - self._last_end if self._last_end is not None else 0.0
        self._last_end = now
        self.skipped += measured.skipped
        self.window.steps += 1
        self.window.add(
            {
                "seconds": self.seconds,
                "waited": self.waited,
                "beside": beside,
                "samples": measured.samples,
                "tokens": measured.tokens,
                "flops": self.flops(batch) if self.flops else math.nan,
            }
        )
        if not measured.skipped:
            losses = {"training": measured.loss} | measured.parts
            self.window.add({f"loss/{name}": value for name, value in losses.items()})
            self.window.add({"optimizer/gradient norm": measured.gradient})
            self.tally.add(measured.by_sample)
        if measured.step % self.every == 0 or measured.step == module.config.optimizer.steps:
            point = self.point() | memory(module.device)
            point["optimizer/learning rate"] = measured.rate
            point["optimizer/skipped steps"] = self.skipped
            point["data/broken"] = module.broken
            self.board.scalars(point, measured.step)
            self.window = Window()

    def point(self) -> dict[str, float]:
        """The curves' values over the window; NaN where there is none."""
        window = self.window
        seconds, beside = window.sum("seconds"), window.sum("beside")
        flops = window.mean("flops") * window.steps / seconds  # NaN where none are counted
        means = {name: window.mean(name) for name in window.sums if "/" in name}
        return means | {
            "machine/step seconds": window.mean("seconds"),
            "machine/data wait": window.sum("waited") / seconds,
            "machine/beside": beside / (seconds + beside),
            "machine/samples a second": window.sum("samples") / seconds,
            "machine/tokens a second": window.sum("tokens") / seconds,
            "machine/TFLOP a second": flops / 1e12,
            "machine/MFU": flops / self.peak if self.peak else math.nan,
        }

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        values = {}
        if module.ema:  # by every rank: weights may be sharded
            values["optimizer/EMA drift"] = module.ema.drift(module.network)
        values |= {f"tier/{tier}": loss for tier, loss in self.tally.by_tier().items()}
        for score, means in self.tally.by_decile().items():
            values |= {f"{SCORE}{score}/{number:02d}": loss for number, loss in means.items()}
        if not self.board.repeats:
            self.board.scalars(values, module.step)
            if table := self.tally.table():
                self.board.text("training loss by decile, over the mean", table, module.step)
        self.tally.clear()

    def state_dict(self) -> dict[str, Any]:
        window = self.window
        return {
            "window": {"steps": window.steps, "sums": window.sums, "counts": window.counts},
            "skipped": self.skipped,
            "tally": self.tally.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self.window).update(state["window"])
        self.skipped = state["skipped"]
        self.tally.load_state_dict(state["tally"])


def memory(device: torch.device) -> dict[str, float]:
    """Of a GPU the most that was allocated since the last call, of a CPU what the process holds."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return {"machine/memory GiB": peak / GIB}
    try:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
    except OSError:  # not Linux
        return {}
    return {"machine/memory GiB": pages * os.sysconf("SC_PAGE_SIZE") / GIB}
