"""Which training samples the losses come from: by curation tier, and by decile of each score.

Does a score say anything of what a model can learn? If clips that curation would drop lose more, or
less, than those it prefers, it shows here, on the samples as they are drawn.

Deciles are those of the samples counted, by rank; equal scores stand together in the decile of
their middle, so that a score which is 0 for most clips fills one decile and leaves its neighbours
empty.
"""

import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from recipes.schema import Select
from training.module import Sample

LEAST = 100  # samples with a score, before its deciles mean anything
MOST = 32_768  # samples remembered, the last ones
# The scores that thresholds stand on; where a shard has none of them, all that it has
THRESHOLDS = {one.name[4:] for one in fields(Select) if one.name.startswith(("min_", "max_"))}


class Tally:
    """Losses of the samples since the last `clear`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.losses: list[float] = []
        self.tiers: list[str] = []  # "" where there is none
        self.scores: dict[str, list[float]] = {}  # as long as losses; NaN where there is none

    def __len__(self) -> int:
        return len(self.losses)

    def add(self, samples: Iterable[Sample]) -> None:
        """Counts samples; those whose loss is no number are passed over."""
        for one in samples:
            if not math.isfinite(one.loss):
                continue
            for name in one.scores.keys() - self.scores.keys():
                self.scores[name] = [math.nan] * len(self)
            for name, column in self.scores.items():
                value = one.scores.get(name)
                is_number = isinstance(value, int | float)
                column.append(float(value) if is_number else math.nan)
            self.losses.append(one.loss)
            self.tiers.append(one.tier or "")
        spare = len(self) - MOST
        if spare > 0:
            for column in (self.losses, self.tiers, *self.scores.values()):
                del column[:spare]

    def by_tier(self) -> dict[str, float]:
        """The mean loss of each tier."""
        found: dict[str, list[float]] = {}
        for tier, loss in zip(self.tiers, self.losses, strict=True):
            if tier:
                found.setdefault(tier, []).append(loss)
        return {tier: sum(losses) / len(losses) for tier, losses in sorted(found.items())}

    def by_decile(self) -> dict[str, dict[int, float]]:
        """The mean loss in the deciles 1 (lowest) to 10 of each score that tells samples apart."""
        wanted = self.scores.keys() & THRESHOLDS or self.scores.keys()
        losses = exact(self.losses)
        found = {}
        for name in sorted(wanted):
            scores = exact(self.scores[name])
            known = ~scores.isnan()
            if int(known.sum()) < LEAST:
                continue
            decile = deciles(scores[known])
            if len(present := decile.unique().tolist()) > 1:
                means = {one: float(losses[known][decile == one].mean()) for one in present}
                found[name] = means
        return found

    def table(self) -> str:
        """The deciles as a table in Markdown, each loss over the mean of all samples' losses."""
        rows = self.by_decile()
        if not rows:
            return ""
        mean = sum(self.losses) / len(self)
        numbers = range(1, 11)
        lines = [["score, decile", *map(str, numbers)], ["---"] * 11]
        for name, means in rows.items():
            cells = [f"{means[one] / mean:.3f}" if one in means else "" for one in numbers]
            lines.append([name, *cells])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def state_dict(self) -> dict[str, Any]:
        scores = {name: exact(column) for name, column in self.scores.items()}
        return {"losses": exact(self.losses), "tiers": list(self.tiers), "scores": scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.tiers = state["losses"].tolist(), list(state["tiers"])
        self.scores = {name: column.tolist() for name, column in state["scores"].items()}


def exact(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def deciles(values: Tensor) -> Tensor:
    """Of each value [N] its decile among them, 1 to 10, equal values in that of their mean rank."""
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    middle = counts.cumsum(0) - counts / 2  # of a value's ranks, in 0..N
    return (10 * middle[which] / len(values)).ceil().clamp(1, 10).long()
