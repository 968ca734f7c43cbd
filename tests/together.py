"""A training of three steps on made-up batches, by one process or by two that work together.

A process imports no more than this file does.
"""

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader

from model.byte_encoder import ByteEncoder
from model.dit import WanDiT
from model.recompute import Recompute
from model.vae import WanVAE
from recipes.load import load
from recipes.training import Fit
from training import parallel, snapshot
from training.batch import Batch, Bucket, Step
from training.dit_module import DiTModule
from training.memory import Spread
from training.module import Trained
from training.strategies import plugins_of, strategy_of
from training.trainer import PRECISION, quiet
from training.vae_module import VAEModule

STEPS, HALF = 3, 2
# images too, which a VAE's convolutions over time don't see; 15 tokens, which don't halve
BUCKETS = (Bucket(32, 32, 5), Bucket(32, 32, 1), Bucket(80, 48, 1), Bucket(32, 16, 9))
DIT = {"width": 64, "ffn_width": 32, "num_heads": 2, "num_layers": 2, "text_width": 16}
DIT |= {"text_length": 32}
VAE = {"width": 4, "blocks": 1}
# Adam divides noise by noise where there is no gradient, as of keys' biases: not with such an eps
KEYS = [
    "optimizer.lr=1e-2",
    "optimizer.eps=1e-4",
    "optimizer.warmup=0",
    "optimizer.ema=0.9",
    "text_encoder=bytes",
]
KEYS += ["loss.perceptual=0", "loss.gan_width=8", "compute.precision=float32", "model=tiny"]
KEYS += ["buckets.sizes=32x32,80x48,32x16", "buckets.frames=1,5,9", f"optimizer.steps={STEPS}"]
KEYS += ["data.frames_as_images=true"]


@dataclass
class Case:
    """One way to train; the same batches whatever it is."""

    name: str
    keys: list[str] = field(default_factory=list)
    strategy: str = "single"
    shard: int = 1
    context: int = 1
    resume: str | None = None  # name of the case whose second step it goes on from


def module_of(config: Fit, ranks: parallel.Ranks) -> Trained:
    torch.manual_seed(0)
    if config.trains == "vae":
        return VAEModule(WanVAE(**VAE), config)
    text = ByteEncoder(width=16, length=32).requires_grad_(False)
    vae = WanVAE(**VAE).requires_grad_(False)
    dit = WanDiT(**DIT)
    dit.recompute = Recompute(config.compute.recompute)
    if config.compute.compile:
        for block in dit.blocks:
            block.compile(backend="aot_eager")
    torch.nn.init.normal_(dit.head.head.weight, std=0.1)  # zero lets no gradient through at first
    return DiTModule(parallel.spread(dit, config, ranks), config, vae, text)


def batch(step: int, number: int, kind: str) -> Batch:
    """Two or three samples of one bucket."""
    bucket = BUCKETS[(step + number) % len(BUCKETS)]
    generator = torch.Generator().manual_seed(100 * step + number)
    count = 2 + (step + number) % 2
    names = [f"{step}/{number}/{one}" for one in range(count)]
    grid = (1 + bucket.frames // 4, bucket.height // 8, bucket.width // 8)
    media: dict[str, Any] = {}
    if kind == "vae":
        shape = (count, 3, bucket.frames, bucket.height, bucket.width)
        media["video"] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    else:
        media["mean"] = torch.randn(count, 16, *grid, generator=generator)
        media["logvar"] = torch.randn(count, 16, *grid, generator=generator)
    return Batch(bucket, names, [f"prompt {one}" for one in names], number=number, **media)


class Made(LightningDataModule):
    """Four batches a step."""

    def __init__(self, kind: str, ranks: parallel.Ranks, first: int) -> None:
        super().__init__()
        self.kind, self.ranks, self.first = kind, ranks, first
        self.broken = 2 // ranks.spread.readers  # two in all, whoever reads them

    def mine(self, number: int) -> list[Batch]:
        readers = self.ranks.spread.readers
        return [batch(number, one, self.kind) for one in range(4)][self.ranks.reader :: readers]

    def train_dataloader(self) -> "Steps":
        return Steps(self)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.mine(1000), batch_size=None)


class Steps:
    """As long as all steps, also where the first were taken before."""

    def __init__(self, data: Made) -> None:
        self.data = data

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Step]:
        for number in range(self.data.first, len(self)):
            every = [batch(number, one, self.data.kind) for one in range(4)]
            tokens, samples = sum(one.tokens for one in every), sum(len(one) for one in every)
            yield Step(number, self.data.mine(number), tokens, samples, {})


class Noted(Callback):
    """What each step was; the second and the last are saved, as training does it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.losses: list[float] = []
        self.parts: list[dict[str, float]] = []
        self.gradients: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: Trained, *_: Any) -> None:
        self.losses.append(module.last.loss)
        self.parts.append(module.last.parts)
        self.gradients.append(module.last.gradient)
        if module.step in (HALF, STEPS):
            self.folder.mkdir(parents=True, exist_ok=True)
            place = self.folder / f"step={module.step:08d}"
            snapshot.write(trainer, module, place, {"step": module.step})


def train(case: Case, folder: Path, world: int = 1) -> dict[str, Any]:
    """Trains, validates and saves `folder/<case>/step=…`; what was seen."""
    config = load(Fit, [*KEYS, *case.keys])
    config.compute.strategy, config.compute.context = case.strategy, case.context
    config.compute.shard = case.shard if case.shard < world else 0
    strategy = case.strategy if world > 1 else "single"
    ranks = parallel.here(config, Spread(strategy, world, case.shard, case.context))
    module, noted = module_of(config, ranks), Noted(folder / case.name)
    path = folder / case.resume / f"step={HALF:08d}" / "trainer.ckpt" if case.resume else None
    quiet()
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=strategy_of(config, ranks),
        precision=PRECISION[config.compute.precision],
        plugins=plugins_of(ranks),
        max_epochs=1,
        val_check_interval=STEPS,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[noted],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data = Made(module.kind, ranks, HALF if case.resume else 0)
    trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    found = {
        "losses": noted.losses,
        "parts": noted.parts,
        "gradients": noted.gradients,
        "validation": module.validation,
        "drift": module.ema.drift(module.network),
        "skipped": module.guard.skipped,
        "broken": module.broken,
    }
    if module.kind == "vae" and module.adversary:
        found["adversary"] = module.adversary.network.state_dict()
    return found


def pair(cases: list[Case], folder: Path) -> dict[str, dict[str, Any]]:
    """Trains with two processes, case after case; what the first of them saw.

    Raises:
        AssertionError: with what a process said before it failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.together"])
    started = [context.Process(target=one_of_two, args=(rank, cases, folder)) for rank in (0, 1)]
    for one in started:
        one.start()
    for one in started:
        one.join()
    said = [path.read_text() for path in sorted(folder.glob("failed-*"))]
    assert not said, "\n".join(said)
    assert not any(one.exitcode for one in started)
    return torch.load(folder / "seen.pt", weights_only=False)


def one_of_two(rank: int, cases: list[Case], folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    try:
        store = f"file://{folder / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
        seen = {case.name: train(case, folder, world=2) for case in cases}
        if rank == 0:
            torch.save(seen, folder / "seen.pt")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"failed-{rank}").write_text(traceback.format_exc())
        raise
