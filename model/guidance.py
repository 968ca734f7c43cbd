"""Classifier-free guidance: away from what the negative prompt says, towards what the prompt says.

v = v_neg + scale · (v_pos − v_neg)                     (Ho & Salimans, arXiv 2207.12598)

    velocity = Guidance(5.0)(dit, Conditioning(text), Conditioning(negative_text), sigmas)
    latents = unipc(velocity, noise, sigmas)

One such velocity serves one run: it holds what the caches remember, and its counts. The network is
called as dit(latents, timestep[B], text, image=…, condition=…) and answers noise − data.

Legend: B batch, C T H W latents, L text tokens, D text width, M image tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.flow import timestep
from model.stepcache import Count, GuidanceCache, GuidanceRun, StepCache, StepRun

POSITIVE, NEGATIVE = "positive", "negative"


@dataclass(frozen=True)
class Conditioning:
    """What the network is told besides the latents; a batch of 1 counts for every sample.

    text [B, L, D]; image [B, M, 1280] (CLIP tokens); condition [B, 20, T, H, W] (mask, latents).
    """

    text: Tensor
    image: Tensor | None = None
    condition: Tensor | None = None


@dataclass(frozen=True)
class Guidance:
    """How to guide. `scale` 1 is the positive pass alone.

    interval: the sigmas, ends included, within which to guide; outside only the positive pass is
    computed (Kynkäänniemi et al., arXiv 2404.07724). batched: both passes as one batch of 2 · B,
    which is faster where the GPU is not full; otherwise one after the other, in half the memory.
    whole_timesteps: ask at whole timesteps, as the public pipelines do. The caches: `stepcache.py`.
    """

    scale: float = 5.0
    interval: tuple[float, float] = (0.0, 1.0)
    batched: bool = True
    whole_timesteps: bool = True
    step_cache: StepCache | None = None
    guidance_cache: GuidanceCache | None = None

    def __post_init__(self) -> None:
        if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(f"interval={self.interval}: two rising sigmas between 0 and 1")

    def __call__(
        self,
        dit,
        positive: Conditioning,
        negative: Conditioning | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> "GuidedVelocity":
        """A fresh velocity(x [B, C, T, H, W], sigma) for one run over `sigmas` (for the caches)."""
        return GuidedVelocity(self, dit, positive, negative, sigmas)


class GuidedVelocity:
    """velocity(x, sigma) for a solver. `counts` says how many passes were computed and reused."""

    def __init__(
        self,
        guidance: Guidance,
        dit,
        positive: Conditioning,
        negative: Conditioning | None,
        sigmas: Sequence[float] | None,
    ) -> None:
        if guidance.scale != 1 and negative is None:
            raise ValueError(
                f"guidance {guidance.scale:g} needs a negative prompt, if an empty one"
            )
        if sigmas is None and (guidance.step_cache or guidance.guidance_cache):
            raise ValueError(
                "a cache needs the run's sigmas: guidance(dit, positive, negative, sigmas)"
            )
        self.guidance, self.dit = guidance, dit
        self.positive, self.negative = positive, negative
        self.counts = {POSITIVE: Count(), NEGATIVE: Count()}
        steps = [one for one in map(float, sigmas or ()) if one > 0]
        self.step_run: StepRun | None = None
        if guidance.step_cache:
            timesteps = [timestep(one, guidance.whole_timesteps) for one in steps]
            device = positive.text.device
            self.step_run = StepRun(dit, guidance.step_cache, steps, timesteps, device)
        self.guidance_run = (
            GuidanceRun(guidance.guidance_cache, steps) if guidance.guidance_cache else None
        )

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """x [B, C, T, H, W] → the guided velocity, in the shape and type of x."""
        low, high = self.guidance.interval
        if self.guidance.scale == 1 or not low <= sigma <= high:
            return self._passes(x, sigma, POSITIVE)[0]
        run = self.guidance_run
        if run is not None and run.reuses(sigma, x.shape):
            (positive,) = self._passes(x, sigma, POSITIVE)
            negative = run.negative(sigma, positive)
            self.counts[NEGATIVE].reused += 1
        else:
            positive, negative = self._passes(x, sigma, POSITIVE, NEGATIVE)
            if run is not None:
                run.put(sigma, negative - positive)
        return negative + self.guidance.scale * (positive - negative)

    def _passes(self, x: Tensor, sigma: float, *branches: str) -> list[Tensor]:
        """The velocity of each branch, together or in turn."""
        if len(branches) > 1 and not self.guidance.batched:
            return [self._passes(x, sigma, branch)[0] for branch in branches]
        told = [self.positive if branch == POSITIVE else self.negative for branch in branches]
        parts = [
            [_fit(part, len(x)) for part in (one.text, one.image, one.condition)] for one in told
        ]
        text, image, condition = (_join(part) for part in zip(*parts, strict=True))
        latents = x if len(branches) == 1 else torch.cat([x] * len(branches))
        asked = timestep(sigma, self.guidance.whole_timesteps)
        time = torch.full((len(latents),), asked, dtype=torch.float32, device=x.device)
        if self.step_run is not None:
            answer = self.step_run(
                latents, time, text, image, condition, sigma, branches, self.counts
            )
        else:
            answer = self.dit(latents, time, text, image=image, condition=condition)
            for branch in branches:
                self.counts[branch].computed += 1
        return list(answer.to(x.dtype).chunk(len(branches)))


def _fit(part: Tensor | None, batch: int) -> Tensor | None:
    """A part of the conditioning for a batch: one for all, or one each."""
    if part is None or len(part) == batch:
        return part
    if len(part) != 1:
        raise ValueError(f"conditioning for {len(part)} samples, latents for {batch}")
    return part.expand(batch, *part.shape[1:])


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The branches' parts one after the other."""
    if len({part is None for part in parts}) > 1:
        raise ValueError("image and condition must be given to both passes or to neither")
    if parts[0] is None:
        return None
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]
