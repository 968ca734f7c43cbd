"""The learning rate of a step: warm-up × decay × what plateaus have left of it.

Wan's report (arXiv 2503.20314, section 4.2) starts at 1e-4 and lowers the rate when FID and CLIP
score stop improving; it states neither warm-up nor factor. Ours: by default the measure is the
validation loss at fixed noise levels, which needs no outside model.
"""

import math
from typing import Any

from recipes.training import Optimizer


class Rate:
    """The rate of each step, and its memory of validations.

    Args:
        config: lr, steps, warmup, decay, patience, factor and improvement count here.
    """

    def __init__(self, config: Optimizer) -> None:
        self.config = config
        self.scale = 1.0  # what plateaus have left
        self.best = math.inf
        self.waited = 0  # validations since the best

    def at(self, step: int) -> float:
        """The rate of a step, the first being 0."""
        config = self.config
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        fall = config.decay * config.steps
        left = min(1.0, (config.steps - step) / fall) if fall else 1.0
        return config.lr * self.scale * warm * left

    def saw(self, measure: float) -> bool:
        """Takes a validation's measure, lower being better; whether the rate was lowered for it."""
        config = self.config
        if measure < self.best * (1 - config.improvement):
            self.best, self.waited = measure, 0
            return False
        self.waited += 1
        if not config.patience or self.waited < config.patience:
            return False
        self.scale *= config.factor
        self.waited = 0
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale, self.best, self.waited = state["scale"], state["best"], state["waited"]
