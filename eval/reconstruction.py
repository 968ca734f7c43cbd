"""What a VAE loses: clips through it and back, in numbers, in memory.

    rebuilt = through(vae, clips)
    measured(clips, rebuilt, perceptual)             # measure → one value a clip, float64 [B]

The rebuilt clip is what the decoder makes of the posterior's mean, in float32, clamped to −1 … 1
and neither rounded nor encoded. Published numbers differ in their conventions, so these are ours:
PSNR is of the range 2, over all pixels and channels; `psnr` of the mean square over the whole clip,
`psnr_frames` the mean over frames of each frame's, which is never lower; at most CEILING, so that a
picture of one colour is no infinity in a mean. A video VAE takes frame 0 alone and then every 4
frames together, hence `psnr_first`, `psnr_rest`, and a phase (t − 1) mod 4 for the frames t ≥ 1.

B batch, T frames, H height, W width. Clips are [B, 3, T, H, W] in −1 … 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eval import stats
from eval.measures.encoders import weights_sha256
from eval.stats import Draws, Scores, plain
from model.distance import psnr, psnr_frames, ssim
from model.efficientnet import EfficientNetDistance, load_efficientnet
from model.lpips import load_lpips
from model.tensors import CheckpointError
from recipes.keys import UsageError

CEILING = 100.0  # dB
WORST = 0.05  # of the clips
TOLERANCE = 1e-4  # of −1 … 1: what streaming may differ by
CHUNK = 16  # frames that are looked at at once
PHASES = 4
PACKAGED = "effnet-lite0"
FRAMES = {
    "psnr_first": slice(0, 1),
    "psnr_rest": slice(1, None),
    **{f"psnr_phase_{k}": slice(1 + k, None, PHASES) for k in range(PHASES)},
}
# name → unit, whether higher is better, as the table calls it
MEASURES = {
    "psnr": ("dB", True, "PSNR of the clip"),
    "psnr_frames": ("dB", True, "PSNR, mean of frames"),
    "ssim": ("−1–1", True, "SSIM"),
    "lpips": ("", False, "LPIPS"),
    "perceptual": ("", False, f"distance in {PACKAGED}"),
    "psnr_first": ("dB", True, "  frame 0"),
    "psnr_rest": ("dB", True, "  all others"),
    **{f"psnr_phase_{k}": ("dB", True, f"  phase {k}") for k in range(PHASES)},
}


@dataclass(frozen=True)
class Perceptual:
    """LPIPS, or what stands beside it under another name.

    Attributes:
        name: lpips, or perceptual for what is not LPIPS.
        spec: as the command called it.
        sha256: of its weights.
        distance: two videos → [B].
    """

    name: str
    spec: str
    sha256: str
    distance: nn.Module

    @torch.no_grad()
    def __call__(self, one: Tensor, two: Tensor) -> Tensor:
        """float64 [B, T], one value a frame; 0 for equal ones.

        Raises:
            UsageError: the frames are too small for the network.
        """
        smallest = self.distance.smallest
        if min(one.shape[-2:]) < smallest:
            raise UsageError(
                f"backbones.lpips={self.spec}: wants frames of {smallest}×{smallest} at least, not "
                f"{one.shape[-1]}×{one.shape[-2]}"
            )
        return by_frame(self.distance, one.float(), two.float())


def load_perceptual(spec: str, device: str | torch.device = "cpu") -> Perceptual:
    """LPIPS from a file, a folder or the hub; or effnet-lite0, whose weights come in a package.

    Raises:
        UsageError: no such weights.
    """
    packaged = spec == PACKAGED
    try:
        network = EfficientNetDistance(load_efficientnet()) if packaged else load_lpips(spec)
    except CheckpointError as error:
        raise UsageError(f"backbones.lpips={spec}: {error}") from error
    network = network.to(device).eval()
    name = "perceptual" if packaged else "lpips"
    return Perceptual(name, spec, weights_sha256(network), network)


def by_frame(distance: Callable[[Tensor, Tensor], Tensor], one: Tensor, two: Tensor) -> Tensor:
    """What compares whole videos, frame by frame: float64 [B, T]."""
    singles = [video.transpose(1, 2).flatten(0, 1)[:, :, None] for video in (one, two)]
    parts = zip(*(some.split(CHUNK) for some in singles), strict=True)
    return torch.cat([distance(*pair).double() for pair in parts]).view(len(one), -1)


@torch.no_grad()
def through(vae: nn.Module, clips: Tensor) -> Tensor:
    """The clips rebuilt, float32."""
    return vae.decode(vae.encode(clips).mean).float()


@torch.no_grad()
def streamed(vae: nn.Module, clips: Tensor) -> Tensor:
    """The same in pieces of four frames."""
    latents = [one.mean for one in vae.encode_stream([clips], chunk=vae.compression[0])]
    return torch.cat(list(vae.decode_stream(latents)), dim=2).float()


def measured(clips: Tensor, rebuilt: Tensor, perceptual: Perceptual | None) -> dict[str, Any]:
    """By measure, one value a clip: float64 [B]."""
    found = {
        "psnr": psnr(clips, rebuilt),
        "psnr_frames": psnr_frames(clips, rebuilt).clamp(max=CEILING).mean(1),
        "ssim": by_frame(ssim, clips, rebuilt).mean(1),
    }
    if perceptual:
        found[perceptual.name] = perceptual(clips, rebuilt).mean(1)
    for name, part in FRAMES.items():
        if clips[:, :, part].shape[2]:
            found[name] = psnr(clips[:, :, part], rebuilt[:, :, part])
    return {
        name: (one.clamp(max=CEILING) if name.startswith("psnr") else one).cpu().numpy()
        for name, one in found.items()
    }


@dataclass
class Table:
    """All that was measured of one VAE.

    Attributes:
        name: as the table calls it.
        path: as the command did.
        sha256: of its weights.
        compression: time, height, width: VAEs of another one are not equals.
        channels: of a latent.
        values: measure → one a clip.
        apart: a clip's largest difference between streamed and whole.
        original, rebuilt: features for rFVD, [B, D] each.
    """

    name: str
    path: str
    sha256: str
    compression: tuple[int, int, int] = (4, 8, 8)
    channels: int = 16
    values: dict[str, list[float]] = field(default_factory=dict)
    apart: list[float] = field(default_factory=list)
    original: list[np.ndarray] = field(default_factory=list)
    rebuilt: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, path: str, vae: nn.Module) -> "Table":
        channels = vae.config["latent_channels"]
        return cls(name, path, weights_sha256(vae), vae.compression, channels)

    def add(self, found: dict[str, np.ndarray], apart: Tensor) -> None:
        for name, some in found.items():
            self.values.setdefault(name, []).extend(map(float, some))
        self.apart.extend(map(float, apart))

    def scores(self, clips: Sequence[str]) -> dict[str, Scores]:
        """For the statistics, where a clip is what a prompt is elsewhere."""
        return {
            name: Scores(tuple(clips), np.array(some)[:, None], MEASURES[name][1])
            for name, some in self.values.items()
        }

    def worst(self) -> list[int]:
        """Which clips are the worst WORST by PSNR, the worst first; one at least."""
        values = np.array(self.values["psnr"])
        return list(map(int, np.argsort(values, kind="stable")[: ceil(WORST * len(values))]))


def take(table: Table, vae: nn.Module, clips: Tensor, perceptual, i3d) -> None:
    """Measures some clips of one size.

    Args:
        perceptual: a Perceptual, or None.
        i3d: an eval.fvd.I3D, or None.

    Raises:
        UsageError: it rebuilds no numbers, or the clips are too small for `perceptual`.
        BackboneError: the clips are not for `i3d`.
    """
    rebuilt = through(vae, clips)
    if not rebuilt.isfinite().all():
        raise UsageError(
            f"vae={table.path}: what it rebuilds is not finite; are these its weights?"
        )
    apart = (streamed(vae, clips) - rebuilt).abs().amax(dim=(1, 2, 3, 4))
    table.add(measured(clips, rebuilt, perceptual), apart)
    if i3d:
        table.original.append(i3d(clips))
        table.rebuilt.append(i3d(rebuilt))


def summary(table: Table, clips: Sequence[str], draws: Draws) -> dict[str, Any]:
    """One VAE's part of the JSON, rFVD aside."""
    worst = table.worst()
    means = {}
    for name, one in table.scores(clips).items():
        resampled = draws.means(one.prompts, one.by_prompt)
        found = draws.interval(one.mean, resampled, len(clips))
        means[name] = {"mean": found.value, "low": plain(found.low), "high": plain(found.high)}
    apart = float(np.max(table.apart))
    return {
        "name": table.name,
        "path": table.path,
        "sha256": table.sha256,
        "compression": list(table.compression),
        "latent_channels": table.channels,
        "means": means,
        "worst": {
            "psnr": float(np.mean([table.values["psnr"][k] for k in worst])),
            "clips": [clips[k] for k in worst],
        },
        "streaming": {
            "apart": plain(apart),
            "tolerance": TOLERANCE,
            "equals_whole": apart < TOLERANCE,
        },
    }


def compared(first: Table, second: Table, clips: Sequence[str], draws: Draws) -> dict[str, Any]:
    """Two VAEs on the same clips, pair by pair; a positive delta: the second is better."""
    before, after = first.scores(clips), second.scores(clips)
    found = {name: stats.compare(before[name], after[name], draws, len(before)) for name in before}
    adjusted = stats.holm([one.p for one in found.values()])
    verdict = stats.verdict(found)
    return {
        "first": first.name,
        "second": second.name,
        "verdict": verdict.words,
        "better": list(verdict.better),
        "worse": list(verdict.worse),
        "measures": {
            name: one.told(p) for (name, one), p in zip(found.items(), adjusted, strict=True)
        },
    }


# --- what is told --------------------------------------------------------------------------------


def lines(found: dict[str, Any], out: Path) -> list[str]:
    """The table."""
    clips, vaes = found["clips"], found["vaes"]
    left_out = [f"{len(clips[kind])} {kind}" for kind in ("short", "broken") if clips[kind]]
    rows = [
        f"Rebuilt {clips['count']} clips of {clips['frames']} frames"
        + (f" ({', '.join(left_out)} left out: {named(clips)})" if left_out else ""),
        "",
        f"{'':24}" + "".join(f"{one['name'][-28:]:>30}" for one in vaes),
    ]

    def row(name: str, values: list[str]) -> None:
        rows.append(f" {name:23}" + "".join(f"{one:>30}" for one in values))

    rates = ["×".join(map(str, one["compression"])) for one in vaes]
    row(
        "compression",
        [f"{one}, {vae['latent_channels']} channels" for one, vae in zip(rates, vaes, strict=True)],
    )
    for name in found["measures"]:
        digits = 2 if name.startswith("psnr") else 4
        means = [one["means"][name] for one in vaes]
        row(MEASURES[name][2], [interval(one, "mean", digits) for one in means])
        if found["comparisons"]:
            deltas = [one["measures"][name] for one in found["comparisons"]]
            row("    better by", ["", *(interval(one, "delta", digits, "+") for one in deltas)])
    worst = [f"{one['worst']['psnr']:.2f}  ({len(one['worst']['clips'])} clips)" for one in vaes]
    row("worst 5 %, PSNR", worst)
    streams = [one["streaming"] for one in vaes]
    limits = [
        f"{'yes: <' if one['equals_whole'] else 'NO: not <'} {TOLERANCE:.0e}" for one in streams
    ]
    row("streamed equals whole", limits)
    row("    apart by at most", [f"{one['apart']:.1e}" for one in streams])
    if found["backbones"]["i3d"]:
        row("rFVD", [f"{one['rfvd']:.2f}" for one in vaes])
    rows.append("")
    for name, what in (("lpips", "LPIPS"), ("i3d", "rFVD")):
        if not found["backbones"][name]:
            rows.append(f" {what} is not measured: it wants backbones.{name}=")
    for one in found["comparisons"]:
        rows.append(f" {one['second']} against {one['first']}: {one['verdict']}")
    return [*rows, f" numbers {out / 'reconstruction.json'}", f" worst   {out / 'worst'}"]


def named(clips: dict[str, Any], most: int = 3) -> str:
    """The first of what is left out."""
    names = [*clips["short"], *clips["broken"]]
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def interval(found: dict[str, Any], name: str, digits: int, sign: str = "") -> str:
    """A value and its interval; of one clip there is none."""
    value = f"{found[name]:{sign}.{digits}f}"
    if found["low"] is None:
        return value
    return f"{value} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
