"""Two caches for sampling, both off unless asked for: most steps look much like the one before.

    Guidance(5.0, step_cache=StepCache(0.08, rescale="t2v-1.3b"), guidance_cache=GuidanceCache(4))

- `StepCache` skips the transformer's blocks and adds what they added last time. This is the
  report's attention cache (arXiv 2503.20314, inference) taken over all blocks at once, with
  TeaCache's rule for when (Liu et al., arXiv 2411.19108): the drift of the time embedding.
- `GuidanceCache` skips the negative pass and adds its last known difference from the positive one:
  the report's CFG cache. The residual compensation is ours: the difference is carried on along a
  share of its last slope in sigma.

These classes only hold settings; whatever is remembered lives in one run's `StepRun` and
`GuidanceRun`, so nothing passes from one video to the next. When to reuse depends on the schedule
alone, never on the latents: a video is the same whatever else is in its batch, and nothing in the
loop waits for the device.

Legend: B batch, N tokens, D width, C T H W latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

INDICATORS = ("embedding", "modulation")

# TeaCache's fits from the drift of the indicator to the drift of the blocks' output, highest power
# first (github.com/ali-vilab/TeaCache, TeaCache4Wan2.1): for the embedding, for the modulation
RESCALE: dict[str, dict[str, tuple[float, ...]]] = {
    "t2v-1.3b": {
        "embedding": (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774),
        "modulation": (-52186.2437, 9230.41404, -528.275948, 13.6987616, -0.0499875664),
    },
    "t2v-14b": {
        "embedding": (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
        "modulation": (-303318.725, 49053.7029, -2655.30556, 58.7365115, -0.315583525),
    },
    "i2v-14b-480p": {
        "embedding": (-302.33167, 223.948934, -52.5463970, 5.87348440, -0.201973289),
        "modulation": (257151.496, -35422.9917, 1402.86849, -13.5890334, 0.132517977),
    },
    "i2v-14b-720p": {
        "embedding": (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683),
        "modulation": (8107.05460, 2133.93892, -372.934672, 16.6203073, -0.0417769401),
    },
}


@dataclass(frozen=True)
class StepCache:
    """Reuse the blocks' residual while the time embedding has drifted by less than `threshold`.

    The drift from one call to the next is mean |e − e'| / mean |e'| of the `indicator`: the time
    "embedding" [D], or the "modulation" [6, D] that every block sees. It is passed through the fit
    named by `rescale` (public weights only; None for a model of your own), added up, and set to 0
    at each full pass. The `first` and `last` steps are always computed. TeaCache's own settings:
    embedding with first=1, last=1; modulation with first=5, last=0; thresholds 0.05–0.08 for
    t2v-1.3b, 0.14–0.2 for t2v-14b. Without a fit look at `StepRun.plan`. At 0 nothing is reused.
    `compensate` is the share of the residual's last slope in sigma by which it is carried on: 0
    repeats it, and keeps one of B · N · D numbers for each of the passes; more keeps two.
    """

    threshold: float
    indicator: str = "embedding"
    rescale: str | None = None
    first: int = 1
    last: int = 1
    compensate: float = 0.0

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise ValueError(f"threshold={self.threshold}: at least 0, where nothing is reused")
        if self.indicator not in INDICATORS:
            raise ValueError(f"indicator={self.indicator!r}: choose {' or '.join(INDICATORS)}")
        if self.rescale is not None and self.rescale not in RESCALE:
            raise ValueError(f"rescale={self.rescale!r}: choose one of {', '.join(RESCALE)}")
        _check_share(self.compensate)


@dataclass(frozen=True)
class GuidanceCache:
    """Compute the negative pass only every `every`-th time; in between v_neg ≈ v_pos + difference.

    The difference is the last one that was computed, carried on by `compensate` times the slope in
    sigma of the last two. Half of it is best, or nearly, where the truth is known: on five mixtures
    of Gaussians in 2 to 32 dimensions it was worth some 10 dB over none and 5 dB over all of it.
    The `first` and `last` steps of a run are always computed. 1 reuses nothing. The cost of a
    guided run falls from 2 to 1 + 1/every.
    """

    every: int = 4
    first: int = 1
    last: int = 1
    compensate: float = 0.5

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every}: at least 1, where nothing is reused")
        _check_share(self.compensate)


@dataclass
class Count:
    """How often a pass of one branch (positive or negative) was computed, and how often reused."""

    computed: int = 0
    reused: int = 0


@dataclass
class Memory:
    """The last values of something that changes slowly with sigma.

    `at(sigma)` is the last one, carried on by `compensate` times the slope of the last two.
    """

    compensate: float
    points: list[tuple[float, Tensor]] = field(default_factory=list)

    def put(self, sigma: float, value: Tensor) -> None:
        kept = [point for point in self.points if point[0] != sigma]
        self.points = [*kept[-1:], (sigma, value)] if self.compensate else [(sigma, value)]

    def at(self, sigma: float) -> Tensor:
        last, value = self.points[-1]
        if len(self.points) == 1 or sigma == last:
            return value
        before, older = self.points[0]
        return value + (value - older) * (self.compensate * (sigma - last) / (last - before))

    def fits(self, shape: torch.Size) -> bool:
        return bool(self.points) and self.points[-1][1].shape == shape


class StepRun:
    """One run of a WanDiT under a StepCache.

    `sigmas` and `timesteps` are those of the run's steps, in order. The network is called as ever;
    for the length of a call its `recompute`, through which every block runs, is one of ours, which
    notes what the blocks add or adds it in their place. A compiled network has a graph for each.
    """

    def __init__(
        self,
        dit,
        cache: StepCache,
        sigmas: Sequence[float],
        timesteps: Sequence[float],
        device: torch.device | None = None,
    ) -> None:
        self.dit, self.cache = dit, cache
        self.place = {sigma: i for i, sigma in enumerate(sigmas)}
        self.fit = RESCALE[cache.rescale][cache.indicator] if cache.rescale else (1.0, 0.0)
        with torch.no_grad():
            seen = dit.embed_time(torch.tensor(timesteps, dtype=torch.float32, device=device))
        seen = seen[INDICATORS.index(cache.indicator)].flatten(1).double().cpu()
        self.indicators = dict(zip(sigmas, seen, strict=True))
        self.branches: dict[str, _Branch] = {}

    def __call__(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor | None,
        condition: Tensor | None,
        sigma: float,
        branches: Sequence[str],
        counts: dict[str, Count],
    ) -> Tensor:
        """The velocity; the batch holds the branches one after the other, in equal parts."""
        shape = torch.Size((len(latents) // len(branches), *latents.shape[1:]))
        states = [self.branches.setdefault(name, _Branch(self.cache)) for name in branches]
        # each branch moves on, whatever the others say; reuse must suit all, they share the batch
        suits = [self._may_reuse(state, sigma, shape) for state in states]
        reuses = all(suits)
        usual = self.dit.recompute
        if reuses:
            blocks = _Replaced(torch.cat([state.residual.at(sigma) for state in states]))
        else:
            blocks = _Noted(usual, len(self.dit.blocks))
        self.dit.recompute = blocks
        try:
            velocity = self.dit(latents, timestep, text, image=image, condition=condition)
        finally:
            self.dit.recompute = usual
        if not reuses:
            for state, residual in zip(states, blocks.residual.chunk(len(states)), strict=True):
                state.drift, state.shape = 0.0, shape
                state.residual.put(sigma, residual)
        for name in branches:
            counts[name].reused += reuses
            counts[name].computed += not reuses
        return velocity

    def plan(self) -> list[bool]:
        """Which steps are to be reused where each takes one call; known before the run."""
        state, shape, reuses = _Branch(self.cache), torch.Size(), []
        for sigma in self.place:
            reuses.append(self._may_reuse(state, sigma, shape))
            if not reuses[-1]:
                state.drift, state.shape = 0.0, shape
        return reuses

    def _may_reuse(self, state: "_Branch", sigma: float, shape: torch.Size) -> bool:
        now, before = self.indicators[sigma], state.indicator
        state.indicator = now
        if before is None or state.shape != shape:
            state.residual = Memory(self.cache.compensate)
            return False
        state.drift += self.rescaled(float((now - before).abs().mean() / before.abs().mean()))
        step, steps = self.place[sigma], len(self.place)
        inside = self.cache.first <= step < steps - self.cache.last
        return inside and state.drift < self.cache.threshold

    def rescaled(self, drift: float) -> float:
        """The fit's value, never below 0: outside of what they were fitted to, some fall below."""
        value = 0.0
        for coefficient in self.fit:
            value = value * drift + coefficient
        return max(value, 0.0)


def _check_share(compensate: float) -> None:
    if not 0 <= compensate <= 1:
        raise ValueError(f"compensate={compensate}: a share of the slope, 0 to 1")


class _Branch:
    """What a StepRun remembers of the positive or of the negative pass."""

    def __init__(self, cache: StepCache) -> None:
        self.shape: torch.Size | None = None  # of the latents
        self.indicator: Tensor | None = None
        self.drift = 0.0
        self.residual = Memory(cache.compensate)


class _Noted:
    """Runs the blocks as `usual` does, and notes what they add to the tokens."""

    def __init__(self, usual, blocks: int) -> None:
        self.usual, self.last = usual, blocks - 1
        self.before: Tensor | None = None
        self.residual: Tensor | None = None

    def __call__(self, index: int, block, x: Tensor, *inputs) -> Tensor:
        if index == 0:
            self.before = x
        x = self.usual(index, block, x, *inputs)
        if index == self.last:
            self.residual = x - self.before
        return x


class _Replaced:
    """Runs no block: the first one's place takes the residual of all."""

    def __init__(self, residual: Tensor) -> None:
        self.residual = residual

    def __call__(self, index: int, block, x: Tensor, *inputs) -> Tensor:
        return x + self.residual if index == 0 else x


class GuidanceRun:
    """One run under a GuidanceCache: ask `reuses`, then `put` a difference or take `negative`."""

    def __init__(self, cache: GuidanceCache, sigmas: Sequence[float]) -> None:
        self.cache = cache
        self.place = {sigma: i for i, sigma in enumerate(sigmas)}
        self.difference = Memory(cache.compensate)
        self.since = 0  # calls since the last computed one, itself included

    def reuses(self, sigma: float, shape: torch.Size) -> bool:
        step, steps = self.place[sigma], len(self.place)
        inside = self.cache.first <= step < steps - self.cache.last
        if not self.difference.fits(shape):
            self.difference = Memory(self.cache.compensate)
            return False
        return inside and self.since < self.cache.every

    def put(self, sigma: float, difference: Tensor) -> None:
        self.difference.put(sigma, difference)
        self.since = 1

    def negative(self, sigma: float, positive: Tensor) -> Tensor:
        self.since += 1
        return positive + self.difference.at(sigma)
