"""The plan's memory beside what a GPU really gives out.

    python tests/benchmarks/preflight.py                          every row that fits this GPU
    python tests/benchmarks/preflight.py only=1.3b-480p-full out=FILE

Each row trains two steps in a fresh process: the real network with float32 weights, autocast, its
EMA and its optimiser, on a batch of the row's recipe; then torch.cuda.max_memory_allocated over the
second step stands beside the plan's largest moment, without encoders and reserve, which are not
there. Target: within 10 %. Where there is no CUDA nothing is run.
"""

import json
import multiprocessing
import sys
from pathlib import Path

import torch
from torch import Tensor

# a script's own folder leads the path, and here it has a curation.py
HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), *(one for one in sys.path if Path(one).resolve() != HERE)]

from recipes.load import load  # noqa: E402
from recipes.training import Fit  # noqa: E402
from training import footprint  # noqa: E402
from training.ema import EMA  # noqa: E402
from training.machine import Machine, machine  # noqa: E402
from training.optimizers import optimizers  # noqa: E402
from training.parts import network_of  # noqa: E402
from training.plan import Plan, gib  # noqa: E402
from training.preflight import planned  # noqa: E402

BATCHES = "buckets.batches=1"
ROWS = {
    "1.3b-192p-selective": ["recipe=192p", "compute.recompute=selective"],
    "1.3b-480p-attention": ["recipe=480p", "compute.recompute=attention"],
    "1.3b-480p-full": ["recipe=480p", "compute.recompute=full"],
    "1.3b-720p-full": ["recipe=720p", "compute.recompute=full"],
    "vae-128": ["recipe=vae-video", "compute.recompute=none"],
    "vae-128-full": ["recipe=vae-video", "compute.recompute=full"],
}
MOMENTS = ("backward", "end of backward", "update")
ABSENT = ("encoders", "reserve")


def asked(row: str) -> Fit:
    return load(Fit, [*ROWS[row], BATCHES, "data.latents=none", "compute.devices=1"])


def reckoned(plan: Plan) -> int:
    """Bytes of the largest moment, of what is there in a row."""
    return max(
        sum(size for kind, size in one.kinds.items() if kind not in ABSENT)
        for one in plan.moments
        if one.name in MOMENTS
    )


def measured(config: Fit, plan: Plan, device: str = "cuda") -> int:
    """Bytes that a step takes at most; torch.OutOfMemoryError where they are not there."""
    with torch.device(device):
        network = network_of(config, None)
    kept = [EMA(network, config.optimizer.ema)] if config.optimizer.ema else []
    steppers = optimizers(network, config.optimizer)
    batch = plan.heaviest
    with torch.device(device):
        judges = {} if plan.networks.is_dit else footprint.judges_of(config.loss)

    def loss() -> Tensor:
        with torch.device(device):
            if plan.networks.is_dit:
                return footprint.dit_loss(network, batch.bucket, batch.samples)
            return footprint.vae_loss(network, config.loss, judges, batch.bucket, batch.samples)

    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast(device, torch.bfloat16, config.compute.precision == "bfloat16"):
            for each in steppers:
                each.zero_grad()
            loss().backward()
            for each in steppers:
                each.step()
            for one in kept:
                one.follow(network)
    return torch.cuda.max_memory_allocated()


def run(row: str) -> dict[str, float]:
    config = asked(row)
    plan = planned(config, machine(config))
    found = measured(config, plan)
    return {"measured": found, "plan": reckoned(plan), "ratio": reckoned(plan) / found}


def told(row: str) -> dict[str, float] | None:
    """One row, in a process of its own, so that none inherits another's memory."""
    config = asked(row)
    if not torch.cuda.is_available():
        plan = planned(config, Machine("a GPU", True, 2**62, 0.0, 0.0))
        print(f"{row:<22} plan {gib(reckoned(plan)):>9}; not run, there is no CUDA device here")
        return None
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(run, (row,))
    except torch.OutOfMemoryError:
        print(f"{row:<22} does not fit this GPU")
        return None
    print(
        f"{row:<22} plan {gib(found['plan']):>9}, given out {gib(found['measured']):>9}: "
        f"{found['ratio']:.2f} (0.90 to 1.10)",
        flush=True,
    )
    return found


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    only = keys["only"].split(",") if "only" in keys else list(ROWS)
    if wrong := {*only} - {*ROWS}:
        sys.exit(f"only={','.join(sorted(wrong))}: there is {', '.join(ROWS)}")
    found = {row: told(row) for row in only}
    if done := {row: one for row, one in found.items() if one}:
        Path(keys.get("out", "benchmark-preflight.json")).write_text(json.dumps(done, indent=1))


if __name__ == "__main__":
    main()
