"""A plan: what a recipe takes on a machine, in memory, arithmetic, days and money.

`training.preflight` makes it.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from rich.table import Table
from rich.text import Text

from model.dit import WanDiT
from model.vae import WanVAE
from recipes.training import Fit
from training import flops, workload
from training.batch import Step
from training.footprint import IMAGE_TOKENS
from training.frozen import Size
from training.machine import Machine
from training.memory import GIB, Moment, Spread
from training.workload import Full

DAY = 86400.0  # seconds


@dataclass(frozen=True)
class Networks:
    """The trained network and a DiT's VAE on the meta device, and how large the frozen ones are."""

    trained: WanDiT | WanVAE
    optimiser: int  # bytes of its state
    vae: WanVAE | None = None
    still: tuple[Size, ...] = ()

    @property
    def is_dit(self) -> bool:
        return isinstance(self.trained, WanDiT)

    @property
    def text(self) -> int:
        """Tokens of text and image beside each sample; 0 for a VAE."""
        if not self.is_dit:
            return 0
        sizes = self.trained.config
        image = (sizes["image_positions"] or IMAGE_TOKENS) if sizes["image_width"] else 0
        return sizes["text_length"] + image


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a step, over all GPUs."""

    forward: float  # of the trained network
    backward: float
    again: float  # what backward computes again
    still: float  # of the other networks: encoders, or those in a VAE's loss

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.again + self.still


@dataclass(frozen=True)
class Plan:
    """What a recipe takes on a machine."""

    config: Fit
    machine: Machine
    networks: Networks
    spread: Spread
    heaviest: Full  # the batch that takes most memory
    moments: list[Moment]  # of a step, and what is held then

    # --- memory --------------------------------------------------------------------------------

    @property
    def peak(self) -> Moment:
        """The moment that takes most."""
        return max(self.moments, key=lambda one: one.total)

    @property
    def fits(self) -> bool:
        return self.peak.total <= self.machine.memory

    # --- arithmetic ----------------------------------------------------------------------------

    @cached_property
    def mix(self) -> dict[Full, float]:
        return workload.mix(self.config)

    @property
    def tokens(self) -> float:
        """Of a step, on average, over all GPUs."""
        return self.config.buckets.batches * sum(one.tokens * n for one, n in self.mix.items())

    @cached_property
    def work(self) -> Work:
        """Of a step, on average."""
        sums = [0.0] * 4
        for load, share in self.mix.items():
            cost = self._flops(load)
            each = (cost.forward, cost.backward, self._again(cost), self._still(load))
            samples = share * load.samples * self.config.buckets.batches
            sums = [total + samples * one for total, one in zip(sums, each, strict=True)]
        return Work(*sums)

    def _flops(self, load: Full) -> flops.Flops:
        count = flops.of_dit if self.networks.is_dit else flops.of_vae  # text as long as it may be
        return count(self.networks.trained.config, load.bucket)

    def _again(self, cost: flops.Flops) -> float:
        how = self.config.compute
        if not self.networks.is_dit:
            return cost.again("none" if how.recompute == "none" else "full")
        layers = self.networks.trained.config["num_layers"]
        again = layers if how.recompute_blocks is None else min(how.recompute_blocks, layers)
        return cost.again(how.recompute) * again / layers

    def _still(self, load: Full) -> float:
        config = self.config
        if not self.networks.is_dit:
            alone = flops.of_judging(replace(config.loss, gan=0.0), load.bucket)
            all_of_them = flops.of_judging(config.loss, load.bucket)
            opposed = max(0.0, 1 - config.loss.gan_start / config.optimizer.steps)  # of the steps
            return alone + opposed * (all_of_them - alone)
        clips = 0 if config.data.latents else 1 + any(config.objective.masks.values())
        encoded = clips and clips * flops.of_encoding(self.networks.vae.config, load.bucket)
        return encoded + sum(one.flops for one in self.networks.still)

    @property
    def peak_flops(self) -> float | None:
        """FLOP/s of one device at best; None where it is not known."""
        return self.machine.peak(self.config.compute.precision) or None

    def step_flops(self, step: Step) -> float:
        """Operations of one rank's step: forward and backward of the trained network."""
        return flops.step_flops(self.networks.trained, step.batches, self.spread.context)

    # --- time and money ------------------------------------------------------------------------

    def _seconds(self, work: float) -> float:
        """Of operations that all devices share; NaN where their speed is not known."""
        speed = (self.peak_flops or math.nan) * self.config.compute.mfu
        return work / (speed * self.machine.count)

    @property
    def step_seconds(self) -> float:
        return self._seconds(self.work.total)

    @property
    def validation_seconds(self) -> float:
        """Of one validation, on the sizes that are reckoned with."""
        asked = self.config.validate
        levels = asked.timesteps if self.networks.is_dit else 1
        return self._seconds(asked.clips * levels * sum(self._flops(n).forward for n in self.mix))

    @property
    def days(self) -> float:
        steps, every = self.config.optimizer.steps, self.config.validate.every
        validations = steps // every if every else 0
        return (steps * self.step_seconds + validations * self.validation_seconds) / DAY

    @property
    def gpu_hours(self) -> float:
        return 24 * self.days * self.machine.count

    # --- what a person reads -------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.config.recipe or self.config.trains

    def rows(self) -> list[tuple[str, str]]:
        """Names and values of the table."""
        config, how = self.config, self.config.compute
        trained = sum(one.numel() for one in self.networks.trained.parameters())
        kind = type(self.networks.trained).__name__
        found = [("trains", f"{kind} {config.model}, {count(trained)} parameters")]
        if self.networks.still:
            still = ", ".join(f"{one.name} {count(one.parameters)}" for one in self.networks.still)
            found.append(("frozen", still))
        speed = self.peak_flops
        top = f", {count(speed, 'FLOP/s')} in {how.precision}" if speed else ""
        each = " each" if self.machine.count > 1 else ""
        found.append(("on", f"{self.machine.words}, {gib(self.machine.memory)}{each}{top}"))
        found.append(("spread", self._spread()))
        return found + self._step() + self._memory() + self._price()

    @property
    def _others(self) -> str:
        return "encoders" if self.networks.is_dit else "the loss's networks"

    def _step(self) -> list[tuple[str, str]]:
        batches, work = self.config.buckets.batches, self.work
        tokens = f"up to {self.config.buckets.tokens:,} tokens"
        words = f"1 batch of {tokens}"
        if batches > 1:
            words = f"{batches} batches of {tokens}, {min(batches, self.spread.readers)} at a time"
        each = {"forward": work.forward, "backward": work.backward}
        each |= {"again": work.again, self._others: work.still}
        parts = ", ".join(f"{kind} {count(n, 'FLOP')}" for kind, n in each.items() if n)
        return [
            ("a step", f"{words}: {count(self.tokens)} tokens"),
            ("", f"{count(work.total, 'FLOP')}: {parts}"),
        ]

    def _spread(self) -> str:
        how, spread = self.config.compute, self.spread
        words = [spread.strategy]
        if spread.strategy == "fsdp":
            words.append(f"weights over {spread.shard}")
        if spread.context > 1:
            words.append(f"a sequence over {spread.context}")
        blocks = f" of {how.recompute_blocks} blocks" if how.recompute_blocks is not None else ""
        words.append(f"recompute {how.recompute}{blocks if how.recompute != 'none' else ''}")
        return ", ".join(words)

    def _memory(self) -> list[tuple[str, str]]:
        peak = self.peak
        verdict = "" if self.fits else ": does not fit"
        what = f" of {self.heaviest.name}" if "backward" in peak.name else ""
        head = f"{gib(peak.total)} of {gib(self.machine.memory)}{verdict} ({peak.name}{what})"
        kinds = dict.fromkeys(kind for one in self.moments for kind in one.kinds)
        last = sorted(kinds, key=lambda kind: kind == "reserve")
        return [("memory", head), *((f"  {kind}", self._kind(kind)) for kind in last)]

    def _kind(self, kind: str) -> str:
        """How much of a kind the moment that takes most holds, and another where that is more."""
        most = max(self.moments, key=lambda one: one.kinds.get(kind, 0))
        now, then = (one.kinds.get(kind, 0) for one in (self.peak, most))
        here = gib(now) if now else "none"
        return here if now == then else f"{here}; {gib(then)} at {most.name}"

    def _price(self) -> list[tuple[str, str]]:
        how, steps = self.config.compute, self.config.optimizer.steps
        if not self.peak_flops:
            return [("time", f"not known: nor is the speed of {self.machine.name}")]
        step = self.step_seconds
        each = f"{step:,.0f} s" if step >= 100 else f"{step:.2g} s"
        done = (self.work.forward + self.work.backward) / self._done_by(step)
        time = f"{span(self.days)} for {steps:,} steps of {each}, at {how.mfu:.0%} of peak"
        found = [("time", time)]
        if self.machine.cuda:
            hours, price = self.gpu_hours, how.price
            found.append(
                ("cost", f"{hours:,.0f} GPU hours, {hours * price:,.0f} at {price:g} each")
            )
        found.append(("MFU then", f"{done:.1%}, without what is done again and {self._others}"))
        return found

    def _done_by(self, seconds: float) -> float:
        """Operations that all devices could do in that time, at best."""
        return seconds * self.peak_flops * self.machine.count

    def table(self) -> Table:
        title = f"Plan: {self.name} on {self.machine.words}"
        grid = Table(title=title, title_justify="left", show_header=False, box=None)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in self.rows():
            grid.add_row(name, Text(value))
        return grid


def count(number: float, unit: str = "") -> str:
    """1.42 B, 55.6 PFLOP: a large number in three digits."""
    steps = ("", "k", "M", "G", "T", "P", "E") if unit else ("", "k", "M", "B", "T", "P", "E")
    at = 0
    while abs(number) >= 999.5 and at < len(steps) - 1:
        number, at = number / 1000, at + 1
    return f"{number:.3g} {steps[at]}{unit}".strip()


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def span(days: float) -> str:
    """A duration as people say it."""
    if days >= 2:
        return f"{days:,.1f} days"
    hours = 24 * days
    return f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:.0f} minutes"
