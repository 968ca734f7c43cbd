"""When a run is saved: every so many steps and minutes, where it is best, at the end, when stopped.

    trainer = Trainer(callbacks=[…, Saver(run, parts, trained_on)], enable_checkpointing=False)
    trainer.fit(module, datamodule=data, ckpt_path=run.resume_path(), weights_only=True)

A step that is validated is saved after its validation, so that the checkpoint has its score.
SIGTERM (clusters preempt) and Ctrl-C end the step or samples that are under way, save, and exit
with 143 or 130; a second Ctrl-C exits at once. What is saved, and how, is `training.snapshot`'s.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from training import snapshot
from training.environment import now
from training.guard import Diverged
from training.runs import Run
from training.snapshot import NotSaved, agreed

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A signal ended the training; its exit status is the one that shells expect."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Saver(Callback):
    """Saves a run. The last of a trainer's callbacks, so that it saves what the others have done.

    Args:
        run: whose checkpoints.
        parts: what the network is trained with (vae, text_encoder, image_encoder), each by its
            place relative to the run's folder, by another path, or by its name on the hub.
        trained_on: fields of `model.defaults.Defaults`: how to sample.
        left: does what the last process was stopped at, before the first step.
        clock: seconds.
    """

    def __init__(
        self,
        run: Run,
        parts: Mapping[str, str] | None = None,
        trained_on: Mapping[str, Any] | None = None,
        left: Callable[[Trainer, LightningModule], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run = run
        self.parts = dict(parts or {})
        self.trained_on = dict(trained_on or {})
        self.left = left
        self.clock = clock
        self.signal = 0  # that asked us to stop
        self.saved = -1  # the last step that was
        self._since = clock()
        self._due = False  # the step waits for its validation
        self._owed = False  # the checkpoint was saved before its validation
        self._between = True  # two steps, and so in a state to be saved
        self._score: tuple[int, float] | None = None  # of the last validation, and its step
        self._handlers: dict[int, Any] = {}

    # --- what goes into the checkpoint and comes back --------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"owed": self._owed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._owed = state_dict["owed"]

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, kept: dict) -> None:
        # what was the last step may be so no longer: optimizer.steps has grown
        progress = kept["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if progress["total"]["ready"] < self.run.config.optimizer.steps:
            progress["is_last_batch"] = False

    # --- Lightning's hooks -----------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._since = self.clock()
        newest = self.run.newest()
        self.saved = newest.step if newest else -1
        # over Lightning's own, which would not save; it puts back what was there before
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._asked)
        if trainer.received_sigterm:  # while other callbacks began
            self.signal = signal.SIGTERM
        if self._owed:
            self._owed = False
            validate(trainer)
        elif self.left:
            self.left(trainer, module)
            stop, _ = self._agreed(trainer, module, False)
            if stop:
                # after the last step Lightning takes its epoch for over here, and what is left now
                # would be left for good: it is made anew instead
                if 0 < module.step < self.run.config.optimizer.steps:
                    self._save(trainer, module)
                raise Stopped(stop)

    def on_train_batch_start(self, *_: Any) -> None:
        self._between = False

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._between = True
        every, minutes = self.run.config.save.every, self.run.config.save.minutes
        late = bool(minutes) and self.clock() - self._since >= 60 * minutes
        stop, late = self._agreed(trainer, module, late)
        due = late or is_last(trainer) or (bool(every) and module.step % every == 0)
        validated = is_validated(trainer)
        if stop:
            self._save(trainer, module, owed=validated)
            raise Stopped(stop)
        if validated:
            self._due = due
        elif due:
            self._save(trainer, module)

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        # one of several ranks may have fewer batches; they wait for the end of the validation
        if self.signal and trainer.world_size == 1 and not trainer.sanity_checking:
            self._save(trainer, module, owed=True)
            raise Stopped(self.signal)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._score = (module.step, module.validation.get("loss", float("nan")))
        stop, best = self._agreed(trainer, module, self._is_best())
        if self._due or best or stop:
            self._save(trainer, module)
        self._due = False
        if stop:
            raise Stopped(stop)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save_once(trainer, module)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt):  # before the first step
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._tell(trainer)
            raise Stopped(signal.SIGINT) from None
        if isinstance(exception, Diverged):
            newest = self.run.newest()
            good = f"the last good checkpoint is {newest.path}" if newest else "none was saved yet"
            raise Diverged(
                f"{exception}; {good}; to go on: {self.run.command} (the same samples come again: "
                "a larger optimizer.give_up= passes over them, optimizer.spike= takes more)"
            ) from None
        if isinstance(exception, Stopped):
            self._tell(trainer)
        elif self.signal and self._between and trainer.world_size == 1:
            # the signal went to the loader's processes too, and waiting for them failed
            self._save_once(trainer, module)
            self._tell(trainer)
            raise Stopped(self.signal) from None

    # --- stopping --------------------------------------------------------------------------------

    def _asked(self, number: int, frame: FrameType | None) -> None:
        """A signal has come."""
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise Stopped(number)
        self.signal = number
        if number == signal.SIGINT:
            # not print, which a signal may have interrupted
            os.write(2, b"\nending the step, then saving; Ctrl-C again: stop at once\n")

    def _agreed(self, trainer: Trainer, module: LightningModule, first: bool) -> tuple[int, bool]:
        """The signal that any rank was sent, and what rank 0 says."""
        said = float(first and trainer.is_global_zero)
        stop, first = agreed(module, float(self.signal), said)
        self.signal = int(stop)
        return self.signal, bool(first)

    def _tell(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        newest = self.run.newest()
        where = f"saved: {newest.path}" if newest else "nothing was saved yet"
        print(f"stopped; {where}\nto go on: {self.run.command}", file=sys.stderr)

    # --- saving ----------------------------------------------------------------------------------

    def _is_best(self) -> bool:
        """Whether the validation just made is better than that of every checkpoint."""
        score = self._score[1]
        others = [one.validation for one in self.run.checkpoints() if one.validation is not None]
        return score < min(others, default=float("inf"))

    def _save_once(self, trainer: Trainer, module: LightningModule) -> None:
        if module.step not in (0, self.saved):
            self._save(trainer, module)

    def _save(self, trainer: Trainer, module: LightningModule, owed: bool = False) -> None:
        step, (of, score) = module.step, self._score or (-1, float("nan"))
        meta = {
            "step": step,
            "validation": score if of == step and abs(score) < float("inf") else None,
            "parts": self.parts,
            "trained_on": self.trained_on,
            "saved": now(),
        }
        folder = self.run.folder / "checkpoints" / f"step={step:08d}"
        self._owed = owed
        try:
            snapshot.write(trainer, module, folder, meta)
        except NotSaved as error:
            newest = self.run.newest()
            last = f"the last whole one is {newest.path.name}" if newest else "there is none yet"
            raise NotSaved(f"{error}; {last}; make room, then: {self.run.command}") from error
        finally:
            self._owed = False
        self.saved, self._since = step, self.clock()
        if trainer.is_global_zero:
            self._thin()

    def _thin(self) -> None:
        """Removes all but the last ones and the best."""
        best = self.run.best()
        for one in self.run.checkpoints()[: -self.run.config.save.keep]:
            if one.path != best:
                snapshot.remove(one.path)


def is_last(trainer: Trainer) -> bool:
    """Whether the step that has just been taken ends the training."""
    steps = trainer.fit_loop.total_batch_idx + 1
    return (
        trainer.should_stop
        or steps >= trainer.num_training_batches
        or 0 <= trainer.max_steps <= trainer.global_step
    )


def is_validated(trainer: Trainer) -> bool:
    """Whether a validation follows the step that has just been taken."""
    if not trainer.enable_validation or not sum(trainer.num_val_batches):
        return False
    every = trainer.val_check_batch
    due = isinstance(every, int) and (trainer.fit_loop.total_batch_idx + 1) % every == 0
    return due or trainer.should_stop


def validate(trainer: Trainer) -> None:
    """The validation that a signal kept from being made."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
