"""What the sampling caches save, and what they cost: speed-up and PSNR against the uncached videos.

    python tests/benchmarks/caches.py checkpoint=runs/tiny/2026-01-31
    python tests/benchmarks/caches.py checkpoint=random:tiny steps=20 videos=2 turns=1

Below each cache stands a run without one at the same cost: as many steps as the cache computes
passes for. A cache is worth having where it is nearer to the uncached videos than that. Variants
take turns, in one run; the medians count. PSNR is that of the decoded videos, mean and minimum over
the videos. On a random model the times hold and the PSNR means nothing. More keys: size=832x480
frames=81 guidance=5 shift=5 solver=unipc batched=true device=cuda seed=0 prompts=FILE (one a line)
out=FILE.
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

# a script's own folder leads the path, and here it has a curation.py
sys.path[:] = [one for one in sys.path if Path(one).resolve() != Path(__file__).resolve().parent]

from model import flow, sampler  # noqa: E402
from model.bundle import Bundle, load_bundle  # noqa: E402
from model.distance import psnr  # noqa: E402
from model.guidance import Conditioning, Guidance  # noqa: E402
from model.solver import SOLVERS  # noqa: E402
from model.stepcache import GuidanceCache, StepCache, StepRun  # noqa: E402

PROMPTS = ("a red circle moves left", "a blue square turns", "a cat walks", "海浪拍打礁石")
KEYS = {"checkpoint", "steps", "videos", "turns", "size", "frames", "guidance", "shift", "solver"}
KEYS |= {"batched", "device", "seed", "prompts", "out"}


def caches(bundle: Bundle, sigmas: list[float]) -> dict[str, dict]:
    """Name → keywords of Guidance. A step cache's threshold follows from the share it reuses."""
    found: dict[str, dict] = {}
    for every in (2, 4, 6):
        for share in (0.5, 0.0):
            name = f"guidance every={every}, compensate={share:g}"
            found[name] = {"guidance_cache": GuidanceCache(every, compensate=share)}
    for reused in (0.25, 0.4, 0.55):
        cache = StepCache(threshold(bundle, sigmas, reused))
        for share in (0.0, 0.5):
            name = f"step threshold={cache.threshold:.3g}, compensate={share:g}"
            found[name] = {"step_cache": replace(cache, compensate=share)}
    cache = StepCache(threshold(bundle, sigmas, 0.25))
    name = f"both: every=4, threshold={cache.threshold:.3g}"
    found[name] = {"guidance_cache": GuidanceCache(4), "step_cache": cache}
    return found


def threshold(bundle: Bundle, sigmas: list[float], share: float) -> float:
    """The lowest threshold, to two digits, at which that share of the steps is reused."""
    steps = sigmas[:-1]
    run = StepRun(
        bundle.dit, StepCache(0.0), steps, [1000 * one // 1 for one in steps], bundle.device
    )
    for exponent in range(-4, 3):
        for digits in range(10, 100):
            value = float(f"{digits}e{exponent - 1}")
            run.cache = StepCache(value)
            if sum(run.plan()) >= share * len(steps):
                return value
    return float("inf")


@dataclass
class Variant:
    """A way to sample: its caches and steps, and what they took."""

    guidance: Guidance
    steps: int
    passes: int = 0  # computed, positive and negative
    seconds: list[float] = field(default_factory=list)
    latents: Tensor | None = None


def once(variant: Variant, bundle: Bundle, keys: dict, parts: list[Conditioning], noise: Tensor):
    """Samples all videos in one batch and notes time, passes and latents."""
    spacing = sampler.SPACINGS[keys["solver"]]
    sigmas = flow.sigmas(variant.steps, float(keys["shift"]), spacing)
    if bundle.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    velocity = variant.guidance(bundle.dit, *parts, sigmas=sigmas)
    variant.latents = SOLVERS[keys["solver"]](velocity, noise, sigmas)
    if bundle.device.type == "cuda":
        torch.cuda.synchronize()
    variant.seconds.append(time.perf_counter() - began)
    variant.passes = sum(count.computed for count in velocity.counts.values())


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if wrong := set(keys) - set(KEYS):
        sys.exit(f"unknown: {', '.join(sorted(wrong))}; there is {', '.join(sorted(KEYS))}")
    checkpoint = keys.get("checkpoint", "random:tiny")
    bundle = load_bundle(checkpoint, keys.get("device", "cpu"))
    if bundle.card.kind != "t2v":
        sys.exit(f"{checkpoint}: a {bundle.card.kind} model; this samples text-to-video ones")
    known = bundle.defaults
    width, height = map(int, keys.get("size", f"{known.width}x{known.height}").split("x"))
    frames, steps = int(keys.get("frames", known.frames)), int(keys.get("steps", 50))
    scale = float(keys.get("guidance", known.guidance))
    keys = {"shift": known.shift, "solver": "unipc", **keys}
    prompts = Path(keys["prompts"]).read_text("utf-8").split("\n") if "prompts" in keys else PROMPTS
    prompts = [prompt for prompt in prompts if prompt.strip()]
    videos = int(keys.get("videos", len(prompts)))
    prompts = [prompts[i % len(prompts)] for i in range(videos)]

    dtype, device = next(bundle.dit.parameters()).dtype, bundle.device
    parts = [
        Conditioning(sampler.features(bundle, texts).to(device, dtype))
        for texts in (prompts, [known.negative])
    ]
    t, h, w = bundle.vae.compression
    shape = (bundle.dit.config["out_channels"], (frames - 1) // t + 1, height // h, width // w)
    first = int(keys.get("seed", 0))
    noise = sampler.noise(range(first, first + videos), shape).to(device)

    batched = keys.get("batched", "true") == "true"
    sigmas = flow.sigmas(steps, float(keys["shift"]), sampler.SPACINGS[keys["solver"]])
    tried = caches(bundle, sigmas)
    variants = {
        name: Variant(Guidance(scale, batched=batched, **one), steps)
        for name, one in ({"uncached": {}} | tried).items()
    }
    with torch.no_grad():
        for variant in variants.values():  # warm, and the passes that each computes
            once(variant, bundle, keys, parts, noise)
        plain = variants["uncached"].guidance
        for variant in list(variants.values())[1:]:
            fewer = max(1, round(variant.passes / 2))
            variants.setdefault(f"{fewer} steps", Variant(plain, fewer))
            variant.seconds.clear()
        variants["uncached"].seconds.clear()
        for _ in range(int(keys.get("turns", 3))):
            for variant in variants.values():
                once(variant, bundle, keys, parts, noise)

        def decoded(latents: Tensor) -> Tensor:
            return torch.cat(list(sampler.decode(bundle, latents)), dim=2).cpu()

        goal = decoded(variants["uncached"].latents)
        figures = {}
        for name, variant in variants.items():
            near = psnr(decoded(variant.latents), goal)
            figures[name] = {
                "steps": variant.steps,
                "passes": variant.passes,
                "seconds": statistics.median(variant.seconds),
                "psnr_mean_db": float(near.mean()),
                "psnr_min_db": float(near.min()),
            }
    whole = figures["uncached"]["seconds"]
    print(
        f"{checkpoint}: {videos} videos of {width}x{height}, {frames} frames, {steps} steps, ",
        end="",
    )
    print(f"guidance {scale:g}, shift {float(keys['shift']):g}, {keys['solver']}\n")
    print(f"{'':<40}{'passes':>7}{'seconds':>9}{'speed-up':>9}{'PSNR':>8}{'least':>8}")

    def row(name: str, shown: str) -> None:
        figure = figures[name]
        figure["speed_up"] = whole / figure["seconds"]
        print(
            f"{shown:<40}{figure['passes']:>7}{figure['seconds']:>9.2f}{figure['speed_up']:>8.2f}×"
            f"{figure['psnr_mean_db']:>8.1f}{figure['psnr_min_db']:>8.1f}"
        )

    for name, variant in variants.items():
        if not name.endswith(" steps"):
            row(name, name)
        if name in tried:
            fewer = f"{max(1, round(variant.passes / 2))} steps"
            figures[name]["equal_cost"] = fewer
            row(fewer, f"    {fewer} instead")
    drawn = bundle.card.layout.kind == "random"
    if drawn:
        print("\nThe model is a random one: the times hold, the PSNR means nothing.")
    settings = {"checkpoint": checkpoint, "random": drawn, "steps": steps, "videos": videos}
    out = Path(keys.get("out", "benchmark-caches.json"))
    out.write_text(json.dumps(settings | {"variants": figures}, indent=1))


if __name__ == "__main__":
    main()
