"""Which steps are not taken: those whose loss or gradient is no number, or leaps.

A single broken batch can undo days of training. Such a step leaves the weights as they are and is
counted; several in a row are no accident, and the run stops and names what it was reading.
"""

import math
from collections.abc import Callable
from typing import Any

from recipes.training import Optimizer

MEMORY = 0.98  # of the running mean and variance of the loss
SETTLED = 100  # steps seen before a leap can be told from a beginning


class Diverged(Exception):
    """Too many steps in a row could not be taken; one line with the last step's keys."""


class Guard:
    """Judges every step.

    Args:
        config: spike and give_up count here.
    """

    def __init__(self, config: Optimizer) -> None:
        self.config = config
        self.mean = self.variance = 0.0
        self.seen = 0
        self.skipped = 0  # in all
        self.row = 0  # just now, one after the other

    def afresh(self) -> None:
        """Forgets the losses so far: those to come are of another kind, such as longer clips."""
        self.mean = self.variance = 0.0
        self.seen = 0

    def admits(self, loss: float, gradient: float, keys: Callable[[], list[str]]) -> bool:
        """Whether to take a step.

        Args:
            loss, gradient: the step's loss and its gradient's norm, over all ranks.
            keys: says what it read, the most suspect first; asked only where the run stops.

        Raises:
            Diverged: it is the last of `give_up` steps in a row that were refused.
        """
        finite = math.isfinite(loss) and math.isfinite(gradient)
        if finite and not self._leaps(loss):
            self.row = 0
            self._learn(loss)
            return True
        self.skipped += 1
        self.row += 1
        if self.row >= self.config.give_up:
            what, read = f"loss {loss:.4g}, gradient {gradient:.4g}", keys()
            raise Diverged(
                f"{self.row} steps in a row were skipped ({what}); the last one read "
                f"{', '.join(read[:8])}{', …' if len(read) > 8 else ''}"
            )
        return False

    def _leaps(self, loss: float) -> bool:
        if not self.config.spike or self.seen < SETTLED:
            return False
        return loss > self.mean + self.config.spike * math.sqrt(self.variance)

    def _learn(self, loss: float) -> None:
        keep = min(MEMORY, self.seen / (self.seen + 1))  # at first a plain mean
        away = loss - self.mean
        self.mean += (1 - keep) * away
        self.variance = keep * (self.variance + (1 - keep) * away * away)
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "config"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
