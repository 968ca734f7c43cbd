"""A training step beside the same one with diffusers' transformer in a plain PyTorch loop.

    python tests/benchmarks/training.py                       all that this machine can
    python tests/benchmarks/training.py only=tiny turns=9 out=FILE
    python tests/benchmarks/training.py only=wait shards=data/shapes/shards/tiny

On a CPU, the same batches of latents on both sides: noise, interpolation, forward, backward,
clipping, AdamW. Ours goes through the real module and Lightning's Trainer, with guard, EMA and all;
the plain loop has none of it. Blocks of steps take turns in one run, and the median of the blocks'
ratios counts. `tiny` is the recipe's own model, batch and bfloat16, `1.3b` two blocks of that width
at 768 tokens in float32.

`wait` runs `recipe=tiny-vae-video` on shards with two readers and gives the share of the step time
that it waits for data, as the run's own meters tell it. `192p` and `480p`, on a GPU, are the 1.3B's
step in bfloat16 at that recipe's longest video, on drawn latents: tokens/s, MFU, and peak memory
beside what the preflight says of the same batch, without encoders and reserve.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

# a script's own folder leads the path, and here it has a curation.py; tests.twins is at the root
HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), *(one for one in sys.path if Path(one).resolve() != HERE)]

from model import flow  # noqa: E402
from model.presets import PRESETS  # noqa: E402
from model.prompt import TextFeatures  # noqa: E402
from model.vae import WanVAE  # noqa: E402
from recipes.load import load  # noqa: E402
from recipes.training import Fit  # noqa: E402
from training.batch import Batch, Bucket, Step  # noqa: E402
from training.dit_module import DiTModule  # noqa: E402
from training.trainer import PRECISION, quiet  # noqa: E402

BLOCK, WARM = 6, 2  # steps of one side's turn, of which the first don't count
CASES = {
    "tiny": ({"preset": "tiny"}, Bucket(64, 64, 9), 16, "bfloat16"),
    "1.3b": ({"preset": "1.3b", "num_layers": 2}, Bucket(512, 512, 9), 1, "float32"),
}
GPU = ("192p", "480p")
ROWS = (*CASES, "wait", *GPU)


class Features:
    """A text encoder that answers at once; both sides are spared it."""

    def __init__(self, config: dict) -> None:
        self.length, self.width = config["text_length"], config["text_width"]
        self.row = torch.randn(1, self.length, self.width)

    def encode(self, prompts: list[str]) -> TextFeatures:
        rows = self.row.expand(len(prompts), -1, -1)
        return TextFeatures(
            rows, torch.tensor([self.length] * len(prompts)), (False,) * len(prompts)
        )

    def to(self, device: torch.device) -> "Features":
        self.row = self.row.to(device)
        return self


def drawn(number: int, bucket: Bucket, count: int) -> Step:
    shape = (count, 16, 1 + (bucket.frames - 1) // 4, bucket.height // 8, bucket.width // 8)
    keys = [f"{number}-{row}" for row in range(count)]
    mean = torch.randn(shape, generator=torch.Generator().manual_seed(number))
    one = Batch(bucket, keys, keys, mean=mean, logvar=torch.full_like(mean, -6.0))
    return Step(number, [one], one.tokens, count, {})


class Drawn(LightningDataModule, IterableDataset):
    broken = 0

    def __init__(self, bucket: Bucket, count: int) -> None:
        super().__init__()
        self.bucket, self.count, self.given = bucket, count, 0

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self, batch_size=None)

    def __iter__(self) -> Iterator[Step]:
        for _ in range(BLOCK):
            yield drawn(self.given, self.bucket, self.count)
            self.given += 1


class Clock(Callback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_) -> None:
        self.ends.append(time.perf_counter())


def through_lightning(config: Fit, ours, bucket: Bucket, count: int) -> Callable[[], float]:
    """Ours: median seconds of a step, over a block of them."""
    vae = WanVAE(width=4, blocks=1, latent_mean=[0.0] * 16, latent_std=[1.0] * 16)
    module = DiTModule(ours.train(), config, vae.requires_grad_(False), Features(ours.config))
    data = Drawn(bucket, count)
    quiet()

    def block() -> float:
        clock = Clock()
        trainer = Trainer(
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            precision=PRECISION[config.compute.precision],
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )
        trainer.fit(module, datamodule=data)
        return spans(clock.ends)

    return block


def plain(config: Fit, theirs, bucket: Bucket, count: int) -> Callable[[], float]:
    """diffusers' in a loop as short as can be."""
    theirs.train()
    sizes = {"text_length": PRESETS[config.model]["text_length"] if config.model == "tiny" else 512}
    text = Features(sizes | {"text_width": theirs.config.text_dim}).row.expand(count, -1, -1)
    half = torch.autocast("cpu", torch.bfloat16, config.compute.precision == "bfloat16")
    hidden = config.optimizer
    adamw = torch.optim.AdamW(
        theirs.parameters(), hidden.lr, tuple(hidden.betas), weight_decay=hidden.weight_decay
    )
    given = iter(range(10**9))

    def step() -> None:
        data: Tensor = drawn(next(given), bucket, count).batches[0].mean
        noise = torch.randn_like(data)
        sigma = flow.sample_sigmas(count)
        adamw.zero_grad()
        x = flow.interpolate(data, noise, sigma)
        with half:
            said = theirs(x, sigma * 1000, text, return_dict=False)[0]
        flow.loss(said, data, noise).mean().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), hidden.clip)
        adamw.step()

    def block() -> float:
        ends = []
        for _ in range(BLOCK):
            step()
            ends.append(time.perf_counter())
        return spans(ends)

    return block


def spans(ends: list[float]) -> float:
    times = [b - a for a, b in pairwise(ends)]
    return statistics.median(times[WARM - 1 :])


def beside(name: str, turns: int) -> dict[str, float]:
    """Ours and diffusers' in turns, the same weights at the start."""
    from tests.twins import twins

    how, bucket, count, precision = CASES[name]
    sizes = PRESETS[how["preset"]] | {k: v for k, v in how.items() if k != "preset"}
    config = load(
        Fit,
        [
            "recipe=tiny",
            f"model={how['preset']}",
            f"compute.precision={precision}",
            "optimizer.kind=adamw",
            "optimizer.steps=1000000000",
            "optimizer.decay=0",
            "optimizer.spike=0",
        ],
    )
    ours, theirs = twins(**sizes)
    sides = [through_lightning(config, ours, bucket, count), plain(config, theirs, bucket, count)]
    rows: list[list[float]] = []
    for turn in range(turns):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        found = {side: sides[side]() for side in order}
        rows.append([found[0], found[1]])
    a, b = (statistics.median(one) for one in zip(*rows, strict=True))
    ratio = statistics.median(x / y for x, y in rows)
    print(f"{name:6} {a:6.3f} s a step, plain loop with diffusers' {b:6.3f} s: {ratio:.2f} (≤ 1.0)")
    return {"ours_s": a, "plain_s": b, "ratio": ratio, "turns": turns}


# --- whole runs ----------------------------------------------------------------------------------


def run(*keys: str) -> Path:
    """One training command; the run's folder."""
    runs = tempfile.mkdtemp()
    line = [sys.executable, "training/fit.py", *keys, f"runs={runs}", "name=measured"]
    if subprocess.run(line, cwd=ROOT).returncode:
        sys.exit(f"{' '.join(line)} failed")
    return next(Path(runs).glob("*/measured"))


def curve(run: Path, tag: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    return [point.value for point in events.Scalars(tag)]


def wait(shards: str) -> dict[str, float]:
    run_ = run(
        "recipe=tiny-vae-video",
        f"data.shards={shards}",
        "data.weights=[]",
        "data.workers=2",
        "starts_from=null",
        "optimizer.steps=60",
        "validate.every=1000",
    )
    share = 100 * statistics.median(
        curve(run_, "machine/data wait")[1:]
    )  # the first waits for readers
    print(f"wait   {share:.1f} % of the step time (≤ 5 %)")
    return {"share_percent": share}


def longest(recipe: str) -> Fit:
    """A recipe that trains on nothing but its longest videos, one batch a step."""
    config = load(
        Fit,
        [
            f"recipe={recipe}",
            "buckets.batches=1",
            "data.latents=none",
            "compute.devices=1",
            "optimizer.steps=1000000000",
        ],
    )
    frames = max(config.buckets.frames)
    return replace(config, buckets=replace(config.buckets, frames=[frames], growth={}))


def on_gpu(recipe: str) -> dict[str, float]:
    """The 1.3B's real step on drawn latents, at the recipe's longest video; encoders apart."""
    from model.dit import WanDiT
    from model.recompute import Recompute
    from tests.benchmarks.preflight import reckoned
    from training.flops import step_flops
    from training.gpus import named
    from training.preflight import preflight

    config = longest(recipe)
    plan = preflight(config)
    batch = plan.heaviest
    with torch.device("cuda"):
        dit = WanDiT(**PRESETS["1.3b"])
    dit.recompute = Recompute(config.compute.recompute)
    torch.cuda.reset_peak_memory_stats()
    seconds = through_lightning(config, dit, batch.bucket, batch.samples)()
    step = drawn(0, batch.bucket, batch.samples)
    peak = named(torch.cuda.get_device_name()).bfloat16
    row = {
        "tokens_per_s": step.tokens / seconds,
        "mfu": step_flops(dit, step.batches) / seconds / peak,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "planned_gib": reckoned(plan) / 2**30,
    }
    print(
        f"{recipe:6} {batch.name}: {row['tokens_per_s']:,.0f} tokens/s, MFU "
        f"{row['mfu']:.1%} (≥ 45 %); peak {row['peak_gib']:.1f} GiB, "
        f"planned {row['planned_gib']:.1f}"
    )
    return row


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    only = set(keys["only"].split(",")) if "only" in keys else {*ROWS}
    if wrong := only - {*ROWS}:
        sys.exit(f"only={','.join(sorted(wrong))}: there is {', '.join(ROWS)}")
    torch.set_num_threads(int(keys.get("threads", os.cpu_count() or 1)))
    found: dict[str, dict] = {}
    for name in ROWS:
        if name not in only:
            continue
        if name in CASES:
            with warnings.catch_warnings(action="ignore"):
                found[name] = beside(name, int(keys.get("turns", 5)))
        elif name == "wait" and "shards" in keys:
            found[name] = wait(keys["shards"])
        elif name in GPU and torch.cuda.is_available():
            found[name] = on_gpu(name)
        else:
            print(f"{name}: not run, it wants {'shards=' if name == 'wait' else 'a GPU'}")
    Path(keys.get("out", "benchmark-training.json")).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
