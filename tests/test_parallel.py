"""Two processes train as one does: weights, EMA, losses, validation, and what is resumed from."""

import errno
import os
import re
from pathlib import Path
from traceback import StackSummary
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from model.dit import WanDiT
from recipes.keys import UsageError
from recipes.load import load
from recipes.training import Fit
from tests.together import DIT, HALF, KEYS, STEPS, Case, pair, train
from training import chain, parallel
from training.memory import Spread
from training.strategies import Sharded

VAE = ["trains=vae", "model=micro"]
GAN = [*VAE, "loss.gan=0.1", "loss.gan_adaptive=true"]
FSDP = {"strategy": "fsdp", "shard": 2}

HALF_PRECISE = ["compute.precision=bfloat16"]
ALONE = [Case("dit"), Case("vae", VAE), Case("gan", GAN), Case("half", HALF_PRECISE)]
TOGETHER = [
    Case("dit ddp", strategy="ddp"),
    Case("dit fsdp", **FSDP),
    Case("dit copies", ["compute.recompute=full"], "fsdp"),  # sharded among one, and copied
    Case("dit context", strategy="ddp", context=2),
    Case("dit fsdp context", ["compute.recompute=selective"], context=2, **FSDP),
    Case("vae ddp", VAE, strategy="ddp"),
    Case("gan ddp", GAN, strategy="ddp"),
]
ROUNDED = [Case("half fsdp", HALF_PRECISE, **FSDP)]
# from the file of one process, and from the folder of two
RESUMED = [
    Case("dit to ddp", strategy="ddp", resume="dit"),
    Case("dit to fsdp", resume="dit", **FSDP),
    Case("gan to ddp", GAN, strategy="ddp", resume="gan"),
    Case("dit fsdp to context", strategy="ddp", context=2, resume="dit fsdp"),
    Case("dit fsdp to copies", strategy="fsdp", shard=1, resume="dit fsdp"),
]
BACK = [
    Case("dit ddp to one", resume="dit ddp"),
    Case("dit fsdp to one", resume="dit fsdp"),
]
QUIET = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (".*LeafSpec", "Found 1 module.* in eval mode", ".*does not have many workers")
]
pytestmark = QUIET


def names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


def alone(names: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    return {case.name: train(case, folder) for case in ALONE if case.name in names}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def seen(folder) -> dict[str, dict[str, Any]]:
    """Of each case its losses and whatever else."""
    found = alone(names(ALONE), folder)
    found |= pair([*TOGETHER, *ROUNDED, *RESUMED], folder)
    return found | {case.name: train(case, folder) for case in BACK}


# The one that has most in it, in the time that a test may take; the others are slow
QUICK = next(case for case in TOGETHER if case.name == "dit fsdp context")


def test_two_processes_that_share_weights_and_sequences_learn_what_one_learns(tmp_path):
    seen = alone(["dit"], tmp_path) | pair([QUICK], tmp_path)
    for stem in ("model", "ema"):
        whole = weights(tmp_path, "dit", STEPS, stem)
        assert apart(whole, weights(tmp_path, QUICK.name, STEPS, stem)) < 1e-5
    for what in ("losses", "gradients", "drift", "validation", "broken"):
        assert seen[QUICK.name][what] == pytest.approx(seen["dit"][what], rel=1e-4)
    assert seen["dit"]["broken"] == 2


def weights(folder: Path, name: str, step: int, stem: str) -> dict[str, Tensor]:
    return load_file(folder / name / f"step={step:08d}" / f"{stem}.safetensors")


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", names([*TOGETHER, *RESUMED, *BACK]))
def test_weights_and_their_average_are_those_of_a_single_process(name, seen, folder):
    for stem in ("model", "ema"):
        whole = weights(folder, name.split()[0], STEPS, stem)
        assert apart(whole, weights(folder, name, STEPS, stem)) < 1e-5
        moved = apart(whole, weights(folder, name.split()[0], HALF, stem))
        assert moved > 1e-3  # else it would say little


@pytest.mark.slow
@pytest.mark.parametrize("name", names(TOGETHER))
def test_losses_gradients_and_validation_are_those_of_a_single_process(name, seen):
    mine, single = seen[name], seen[name.split()[0]]
    assert (mine["skipped"], mine["broken"]) == (0, 2)
    for what in ("losses", "gradients", "drift", "validation"):
        assert mine[what] == pytest.approx(single[what], rel=1e-4)
    for one, other in zip(mine["parts"], single["parts"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", names([*RESUMED, *BACK]))
def test_a_run_goes_on_with_another_number_of_processes_and_has_the_same_losses(name, seen):
    single = seen[name.split()[0]]
    for what in ("losses", "gradients"):
        assert seen[name][what] == pytest.approx(single[what][HALF:], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gan ddp", "gan to ddp"])
def test_the_adversary_learns_what_it_learns_from_a_single_process(name, seen):
    assert apart(seen[name]["adversary"], seen["gan"]["adversary"]) < 1e-5


@pytest.mark.slow
def test_in_bfloat16_sharded_weights_are_rounded_and_learn_alike(seen):
    mine, single = seen["half fsdp"], seen["half"]
    for what in ("losses", "gradients"):
        assert mine[what] == pytest.approx(single[what], rel=2e-3)
        assert mine[what] != single[what]
    assert mine["validation"]["loss"] == pytest.approx(single["validation"]["loss"], rel=2e-3)


def test_a_disk_that_is_full_is_one_error_also_where_every_process_writes(monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fails(*_: Any) -> None:
        raise CheckpointException("failed", {1: (full, StackSummary())})

    monkeypatch.setattr(ModelParallelStrategy, "save_checkpoint", fails)
    with pytest.raises(OSError, match="No space left"):
        Sharded().save_checkpoint({}, "anywhere")


# --- what a person gets wrong ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "spread", "says"),
    [
        (["compute.context=3"], Spread("ddp", 4, 1, 3), "context=3: does not divide the 4 proc"),
        (["compute.shard=3"], Spread("fsdp", 4, 3), "shard=3: does not divide the 4 processes"),
        (["compute.strategy=single"], Spread("single", 2), "single: but there are 2 processes"),
        (["compute.strategy=fsdp"], Spread("single"), "fsdp: wants several processes"),
        ([*VAE, "compute.context=2"], Spread("ddp", 2, 1, 2), "only a DiT has a sequence"),
        (VAE, Spread("fsdp", 2, 2), "a VAE is small"),
    ],
)
def test_processes_that_cannot_be_divided_so_are_refused_in_one_line(keys, spread, says):
    with pytest.raises(UsageError, match=says) as error:
        parallel.check(load(Fit, [*KEYS, *keys]), spread)
    assert "\n" not in str(error.value)


class Three:
    """Ranks of which three share a sequence."""

    spread, group = Spread("ddp", 3, 1, 3), None


@pytest.mark.parametrize(
    ("heads", "says"), [(2, "does not divide the 2 heads"), (3, "bucket 32x16x1 has fewer tokens")]
)
def test_a_sequence_is_shared_by_no_more_than_its_heads_and_tokens_allow(heads, says):
    dit = WanDiT(**DIT | {"width": 96, "num_heads": heads})
    with pytest.raises(UsageError, match=says):
        parallel.share(dit, load(Fit, [*KEYS, "compute.context=3"]), Three)


def test_several_machines_are_told_how_to_start():
    with pytest.raises(UsageError, match=re.escape("compute.nodes=2: start it with torchrun")):
        parallel.run(lambda config: 0, load(Fit, [*KEYS, "compute.nodes=2"]))


def test_more_gpus_than_there_are_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=re.escape("devices=4: PyTorch sees 2 CUDA GPUs")):
        parallel.processes(load(Fit, [*KEYS, "compute.devices=4"]))
    assert parallel.processes(load(Fit, KEYS)) == 2
    assert parallel.processes(load(Fit, [*KEYS, "compute.device=cpu"])) == 1


def test_the_first_recipe_of_a_chain_says_how_many_processes_there_are(monkeypatch):
    monkeypatch.setattr(parallel, "launch", lambda count: count)
    two = load(Fit, ["recipe=tiny-vae", "compute.devices=2"])
    assert parallel.run(lambda config: 0, two) == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert parallel.run(lambda config: 0, load(Fit, ["recipe=tiny-vae"])) == 0  # on the CPU


def test_plan_starts_no_other_process():
    assert parallel.run(lambda config: 7, load(Fit, ["compute.devices=2", "plan=true"])) == 7


def test_how_a_network_is_shared_is_no_concern_of_a_chains_vae():
    given = {"compute.context": 2, "compute.strategy": "fsdp", "compute.devices": 2}
    vae, dit = (chain.stage(recipe, given).compute for recipe in ("tiny-vae-image", "tiny"))
    assert (vae.context, vae.strategy, vae.devices) == (1, "auto", 2)
    assert (dit.context, dit.strategy, dit.devices) == (2, "fsdp", 2)
