"""What a shortcut saves and what it changes: the same noise through a checkpoint, with and without.

    scene = Scene.of(bundle, prompts, settings, batch=1)
    uncached = Variant("uncached", settings.steps)
    variants = [parsed(text, scene) for text in ("guidance=4", "reuse=0.25+bfloat16")]
    take_turns([uncached, *variants], scene, noise, turns=3)
    away(variants[0].latents, decoded(scene, uncached.latents), scene, perceptual)

Times are of sampling alone, without text encoder and decoder. A pass is one of the DiT for one
video, the positive and the negative one apart. B videos, C L H W latents, T frames.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eval import quantization, stats
from eval.reconstruction import CEILING, Perceptual, by_frame
from eval.stats import Draws, Scores, plain
from model import flow, sampler
from model.bundle import Bundle
from model.distance import psnr, psnr_frames, ssim
from model.guidance import Conditioning, Guidance
from model.sampler import Settings
from model.solver import SOLVERS
from model.stepcache import GuidanceCache, StepCache, StepRun
from recipes.keys import UsageError

GATES = {"psnr": 25.0, "ssim": 0.90}  # cache-dit's, for caches: more than that, in the mean
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PARTS = "guidance=N, step=DRIFT, reuse=SHARE, compensate=SHARE, steps=N, " + ", ".join(
    (*DTYPES, *quantization.KINDS)
)


@dataclass
class Variant:
    """A way to sample, and what it took.

    Attributes:
        dtype: of the DiT; None: the bundle's.
        eight: how its blocks compute in 8 bits, of `quantization.KINDS`; None: they don't.
        passes: computed for one video.
        seconds: for all videos, one a turn.
        latents: [B, C, L, H, W], normalised.
    """

    name: str
    steps: int
    step_cache: StepCache | None = None
    guidance_cache: GuidanceCache | None = None
    dtype: torch.dtype | None = None
    eight: str | None = None
    passes: int = 0
    seconds: list[float] = field(default_factory=list)
    latents: Tensor | None = None


@dataclass
class Scene:
    """What all variants share: the model, the prompts, and how it is sampled.

    Attributes:
        positive: text features [B, 512, D], one a video.
        negative: [1, 512, D]; None without guidance.
        batch: videos at once.
    """

    bundle: Bundle
    settings: Settings
    positive: Tensor
    negative: Tensor | None
    batch: int = 1
    _cast: dict[tuple[torch.dtype, str | None], nn.Module] = field(default_factory=dict)

    @classmethod
    def of(
        cls, bundle: Bundle, prompts: Sequence[str], settings: Settings, batch: int = 1
    ) -> "Scene":
        positive = sampler.features(bundle, prompts)
        guided = settings.guidance != 1
        negative = sampler.features(bundle, [settings.negative]) if guided else None
        positive = positive.expand(len(prompts), *positive.shape[1:])  # one text for all is one
        return cls(bundle, settings, positive, negative, batch)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.bundle.dit.parameters()).dtype

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """[B, C, L, H, W], each from its own seed."""
        time_, rows, columns = self.bundle.vae.compression
        size = (self.settings.height // rows, self.settings.width // columns)
        length = (self.settings.frames - 1) // time_ + 1
        channels = self.bundle.dit.config["out_channels"]
        return sampler.noise(seeds, (channels, length, *size)).to(self.bundle.device)

    def sigmas(self, steps: int) -> list[float]:
        spacing = sampler.SPACINGS[self.settings.solver]
        return flow.sigmas(steps, self.settings.shift, spacing)

    def dit(self, one: Variant) -> nn.Module:
        """The DiT with its weights as a variant has them."""
        dtype = one.dtype or self.dtype
        if dtype == self.dtype and one.eight is None:
            return self.bundle.dit
        if (dtype, one.eight) not in self._cast:
            found = copy.deepcopy(self.bundle.dit)
            for weight in found.parameters():
                weight.data = weight.data.to(dtype)
            if one.eight:
                quantization.quantize(found, one.eight)
            self._cast[dtype, one.eight] = found
        return self._cast[dtype, one.eight]

    @torch.no_grad()
    def sample(self, variant: Variant, noise: Tensor) -> None:
        """Samples all videos; the variant keeps latents and passes, and one more time."""
        settings, sigmas = self.settings, self.sigmas(variant.steps)
        dit, dtype = self.dit(variant), variant.dtype or self.dtype
        guidance = Guidance(
            settings.guidance,
            settings.interval,
            settings.batched,
            step_cache=variant.step_cache,
            guidance_cache=variant.guidance_cache,
        )
        told = [
            part if part is None else part.to(self.bundle.device, dtype)
            for part in (self.positive, self.negative)
        ]
        negative = told[1] if told[1] is None else Conditioning(told[1])
        found = []
        self._wait()
        began = time.perf_counter()
        for x, text in zip(noise.split(self.batch), told[0].split(self.batch), strict=True):
            velocity = guidance(dit, Conditioning(text), negative, sigmas)
            found.append(SOLVERS[settings.solver](velocity, x, sigmas))
            variant.passes = sum(count.computed for count in velocity.counts.values())
        self._wait()
        variant.seconds.append(time.perf_counter() - began)
        variant.latents = torch.cat(found)

    def _wait(self) -> None:
        if self.bundle.device.type == "cuda":
            torch.cuda.synchronize()


# --- variants ------------------------------------------------------------------------------------


def parsed(text: str, scene: Scene, rescale: str | None = None) -> Variant:
    """A variant as the command names it: `guidance=4+reuse=0.25`.

    Args:
        rescale: of step caches (`model.stepcache`).

    Raises:
        UsageError: there is no such part, a value is wrong, or nothing of it differs.
    """
    known: dict[str, str] = {}
    for part in text.split("+"):
        name, equals, value = part.strip().partition("=")
        if not equals and name in DTYPES:
            name, value = "dtype", name
        elif not equals and name in quantization.KINDS:
            name, value = "eight", name
        elif name not in ("guidance", "step", "reuse", "compensate", "steps") or not equals:
            raise UsageError(f"variants={text}: {part!r} is none of {PARTS}")
        if name in known:
            raise UsageError(f"variants={text}: {name} twice")
        known[name] = value
    if {"step", "reuse"} <= known.keys():
        raise UsageError(f"variants={text}: step and reuse are two ways to say one threshold")
    if "guidance" in known and scene.negative is None:
        raise UsageError(f"variants={text}: guidance=1 has no negative pass to cache")
    try:
        found = variant(text, known, scene, rescale)
    except ValueError as error:
        raise UsageError(f"variants={text}: {error}") from error
    plainly = Variant(text, scene.settings.steps)
    if found == plainly or found == replace(plainly, dtype=scene.dtype):
        raise UsageError(f"variants={text}: is the uncached run itself")
    return found


def variant(text: str, known: dict[str, str], scene: Scene, rescale: str | None) -> Variant:
    """Raises a ValueError where a value is wrong."""
    found = Variant(text, int(known.get("steps", scene.settings.steps)))
    if found.steps < 1:
        raise ValueError(f"steps={found.steps}: at least one")
    share = {"compensate": float(known["compensate"])} if "compensate" in known else {}
    if "guidance" in known:
        found.guidance_cache = GuidanceCache(int(known["guidance"]), **share)
    if "step" in known or "reuse" in known:
        cache = StepCache(float(known.get("step", 0)), rescale=rescale, **share)
        if "reuse" in known:
            cache = threshold(scene, found.steps, float(known["reuse"]), cache)
        found.step_cache = cache
    if share and not (found.step_cache or found.guidance_cache):
        raise ValueError("compensate belongs to a cache: guidance=, step= or reuse=")
    found.dtype, found.eight = DTYPES.get(known.get("dtype")), known.get("eight")
    if found.eight:
        quantization.check(found.eight, scene.bundle.device)
    return found


def threshold(scene: Scene, steps: int, share: float, cache: StepCache) -> StepCache:
    """The cache with the lowest threshold, to two digits, at which that share of the steps is
    reused.

    Raises:
        ValueError: none is to be reused; or too many, for the first and the last are computed.
    """
    if share <= 0:
        raise ValueError(f"reuse={share:g}: a share of the steps, above 0")
    sigmas = scene.sigmas(steps)[:-1]
    timesteps = [flow.timestep(one, whole=True) for one in sigmas]
    run = StepRun(scene.bundle.dit, cache, sigmas, timesteps, scene.bundle.device)
    for exponent in range(-4, 3):
        for digits in range(10, 100):
            run.cache = replace(cache, threshold=float(f"{digits}e{exponent - 1}"))
            if sum(run.plan()) >= share * len(sigmas):
                return run.cache
    raise ValueError(f"reuse={share:g}: of {steps} steps not so many can be reused")


def control(one: Variant, uncached: Variant) -> Variant | None:
    """No cache, and as many passes by fewer steps; None where the variant saves none, or has
    nothing but fewer steps itself."""
    if one.step_cache is None and one.guidance_cache is None:
        return None
    steps = max(1, round(uncached.steps * one.passes / uncached.passes))
    return Variant(f"{steps} steps", steps) if steps < uncached.steps else None


def with_controls(
    variants: Sequence[Variant], uncached: Variant, scene: Scene, noise: Tensor
) -> tuple[list[Variant], dict[str, str]]:
    """Each once, which warms up and counts the passes; then all of them with their controls, the
    uncached one first, and whose control is which."""
    found = {one.name: one for one in (uncached, *variants)}
    for one in list(found.values()):
        scene.sample(one, noise)
    whose = {}
    for one in variants:
        other = control(one, uncached)
        if other:
            whose[one.name] = other.name
            found.setdefault(other.name, other)
    return list(found.values()), whose


def take_turns(variants: Sequence[Variant], scene: Scene, noise: Tensor, turns: int) -> None:
    """Times them: each once a turn, in order, so that a slow minute of the machine is all's."""
    for one in variants:
        if not one.passes:  # the first run of a length is slower
            scene.sample(one, noise)
        one.seconds.clear()
    for _ in range(turns):
        for one in variants:
            scene.sample(one, noise)


# --- how far away --------------------------------------------------------------------------------


def decoded(scene: Scene, latents: Tensor) -> list[Tensor]:
    """Videos [1, 3, T, H, W] in −1 … 1 on the CPU."""
    return [
        torch.cat(list(sampler.decode(scene.bundle, one)), dim=2).float().cpu()
        for one in latents.split(1)
    ]


def away(
    latents: Tensor, goal: Sequence[Tensor], scene: Scene, perceptual: Perceptual | None
) -> dict[str, dict[str, Any]]:
    """By measure: mean and worst over videos, mean and worst over frames, and each video's.

    PSNR of a video is of the mean square over all of it; of the others it is the mean of frames.
    """
    videos: dict[str, list[float]] = {}
    frames: dict[str, list[float]] = {}
    for one, wanted in zip(decoded(scene, latents), goal, strict=True):
        one, wanted = one.to(scene.bundle.device), wanted.to(scene.bundle.device)
        found = {
            "psnr": psnr_frames(one, wanted).clamp(max=CEILING),
            "ssim": by_frame(ssim, one, wanted),
        }
        whole = {"psnr": float(psnr(one, wanted).clamp(max=CEILING))}
        if perceptual:
            found[perceptual.name] = perceptual(one, wanted)
        for name, values in found.items():
            videos.setdefault(name, []).append(whole.get(name, float(values.mean())))
            frames.setdefault(name, []).extend(map(float, values.flatten()))
    worst = {name: min if name in GATES else max for name in videos}
    return {
        name: {
            "mean": float(np.mean(values)),
            "worst": worst[name](values),
            "frames_mean": float(np.mean(frames[name])),
            "frames_worst": worst[name](frames[name]),
            "by_video": values,
        }
        for name, values in videos.items()
    }


def gates(found: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Which of cache-dit's a variant passes."""
    return {name: found[name]["mean"] > limit for name, limit in GATES.items()}


def nearer(one: dict[str, Any], other: dict[str, Any], prompts: Sequence[str]) -> dict[str, Any]:
    """By how many dB a variant's videos are nearer to the uncached ones than its control's, paired
    by prompt."""
    values = [np.array(some["psnr"]["by_video"])[:, None] for some in (other, one)]
    found = stats.compare(*(Scores(tuple(prompts), some) for some in values), Draws(prompts))
    return {
        "delta": found.delta.value,
        "low": plain(found.delta.low),
        "high": plain(found.delta.high),
        "wins": found.wins,
        "losses": found.losses,
        "p": found.p,
    }
