"""What both networks' training shares: one step over several batches, the guard, the EMA.

A subclass says what its loss is (`losses`) and how it is validated (`measure`); it knows no file
path. Noise, noise levels and dropout are drawn from (seed, step, batch), so a resumed run draws
what an uninterrupted one would have drawn.
"""

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from recipes.training import Fit
from training.batch import Batch, Step
from training.buckets import phases
from training.ema import EMA
from training.guard import Guard
from training.optimizers import optimizers
from training.parallel import meet
from training.rate import Rate


@dataclass
class Losses:
    """Of one batch."""

    total: Tensor  # [B], what is minimised, differentiable
    parts: dict[str, Tensor] = field(default_factory=dict)  # what it is made of: scalars


@dataclass
class Sample:
    """What a training step saw of one sample."""

    key: str
    tier: str | None
    scores: dict[str, float]
    loss: float


@dataclass
class Measured:
    """What a step was."""

    step: int
    loss: float
    parts: dict[str, float]
    gradient: float  # its norm before clipping
    rate: float
    samples: int  # over all ranks
    tokens: int
    batches: list[tuple[str, int]]  # this rank's: a bucket's name and how many samples
    skipped: bool
    by_sample: list[Sample]


class Trained(LightningModule):
    """Trains one network.

    Args:
        network: a WanDiT or WanVAE.
        config: the recipe.
    """

    kind: str  # dit or vae
    automatic_optimization = False

    def __init__(self, network: nn.Module, config: Fit) -> None:
        super().__init__()
        self.network = network
        self.config = config
        optimizer = config.optimizer
        self.ema = EMA(network, optimizer.ema) if optimizer.ema else None
        self.rate = Rate(optimizer)
        self.guard = Guard(optimizer)
        self.starts = [step for step, _ in phases(config.buckets)]  # where clips grow longer
        self.step = 0  # taken or skipped
        self.broken = 0  # samples that could not be read, over all ranks and starts
        self.broken_before = 0  # this start
        self.last: Measured | None = None
        self.validation: dict[str, float] = {}

    # --- what a subclass says ------------------------------------------------------------------

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        """The loss of a batch, everything random drawn from the generator (on the CPU)."""
        raise NotImplementedError

    def stepped(self) -> None:
        """After an update of the weights; an adversary is trained here."""

    def measure(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """What validation measures of a batch, one value a sample; `loss` decides.

        A name may hold a path, e.g. `timestep/0500`; all are averaged over the clips.
        """
        raise NotImplementedError

    def finish(self, data: LightningDataModule) -> None:
        """After the last step, before the run is marked as done."""

    # --- one step ------------------------------------------------------------------------------

    @property
    def averaged(self) -> nn.Module:
        """The network to evaluate: the EMA where there is one."""
        return self.ema.network if self.ema else self.network

    def training_step(self, step: Step, index: int) -> None:
        together = self.optimizers()
        together = together if isinstance(together, list) else [together]
        for optimizer in together:
            optimizer.zero_grad()
        sums, by_sample = {"loss": torch.zeros((), device=self.device)}, []
        for batch in step.batches:
            share = batch.tokens / step.tokens
            losses = self.losses(batch, self.generator(step.number, batch.number))
            meet(self.network, self.trainer.strategy.model, batch is step.batches[-1])
            # ranks' gradients are averaged, but they are parts of a whole: of the step's tokens
            # and, where ranks share a sequence, of the sequence's
            self.manual_backward(losses.total.mean() * (share * self.trainer.world_size))
            each = losses.total.detach()
            sums["loss"] = sums["loss"] + share * each.mean()
            for name, value in losses.parts.items():
                sums[name] = sums.get(name, 0) + share * value.detach()
            by_sample += self._seen(batch, each)
        seen = {name: float(self.summed(value)) for name, value in sums.items()}
        gradient = float(self.clipped())
        rate = self.rate.at(self.step)
        if self.step in self.starts:
            self.guard.afresh()  # longer clips lose more: that is no leap
        taken = self.guard.admits(seen["loss"], gradient, lambda: self.suspects(by_sample))
        if taken:
            for optimizer in together:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
            if self.ema:
                self.ema.follow(self.network)
            self.stepped()
        self.step += 1
        # Lightning validates after a step that it is told to stop at
        self.trainer.should_stop = self.step >= self.config.optimizer.steps
        self.last = Measured(
            step=self.step,
            loss=seen.pop("loss"),
            parts=seen,
            gradient=gradient,
            rate=rate,
            samples=step.samples,
            tokens=step.tokens,
            batches=[(batch.bucket.name, len(batch)) for batch in step.batches],
            skipped=not taken,
            by_sample=by_sample,
        )

    def generator(self, step: int, number: int) -> torch.Generator:
        """Draws for one batch of one step, the same on every machine."""
        text = f"{self.config.seed}/{step}/{number}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def clipped(self) -> Tensor:
        """Shortens the gradient to `optimizer.clip`; its length before."""
        parameters = [one for one in self.network.parameters() if one.grad is not None]
        limit = self.config.optimizer.clip or float("inf")
        length = nn.utils.clip_grad_norm_(parameters, limit)
        return length.full_tensor() if hasattr(length, "full_tensor") else length

    @staticmethod
    def _seen(batch: Batch, losses: Tensor) -> list[Sample]:
        tiers = batch.tiers or [None] * len(batch)
        scores = batch.scores or [{}] * len(batch)
        rows = zip(batch.keys, tiers, scores, losses.tolist(), strict=True)
        return [Sample(*row) for row in rows]

    # --- several ranks -------------------------------------------------------------------------

    def suspects(self, mine: list[Sample]) -> list[str]:
        """Keys of all ranks' samples: those without a loss first, then the largest losses."""
        ranks: list[Any] = [[(one.loss, one.key) for one in mine]]
        if self.trainer.world_size > 1:
            ranks *= self.trainer.world_size
            dist.all_gather_object(ranks, ranks[0])
        worst = sorted(
            (one for rank in ranks for one in rank),
            key=lambda one: -one[0] if math.isfinite(one[0]) else -math.inf,
        )
        return list(dict.fromkeys(key for _, key in worst))  # ranks may share a sequence

    def count_broken(self) -> None:
        broken = torch.tensor(float(self.trainer.datamodule.broken), device=self.device)
        self.broken = self.broken_before + int(self.summed(broken))

    def summed(self, value: Tensor) -> Tensor:
        """Over the ranks that read different batches."""
        if self.trainer.world_size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.config.compute.context

    # --- Lightning's hooks ---------------------------------------------------------------------

    def on_train_batch_start(self, step: Step, index: int) -> None:
        self.count_broken()

    def configure_model(self) -> None:
        """Lightning insists that a sharded network is sharded here; it was before the EMA."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return optimizers(self.network, self.config.optimizer)

    def on_validation_epoch_start(self) -> None:
        self._sums: dict[str, list[float]] = {}

    @torch.no_grad()
    def validation_step(self, batch: Batch, index: int) -> None:
        found = self.measure(batch, index)  # of a repeat too: weights may be spread over the ranks
        if batch.repeat:
            return
        for name, values in found.items():
            total = self._sums.setdefault(name, [0.0, 0.0])
            total[0] += float(values.double().sum())
            total[1] += values.numel()

    def on_validation_epoch_end(self) -> None:
        self.count_broken()  # held-out ones too
        ranks = [self._sums]
        if self.trainer.world_size > 1:  # a rank may have clips of buckets that others have not
            ranks = [None] * self.trainer.world_size
            dist.all_gather_object(ranks, self._sums)
        found = {}
        for name in sorted({name for sums in ranks for name in sums}):
            total, count = (sum(sums.get(name, (0, 0))[i] for sums in ranks) for i in (0, 1))
            found[name] = total / count
        self.validation = found
        # what is held out is as long as clips ever become: until they are, a plateau says that the
        # clips of this phase are learnt, not that the rate is too high
        if "loss" in found and self.step >= self.starts[-1]:
            self.rate.saw(found["loss"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["trained"] = {
            "step": self.step,
            "rate": self.rate.state_dict(),
            "guard": self.guard.state_dict(),
            "validation": self.validation,
            "broken": self.broken,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["trained"]
        self.step, self.validation = state["step"], state["validation"]
        self.broken = self.broken_before = state.get("broken", 0)  # none in older checkpoints
        self.rate.load_state_dict(state["rate"])
        self.guard.load_state_dict(state["guard"])
