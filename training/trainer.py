"""Lightning's Trainer for a run: precision, and the callbacks in their order."""

import logging
import warnings
from dataclasses import asdict
from math import prod

from lightning.pytorch import Trainer

from model.defaults import Defaults, public
from recipes.training import Fit
from training.batch import Bucket
from training.board import Board
from training.buckets import buckets
from training.checkpoints import Saver
from training.meters import Meters
from training.module import Trained
from training.parallel import Ranks, device
from training.parts import Parts
from training.preflight import Plan
from training.progress import Bar
from training.runs import Run
from training.samples import Samples
from training.strategies import plugins_of, strategy_of

PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def trainer_of(
    config: Fit, run: Run, module: Trained, parts: Parts | None, plan: Plan, ranks: Ranks
) -> Trainer:
    """A trainer that goes through the data once: it ends at `optimizer.steps`."""
    quiet()
    board = Board(run.folder)
    meters = Meters(board, flops=plan.step_flops, peak=plan.peak_flops)
    how = trained_on(config, module) if module.kind == "dit" else None
    samples = Samples(board, run.folder / "samples", parts, how, asked=lambda: saver.signal)
    places, told = parts.places if parts else {}, asdict(how) if how else {}
    saver = Saver(run, places, told, samples.left)
    every = config.validate.every
    return Trainer(
        accelerator=device(config),
        devices=ranks.spread.world // config.compute.nodes,
        num_nodes=config.compute.nodes,
        strategy=strategy_of(config, ranks),
        plugins=plugins_of(ranks),
        precision=PRECISION[config.compute.precision],
        max_epochs=1,
        val_check_interval=every or config.optimizer.steps,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if every else 0,
        num_sanity_val_steps=0,
        callbacks=[board, meters, Bar(meters), samples, saver],  # the saver saves what all did
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def quiet() -> None:
    """Leaves out what Lightning says of itself: which devices it found, what else it sells."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*treespec, LeafSpec.*",  # its own use of PyTorch
        "Found .* module.*in eval mode.*",  # the EMA, rightly
        ".*your dataloader is not resumable.*",  # the data module is
    ):
        warnings.filterwarnings("ignore", message)


def trained_on(config: Fit, module: Trained) -> Defaults:
    """How to sample what was trained: its largest size at its longest, the public settings else."""
    largest = max(buckets(config.buckets), key=size)
    known = public(module.network.config, (largest.width, largest.height))
    own = {"width": largest.width, "height": largest.height, "frames": largest.frames}
    own |= {"fps": config.buckets.fps, "guidance": config.validate.guidance}
    own |= {"steps": config.validate.steps, "solver": config.validate.solver}
    if config.validate.shift is not None:
        own["shift"] = config.validate.shift
    if config.text_encoder == "bytes":
        own["negative"] = ""  # what dropout showed it
    return Defaults(**asdict(known) | own)


def size(bucket: Bucket) -> tuple[int, int, float]:
    return bucket.frames, prod((bucket.width, bucket.height)), bucket.width / bucket.height
