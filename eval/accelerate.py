"""A checkpoint against itself, with caches, fewer steps or fewer bits: how fast, and how near.

    python eval/accelerate.py checkpoint=runs/tiny/2026-01-31
    python eval/accelerate.py checkpoint=… variants=[guidance=4,step=0.08+guidance=4,steps=20]

Every variant starts from the same noise. Three things say what its PSNR is worth: the equal-cost
control (no cache, but as many passes by fewer steps), the floor (uncached videos of two seeds of
one prompt), and cache-dit's gates, PSNR > 25 and SSIM > 0.90. Times are measured in turns, and hold
for this machine; passes hold for any. On a random model only times and passes mean anything.
A table in the terminal, and `out`/acceleration.json:

format           of this file: 1
checkpoint       path, kind, step, weights (SHA-256); random: whether its weights are drawn
settings         size, frames, steps, guidance, shift, solver, dtype, batch; prompts, seeds
uncached         steps, passes (of a video), seconds (median, all videos), turns, weight_bytes (of
                 the DiT)
variants         name → the same, and speed_up; psnr, ssim, lpips or perceptual: mean and worst over
                 videos, frames_mean, frames_worst, by_video; gates: psnr, ssim; dtype; eight:
                 how its blocks compute in 8 bits, or null; step_cache and
                 guidance_cache as settings; control: name; nearer: dB by which it is nearer than
                 its control: delta, low, high (95 %, over prompts), wins, losses, p
floor            psnr, ssim, … of the uncached videos of two seeds
gates            psnr, ssim: the limits
backbones        lpips → spec and SHA-256; null: not given, so not measured
provenance       commit, versions, device, command, date, configuration
"""

import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from eval import memory, provenance
from eval.acceleration import (
    GATES,
    Scene,
    Variant,
    away,
    decoded,
    gates,
    nearer,
    parsed,
    take_turns,
    with_controls,
)
from eval.jobs import STRIDE
from eval.quantization import weight_bytes
from eval.reconstruction import load_perceptual
from eval.sample import chosen, sized
from eval.suite import read_suite
from eval.video_out import whole
from model import layout as layouts
from model import sampler
from model.bundle import Card, card, fingerprints, load_bundle
from model.tensors import CheckpointError
from recipes.acceleration import Acceleration
from recipes.keys import UsageError
from recipes.load import main

FORMAT = 1


def accelerate(config: Acceleration) -> None:
    """The command."""
    if config.checkpoint is None:
        raise UsageError("checkpoint=… is missing; checkpoint=random:tiny tries the command")
    for name in ("prompts", "turns", "batch"):
        if getattr(config, name) < 1:
            raise UsageError(f"{name}={getattr(config, name)}: at least 1")
    out, device = Path(config.out).expanduser(), chosen(config.device)
    prompts = [one.text for one in read_suite(config.suite, config.prompts).prompts]
    lpips = config.backbones.lpips
    perceptual = load_perceptual(lpips, device) if lpips else None
    try:
        with memory.told(config.out):
            out.mkdir(parents=True, exist_ok=True)
            about = card(layouts.find(config.checkpoint))
            settings = wanted(config, about)
            bundle = load_bundle(
                about, device, getattr(torch, config.dtype) if config.dtype else None
            )
            scene = Scene.of(bundle, prompts, settings, config.batch)
            seeds = [config.seed + STRIDE * i for i in range(len(prompts))]
            noise, others = scene.noise(seeds), scene.noise([seed + 1 for seed in seeds])
            uncached = Variant("uncached", settings.steps)
            asked = [parsed(text, scene, config.rescale) for text in dict.fromkeys(config.variants)]
            variants, controls = with_controls(asked, uncached, scene, noise)
            take_turns(variants, scene, noise, config.turns)
            twin = Variant("twin", settings.steps)
            scene.sample(twin, others)
            goal = decoded(scene, uncached.latents)
            far = {
                one.name: away(one.latents, goal, scene, perceptual)
                for one in [*variants[1:], twin]
            }
            found = report(config, scene, prompts, seeds, variants, controls, far, perceptual)
            with whole(out / "acceleration.json") as part:
                part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    except (CheckpointError, sampler.TaskError) as error:
        raise UsageError(str(error)) from error
    print("\n".join(lines(found, out)))


def wanted(config: Acceleration, about: Card) -> sampler.Settings:
    """How the uncached run is sampled; a TaskError or UsageError where it can't be."""
    if about.kind != "t2v":
        raise UsageError(
            f"checkpoint={config.checkpoint}: of kind {about.kind}; only text-to-video ones are "
            "compared here"
        )
    size = sized(config.size)
    settings = sampler.Settings.of(
        about,
        width=size and size[0],
        height=size and size[1],
        frames=config.frames,
        steps=config.steps,
        guidance=config.guidance,
        shift=config.shift,
        solver=config.solver,
        batched=config.batched,
    )
    settings.check(about)
    return settings


def report(
    config: Acceleration,
    scene: Scene,
    prompts: Sequence[str],
    seeds: Sequence[int],
    variants: Sequence[Variant],
    controls: dict[str, str],
    far: dict[str, dict[str, Any]],
    perceptual,
) -> dict[str, Any]:
    """`acceleration.json`; plain values."""
    uncached, settings, layout = variants[0], scene.settings, scene.bundle.card.layout
    rows = {}
    for one in variants[1:]:
        rows[one.name] = took(one, scene) | {
            "speed_up": statistics.median(uncached.seconds) / statistics.median(one.seconds),
            **far[one.name],
            "gates": gates(far[one.name]),
            "dtype": str(one.dtype or scene.dtype).removeprefix("torch."),
            "eight": one.eight,
            "step_cache": one.step_cache and asdict(one.step_cache),
            "guidance_cache": one.guidance_cache and asdict(one.guidance_cache),
            "control": controls.get(one.name),
            "nearer": nearer(far[one.name], far[controls[one.name]], prompts)
            if one.name in controls
            else None,
        }
    parts = fingerprints(layout)
    return {
        "format": FORMAT,
        "checkpoint": {
            "path": str(layout.path),
            "kind": layout.kind,
            "step": layout.step,
            "weights": {name: one.get("sha256", one["path"]) for name, one in parts.items()},
            "random": layout.kind == "random",
        },
        "settings": {
            "size": f"{settings.width}x{settings.height}",
            "frames": settings.frames,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "shift": settings.shift,
            "solver": settings.solver,
            "dtype": str(scene.dtype).removeprefix("torch."),
            "batch": scene.batch,
            "prompts": list(prompts),
            "seeds": list(seeds),
        },
        "uncached": took(uncached, scene),
        "variants": rows,
        "floor": far["twin"],
        "gates": GATES,
        "backbones": {
            "lpips": perceptual and {"spec": perceptual.spec, "sha256": perceptual.sha256}
        },
        "provenance": {
            "commit": provenance.commit(),
            "versions": provenance.versions(),
            "device": provenance.machine(scene.bundle.device),
            "command": shlex.join(["python", *sys.argv]),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "configuration": asdict(config),
        },
    }


def took(one: Variant, scene: Scene) -> dict[str, Any]:
    return {
        "steps": one.steps,
        "passes": one.passes,
        "seconds": statistics.median(one.seconds),
        "turns": one.seconds,
        "weight_bytes": weight_bytes(scene.dit(one)),
    }


def lines(found: dict[str, Any], out: Path) -> list[str]:
    """The table: each variant, and below it its control."""
    settings, variants = found["settings"], found["variants"]
    seen = next((name for name in ("lpips", "perceptual") if name in found["floor"]), None)
    rows = [
        f"Sampled {len(settings['prompts'])} videos of {settings['size']}, {settings['frames']} "
        f"frames, {settings['steps']} steps, guidance {settings['guidance']:g}, "
        f"{settings['solver']}, {settings['dtype']}",
        "",
        f" {'':36}{'passes':>7}{'seconds':>9}{'speed-up':>10}{'PSNR':>8}{'least':>7}{'SSIM':>8}"
        f"{'least':>7}" + (f"{seen:>12}{'most':>7}" if seen else "") + "  gates",
    ]

    def row(name: str, cost: dict[str, Any] | None, far: dict[str, Any] | None) -> None:
        text = f" {name:36}"
        text += f"{cost['passes']:>7}{cost['seconds']:>9.2f}" if cost else " " * 16
        text += f"{cost.get('speed_up', 1):>9.2f}×" if cost else " " * 10
        if far:
            near = [far[name][which] for name in GATES for which in ("mean", "worst")]
            text += "{:>8.1f}{:>7.1f}{:>8.3f}{:>7.3f}".format(*near)
            if seen:
                text += f"{far[seen]['mean']:>12.4f}{far[seen]['worst']:>7.3f}"
            passed = all(gates(far).values())
            text += "  passed" if passed else "  NOT passed"
        rows.append(text)

    row("uncached", found["uncached"], None)
    instead = {one["control"] for one in variants.values()}
    for name, one in variants.items():
        if name in instead:
            continue
        row(name, one, one)
        if one["control"]:
            other, near = variants[one["control"]], one["nearer"]
            row(f"    {one['control']} instead", other, other)
            sure = "" if near["low"] is None else f" [{near['low']:.1f}, {near['high']:.1f}]"
            rows.append(f"     the cache is nearer by {near['delta']:.1f} dB{sure}")
    row("two seeds of one prompt", None, found["floor"])
    rows.append("")
    if not seen:
        rows.append(" LPIPS is not measured: it wants backbones.lpips=")
    if found["checkpoint"]["random"]:
        rows.append(" The model is a random one: times and passes hold, the rest means nothing.")
    return [*rows, f" numbers {out / 'acceleration.json'}"]


if __name__ == "__main__":
    sys.exit(main(Acceleration, accelerate))
