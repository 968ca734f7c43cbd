"""How far training is: a bar on a terminal, elsewhere (a pipe, a log) a line now and then.

    step 12400/100000  loss 0.2871  6.21 s a step  data 1 %  6 d 7 h left

Time left is to the end of the recipe: the steps that are left at the pace of the last ones, with
their share of validation, samples and saving.
"""

import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

from training.batch import Batch
from training.charts import PAGE
from training.meters import Meters

EVERY = 60.0  # seconds between two lines off a terminal
RECENT = 100  # steps whose pace counts
SMOOTH = 0.95  # of the loss that is shown: what the running mean keeps a step
BLINK = 0.1  # seconds between two drawings of the bar


class Bar(Callback):
    """Shows the progress on standard error; stands after the meters.

    Args:
        meters: that time the steps.
        console: None: standard error.
        clock: seconds, rising.
    """

    def __init__(
        self,
        meters: Meters,
        console: Console | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.meters, self.clock = meters, clock
        self.console = console or Console(stderr=True, highlight=False)
        self.pace: deque[tuple[float, float]] = deque(maxlen=RECENT)  # seconds and waits of steps
        self.loss: float | None = None
        self.bar: Progress | None = None

    # --- what is said --------------------------------------------------------------------------

    def figures(self, step: int, steps: int) -> list[str]:
        """Loss, seconds a step, data wait and time left, as far as they are known."""
        found = []
        if self.loss is not None:
            found.append(f"loss {self.loss:.4f}")
        if self.pace:
            seconds = sum(one for one, _ in self.pace)
            waits = sum(one for _, one in self.pace)
            found.append(f"{duration(seconds / len(self.pace), 2)} a step")
            found.append(f"data {100 * waits / seconds:.0f} %")
            found.append(f"{duration(self.left(step, steps))} left")
        return found

    def left(self, step: int, steps: int) -> float:
        """Seconds to the end of the recipe."""
        pace = sum(one for one, _ in self.pace) / len(self.pace)
        return (steps - step) * (pace + self.beside / max(self.counted, 1))

    def line(self, step: int, steps: int) -> str:
        return "  ".join([f"step {step}/{steps}", *self.figures(step, steps)])

    def say(self, line: str) -> None:
        """A line of its own, above the bar where there is one."""
        self.console.print(line, markup=False, soft_wrap=True)

    # --- Lightning's hooks ---------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.beside, self.counted = 0.0, 0  # seconds between steps, and how many these were
        self.ended: float | None = None
        self.drawn = self.told = self.clock()
        if trainer.is_global_zero:
            self.say(f"curves: tensorboard --logdir {self.meters.board.run}, then {PAGE}")
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        # no thread of its own: loader processes are forked, and would inherit its locks
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            _Count(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
        )
        steps = module.config.optimizer.steps
        self.task = self.bar.add_task("training", total=steps, completed=module.step, figures="")
        self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        now, meters = self.clock(), self.meters
        if self.ended is not None:  # the first step of a process also warms up
            self.pace.append((meters.seconds, meters.waited))
            self.beside += max(0.0, now - self.ended - meters.seconds)
            self.counted += 1
        self.ended = now
        if not module.last.skipped:
            known = self.loss if self.loss is not None else module.last.loss
            self.loss = SMOOTH * known + (1 - SMOOTH) * module.last.loss
        if trainer.is_global_zero:
            self.show(module, "training")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Batch,
        index: int,
        loader: int = 0,
    ) -> None:
        if trainer.is_global_zero:
            self.show(module, "validating")

    def show(self, module: LightningModule, what: str) -> None:
        """Draws the bar anew, or prints a line, if it is time to."""
        now, step, steps = self.clock(), module.step, module.config.optimizer.steps
        if self.bar is not None:
            if now - self.drawn >= BLINK or step == steps:
                self.drawn = now
                figures = "  ".join(self.figures(step, steps))
                self.bar.update(self.task, completed=step, description=what, figures=figures)
                self.bar.refresh()
        elif what == "training" and (
            now - self.told >= EVERY or self.counted == 1 or step == steps
        ):
            self.told = now
            self.say(self.line(step, steps))

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero and "loss" in module.validation:
            others = ("psnr", "ssim", "lpips", "effnet-lite0")
            shown = [f"held-out loss {module.validation['loss']:.4f}"]
            shown += [
                f"{name} {value:.2f}" for name, value in module.validation.items() if name in others
            ]
            self.say("  ".join([f"step {module.step}", *shown]))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        self.stop()

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class _Count(ProgressColumn):
    def render(self, task) -> Text:
        return Text(f"{int(task.completed)}/{int(task.total)}")


def duration(seconds: float, digits: int = 0) -> str:
    """As people write it: 1.06 s, 4 min 5 s, 7 h 30 min, 6 d 7 h."""
    if round(seconds, digits) < 60:
        return f"{seconds:.{digits}f} s"
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    for (large, name), (small, below) in pairwise(units):
        rounded = round(seconds / small) * small
        if rounded >= large:
            whole, rest = divmod(rounded, large)
            return f"{whole} {name} {rest // small} {below}"
    raise ValueError(f"{seconds} s is no duration")
