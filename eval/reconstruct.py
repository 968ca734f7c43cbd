"""What a VAE loses: clips are encoded and decoded, and compared with what they were.

    python eval/reconstruct.py vae=runs/vae-video/2026-01-31 clips=data/shards/480p
    python eval/reconstruct.py vae=[Wan2.1_VAE.pth,ours] clips=videos size=256x256 frames=33
    python eval/reconstruct.py … backbones.lpips=FILE backbones.i3d=i3d_torchscript.pt

A table, `out`/reconstruction.json, and in `out`/worst the worst 5 % of the clips, each beside what
became of it. Nothing of a measure passes through a codec. The JSON:

format           of this file: 1
clips            source, count, names in order, size (null: each its own), frames; short and broken:
                 clips that are left out
measures         name → unit, higher_is_better, says
backbones        lpips, i3d → spec and SHA-256; null: not given, so not measured
vaes             name, path, SHA-256, compression (time, height, width), latent_channels; means:
                 measure → mean, low, high (95 %, over clips); worst: mean PSNR and names of the
                 worst 5 %; streaming: apart (largest difference from one
                 shot), tolerance, equals_whole; rfvd: null without I3D
comparisons      of each other VAE with the first, paired by clip: verdict, and by measure delta
                 (positive: better), low, high, wins, ties, losses, p, adjusted p, detectable,
                 prompts (here: clips); floor is null
by_clip          measure → [VAE][clip]
provenance       commit, versions, device, command, date, configuration
"""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from curation.video import probe
from eval import memory, provenance
from eval.clips import Source
from eval.fvd import I3D, frechet, load_i3d
from eval.measures.encoders import BackboneError
from eval.reconstruction import (
    MEASURES,
    Perceptual,
    Table,
    compared,
    lines,
    load_perceptual,
    summary,
    take,
    through,
)
from eval.report import labels
from eval.sample import chosen
from eval.stats import Draws
from eval.video_out import pixels, whole, write_video
from model.checkpoint import load_vae
from model.layout import weights
from model.tensors import CheckpointError
from recipes.keys import UsageError
from recipes.load import main
from recipes.reconstruction import Reconstruction

FORMAT = 1


def reconstruct(config: Reconstruction) -> None:
    """The command."""
    if not config.vae or config.clips is None:
        raise UsageError("wanted: vae=<run or weights> and clips=<shards or a folder of videos>")
    for name in ("frames", "most", "batch"):
        if getattr(config, name) < 1:
            raise UsageError(f"{name}={getattr(config, name)}: at least 1")
    out, device = Path(config.out).expanduser(), chosen(config.device)
    vaes = [opened(spec, device) for spec in config.vae]
    source = Source.of(config, [vae.compression for vae in vaes])
    lpips, i3d = config.backbones.lpips, config.backbones.i3d
    try:
        with memory.told(config.out):
            out.mkdir(parents=True, exist_ok=True)
            perceptual = load_perceptual(lpips, device) if lpips else None
            features = load_i3d(i3d, device) if i3d else None
            tables = [
                Table.of(name, spec, vae)
                for name, spec, vae in zip(labels(config.vae), config.vae, vaes, strict=True)
            ]
            with exact(), progress(min(config.most, len(source.clips))) as advance:
                for some in source.batches(config.batch, config.most):
                    for table, vae in zip(tables, vaes, strict=True):
                        take(table, vae, some.to(device), perceptual, features)
                    advance(len(some))
            if not source.read:
                raise UsageError(source.emptiness())
            for table, vae in zip(tables, vaes, strict=True):
                show_worst(table, vae, source, device, out)
            found = report(config, source, tables, {"lpips": perceptual, "i3d": features}, device)
            with whole(out / "reconstruction.json") as part:
                part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    except BackboneError as error:
        raise UsageError(f"backbones.i3d={error}") from error
    print("\n".join(lines(found, out)))


def opened(spec: str, device: torch.device) -> torch.nn.Module:
    """A VAE in float32, from a run or from weights in any format."""
    path = Path(spec).expanduser()
    try:
        place = weights(path, "vae") if path.exists() else spec
        return load_vae(place, device=device, dtype=torch.float32).requires_grad_(False)
    except CheckpointError as error:
        raise UsageError(f"vae={spec}: {error}") from error


@contextmanager
def exact() -> Iterator[None]:
    """float32 to its last bit: a GPU's convolutions would take TF32, which has three digits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; what it yields is told how many more are done."""
    err = Console(stderr=True)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("rebuilding", total=total)
        yield lambda count: bar.advance(task, count)


def show_worst(
    table: Table, vae: torch.nn.Module, source: Source, device: torch.device, out: Path
) -> None:
    """`worst/<VAE>/00-<PSNR>dB-<clip>.mp4` of the worst clips: the original left, rebuilt right."""
    folder = out / "worst" / re.sub(r"[^\w.-]+", "-", table.name)
    for old in folder.glob("[0-9][0-9]*-*dB-*.mp4"):
        old.unlink()
    for rank, k in enumerate(table.worst()):
        clip = source.read[k]
        original = source.video(clip)
        rebuilt = through(vae, original[None].to(device))[0].cpu()
        with clip.file() as path:
            fps = probe(path).fps
        name = re.sub(r"[^\w-]+", "-", clip.name)[-80:]
        name = f"{rank:02}-{table.values['psnr'][k]:.1f}dB-{name}.mp4"
        with whole(folder / name) as part:
            write_video(part, [np.concatenate([pixels(original), pixels(rebuilt)], axis=2)], fps)


# --- what is told --------------------------------------------------------------------------------


def report(
    config: Reconstruction,
    source: Source,
    tables: Sequence[Table],
    backbones: dict[str, Perceptual | I3D | None],
    device: torch.device,
) -> dict[str, Any]:
    """`reconstruction.json`; plain values."""
    clips = [one.name for one in source.read]
    draws = Draws(clips, config.resamples)
    known = [name for name in MEASURES if name in tables[0].values]
    vaes = [summary(table, clips, draws) for table in tables]
    for one, table in zip(vaes, tables, strict=True):
        features = (table.original, table.rebuilt)
        one["rfvd"] = frechet(*map(np.concatenate, features)) if table.original else None
    return {
        "format": FORMAT,
        "clips": {
            "source": source.place,
            "count": len(clips),
            "names": clips,
            "size": config.size,
            "frames": source.frames,
            "short": source.short,
            "broken": source.broken,
        },
        "measures": {
            name: dict(zip(("unit", "higher_is_better", "says"), MEASURES[name], strict=True))
            for name in known
        },
        "backbones": {
            name: one and {"spec": one.spec, "sha256": one.sha256}
            for name, one in backbones.items()
        },
        "vaes": vaes,
        "comparisons": [compared(tables[0], one, clips, draws) for one in tables[1:]],
        "by_clip": {name: [table.values[name] for table in tables] for name in known},
        "provenance": {
            "commit": provenance.commit(),
            "versions": provenance.versions(),
            "device": provenance.machine(device),
            "command": shlex.join(["python", *sys.argv]),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "configuration": asdict(config),
        },
    }


if __name__ == "__main__":
    sys.exit(main(Reconstruction, reconstruct))
