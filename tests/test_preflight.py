"""A plan says what a recipe takes; what can't fit is refused with the smallest change that does."""

import re
from dataclasses import replace

import pytest
import torch

from model.presets import PRESETS
from model.recompute import MODES
from recipes.load import RECIPES, UsageError, load
from recipes.training import Fit
from training import gpus, memory, remedies, workload
from training.batch import Batch, Bucket, Step
from training.ema import EMA
from training.flops import of_dit
from training.frozen import UMT5_XXL, umt5
from training.machine import Machine, machine, of_gpu
from training.memory import GIB, Footprint, Load, Spread, Weights, moments
from training.optimizers import optimizers
from training.parts import network_of
from training.plan import gib
from training.preflight import networks_of, planned, preflight
from training.remedies import changed, groups, refusal, smallest

LARGE = 10**15
CPU = Machine("CPU", False, 24 * GIB, 1e11, 1e11)
SMALL = ("model=tiny", "text_encoder=bytes", "data.latents=x", "data.workers=0")
SQUARES = ("buckets.sizes=64x64", "buckets.frames=9", "buckets.tokens=96", "optimizer.steps=100")


def config(*keys: str) -> Fit:
    return load(Fit, [*SMALL, *SQUARES, *keys])


def gpu(count: int = 1, size: int = LARGE) -> Machine:
    return Machine("gpu", True, size, 1e15, 1e14, count)


def one_line(caught) -> str:
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weights_gradients_optimiser_and_average_are_counted_to_the_byte(kind):
    asked = config(f"optimizer.kind={kind}", "optimizer.ema=0.9")
    network = network_of(asked, None)
    for one in network.parameters():
        one.grad = torch.ones_like(one)
    steppers = optimizers(network, asked.optimizer)
    for each in steppers:
        each.step()
    states = [
        value for each in steppers for state in each.state.values() for value in state.values()
    ]
    average = EMA(network, 0.9).network
    update = next(one for one in planned(asked, CPU).moments if one.name == "update")
    for name, tensors in (
        ("weights", network.parameters()),
        ("gradients", [one.grad for one in network.parameters()]),
        ("optimiser", [value for value in states if isinstance(value, torch.Tensor)]),
        ("EMA", average.parameters()),
    ):
        assert update.kinds[name] == sum(one.nbytes for one in tensors), name


WEIGHTS = Weights(parameters=1000, optimiser=8000, buffers=0, largest=100, block=90, rest=100)
LOAD = Load(WEIGHTS, Footprint(70_000, 2000, 500), Spread("single"), 1, True, True, True)


def kinds(load: Load) -> dict[str, dict[str, int]]:
    return {one.name: one.kinds for one in moments(load)}


def test_gradients_take_the_place_of_activations_unless_a_rank_has_several_batches():
    one, several = kinds(LOAD), kinds(replace(LOAD, batches=2))
    assert "gradients" not in one["backward"]
    assert several["backward"]["gradients"] == 4000
    assert kinds(replace(LOAD, spread=Spread("ddp", 2)))["backward"]["gradients"] == 4000
    assert "activations" not in one["end of backward"]
    assert one["end of backward"]["gradients"] == 4000 - 4 * 90


def test_shards_divide_what_is_held_and_gather_a_block_at_a_time():
    whole = kinds(LOAD)["update"]
    part = kinds(replace(LOAD, spread=Spread("fsdp", 8, 8)))["update"]
    for kind in ("weights", "optimiser", "EMA", "gradients"):
        assert part[kind] == whole[kind] / 8
    back = kinds(replace(LOAD, spread=Spread("fsdp", 8, 8)))["backward"]
    assert back["gathered"] == 2 * 100
    assert back["working"] == 500 + (3 * 2 + 4) * 90
    assert back["activations"] == 70_000
    assert "bfloat16 copies" not in back


def test_every_kind_is_there_when_it_is_there():
    full = replace(LOAD, frozen={"encoders": 11}, encoding=10**6, sampling=10**7, readers=3)
    found = kinds(full)
    assert found["encoding"]["working"] == 10**6
    assert found["samples"]["working"] == 10**7
    assert all(one["encoders"] == 11 for one in found.values())
    assert all(one["reserve"] >= memory.CUDA for one in found.values())
    assert "EMA" not in kinds(replace(LOAD, ema=False))["update"]
    on_cpu = kinds(replace(full, cuda=False))["update"]
    assert on_cpu["reserve"] >= memory.PROCESS + 3 * memory.READER
    assert on_cpu["working"] == 2 * 4 * 100


def test_the_published_encoder_has_its_size():
    assert umt5(UMT5_XXL).parameters / 1e9 == pytest.approx(5.68, abs=0.01)


# --- refusal -----------------------------------------------------------------------------------


# two clips a batch, and no samples, whose decoding would be what takes most
TWO = ("buckets.sizes=256x256", "buckets.tokens=1536", "validate.sample_every=0")


def test_computing_again_what_is_cheapest_is_told_first():
    asked = config(*TWO)
    roomy = planned(asked, gpu())
    with pytest.raises(UsageError, match=r"; compute\.recompute=selective takes") as caught:
        preflight(asked, gpu(size=roomy.peak.total - 1))
    one_line(caught)


@pytest.mark.parametrize(
    ("keys", "moment", "says"),
    [
        pytest.param(
            ("validate.sample_every=0", "data.latents=null"),
            "encoding",
            "data.latents=",
            marks=pytest.mark.slow,
        ),
        ((), "samples", "validate.sample_every=0"),
    ],
)
def test_the_change_is_about_what_takes_most(keys, moment, says):
    asked = config("buckets.sizes=256x256", "buckets.tokens=768", "compute.recompute=full", *keys)
    plan = planned(replace(asked, recipe="mine"), gpu(size=GIB))
    assert plan.peak.name == moment
    plan = replace(plan, machine=gpu(size=plan.peak.total - 1))
    change, found = smallest(plan)
    assert change.words.startswith(says)
    assert found.peak.name != moment
    first = "once python training/latents.py recipe=mine has written it"
    assert (first in refusal(plan)) == ("latents" in says)


def test_gpus_that_are_not_here_are_told_as_what_to_plan_with_and_what_to_give_there():
    """compute.gpu only works with plan=true: on such a GPU nothing need be said of it."""
    plan = planned(config(), gpu())
    change = remedies.Change({"compute.gpu": "h200", "buckets.batches": 8}, gpu(8))
    line = remedies.advice(plan, change, plan)
    assert re.fullmatch(
        r"on 8 × gpu with buckets.batches=8 it takes \S+ \S+ "
        r"\(plan=true compute.gpu=h200 buckets.batches=8 says more\)",
        line,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modes", "says"), [(("none",), "compute.recompute"), (MODES, "buckets.tokens")]
)
def test_what_is_told_is_the_first_change_in_the_order_of_cost_that_fits(modes, says):
    asked = config(*TWO)
    some = [planned(changed(asked, {"compute.recompute": one}), gpu()) for one in modes]
    least = min(some, key=lambda one: one.peak.total)  # so much that none of these ways fits
    plan = planned(asked, gpu(size=least.peak.total - 1), least.networks)
    change, found = smallest(plan)
    assert not plan.fits
    assert found.fits
    for one in (one for group in groups(plan) for one in group):
        if one == change:
            break
        assert not planned(changed(asked, one.keys), one.on, least.networks).fits
    assert change.words in refusal(plan)
    assert change.words.startswith(says)
    # it can be given as it is written
    assert planned(config(*TWO, *change.words.split()), change.on).peak == found.peak


def test_a_recipe_for_gpus_is_refused_on_a_small_machine_and_told_which_gpu():
    asked = load(Fit, ["recipe=480p", "data.latents=x", "compute.recompute=full"])
    with pytest.raises(UsageError) as caught:
        preflight(asked, CPU)
    line = one_line(caught)
    assert "480p: takes" in line
    assert "this machine has 24.0 GiB" in line
    assert "optimiser 10.6 GiB" in line
    assert "it is a recipe for GPUs: on " in line
    assert "(plan=true compute.gpu=" in line
    name = line.split("compute.gpu=")[1].split()[0]
    other = of_gpu(gpus.named(name), 1)
    networks = networks_of(asked)
    assert planned(asked, other, networks).fits
    smaller = [one for one in gpus.GPUS if one.gib < other.memory / GIB - 0.1]
    assert not any(planned(asked, of_gpu(one, 1), networks).fits for one in smaller)


def test_where_no_change_is_enough_that_is_told(monkeypatch):
    monkeypatch.setattr(remedies, "GPUS", ())
    with pytest.raises(UsageError, match="no change of recompute") as caught:
        preflight(config("compute.recompute=full"), replace(CPU, memory=1))
    one_line(caught)


def test_what_would_take_years_on_a_cpu_is_for_gpus_unless_the_cpu_is_asked_for():
    asked = config("optimizer.steps=1000000000")
    with pytest.raises(UsageError, match="recipe for GPUs") as caught:
        preflight(asked, CPU)
    assert "compute.device=cpu" in one_line(caught)
    assert preflight(changed(asked, {"compute.device": "cpu"}), CPU).days > 100


def test_a_gpu_that_is_not_here_is_planned_with_and_not_trained_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    there = machine(config("plan=true", "compute.gpu=H100", "compute.devices=8"))
    assert (there.name, there.count, there.cuda) == ("h100", 8, True)
    assert not machine(config("compute.gpu=h100")).cuda
    with pytest.raises(UsageError, match="PyTorch sees no CUDA GPU"):
        machine(config("compute.device=cuda"))
    with pytest.raises(UsageError, match="not known"):
        machine(config("plan=true", "compute.gpu=voodoo2"))


@pytest.mark.parametrize(
    ("keys", "count", "says"),
    [
        (("buckets.batches=3",), 2, "multiple of the 2 processes"),
        (("compute.context=4", "buckets.batches=4"), 4, "2 heads"),
        (("compute.context=2",), 3, "does not divide the 3"),
        (("compute.strategy=single",), 2, "there are 2"),
        (("buckets.tokens=10",), 1, "one clip of 64x64x9 has 48"),
    ],
)
def test_what_can_not_be_divided_is_refused(keys, count, says):
    with pytest.raises(UsageError, match=says) as caught:
        preflight(config(*keys), gpu(count))
    one_line(caught)


def test_weights_are_sharded_where_whole_ones_do_not_fit():
    asked = config("buckets.batches=4")
    whole = planned(asked, gpu(4))
    assert whole.spread == Spread("ddp", 4)
    shards = planned(asked, gpu(4, whole.peak.total - 1))
    assert shards.fits
    assert shards.spread == Spread("fsdp", 4, 4)
    two = planned(changed(asked, {"compute.shard": 2, "compute.strategy": "fsdp"}), gpu(4))
    assert two.spread.shard == 2
    assert shards.peak.kinds["weights"] < two.peak.kinds["weights"] < whole.peak.kinds["weights"]


# --- days and money ----------------------------------------------------------------------------


def test_days_and_cost_are_operations_over_speed():
    asked = config("buckets.batches=4", "compute.mfu=0.5", "compute.price=3", "validate.every=0")
    plan = planned(asked, gpu())
    sizes = plan.networks.trained.config
    each = of_dit(sizes, Bucket(64, 64, 9)).step + sum(one.flops for one in plan.networks.still)
    assert plan.work.total == pytest.approx(4 * 2 * each)
    assert plan.tokens == 4 * 96
    assert plan.days == pytest.approx(100 * 8 * each / (0.5 * 1e15) / 86400)
    more = planned(asked, gpu(4))
    assert more.days == pytest.approx(plan.days / 4)
    assert more.gpu_hours == pytest.approx(plan.gpu_hours)
    wide = changed(asked, {"compute.precision": "float32"})
    assert planned(wide, gpu()).days == pytest.approx(10 * plan.days)
    again = planned(changed(asked, {"compute.recompute": "full"}), gpu())
    assert again.days > 1.2 * plan.days
    seen = planned(changed(asked, {"validate.every": 10}), gpu())
    assert seen.days > plan.days


def test_the_table_says_what_is_planned():
    plan = planned(config("buckets.batches=2"), gpu(2))
    rows = dict(plan.rows())
    assert "4.86 M parameters" in rows["trains"]
    assert "VAE 127 M" in rows["frozen"]
    assert rows["on"].startswith("2 × gpu")
    assert rows["spread"] == "ddp, recompute none"
    assert "2 batches of up to 96 tokens" in rows["a step"]
    assert rows["memory"].startswith(f"{plan.peak.total / GIB:.1f} GiB of")
    assert {"time", "cost", "MFU then"} <= {*rows}
    assert plan.table().row_count == len(plan.rows())


def test_each_kind_of_memory_is_told_also_where_another_moment_holds_more_of_it():
    asked = config("buckets.sizes=256x256", "buckets.tokens=1536")
    plan = planned(asked, gpu())
    rows = dict(plan.rows())
    assert {f"  {kind}" for one in plan.moments for kind in one.kinds} <= {*rows}
    assert plan.peak.name == "samples"
    assert rows["  gradients"] == f"none; {gib(plan.moments[-2].kinds['gradients'])} at update"
    back = next(one for one in plan.moments if one.name == "backward")
    assert rows["  activations"] == f"none; {gib(back.kinds['activations'])} at backward"
    assert rows["  weights"] == gib(plan.peak.kinds["weights"])
    assert [*rows][-4] == "  reserve"  # before time, cost and MFU


def test_an_unknown_speed_leaves_days_open_and_refuses_nothing():
    plan = preflight(config(), replace(gpu(), bfloat16=0.0))
    assert plan.peak_flops is None
    assert "not known" in dict(plan.rows())["time"]


def test_a_steps_operations_are_those_of_its_batches():
    plan = planned(config(), gpu())
    batch = Batch(Bucket(64, 64, 9), ["a", "b"], ["", ""])
    step = Step(0, [batch, batch], 192, 4, {})
    sizes = plan.networks.trained.config
    assert plan.step_flops(step) == 4 * of_dit(sizes, batch.bucket).step


# --- what is trained on ------------------------------------------------------------------------


def test_phases_and_images_have_their_shares_of_the_batches():
    asked = config(
        "buckets.frames=1,9,17",
        "buckets.growth.0=9",
        "buckets.growth.25=17",
        "buckets.tokens=160",
        "data.image_share=0.4",
    )
    found = {load.name: share for load, share in workload.mix(asked).items()}
    assert found == pytest.approx(
        {"10 × 64x64x1": 0.4, "3 × 64x64x9": 0.6 * 0.25, "2 × 64x64x17": 0.6 * 0.75}
    )


def test_the_heaviest_batch_has_the_most_tokens_or_for_a_vae_pixels():
    asked = config("buckets.frames=1,9", "buckets.tokens=96")
    assert workload.heaviest(asked, text=512).name == "6 × 64x64x1"
    assert workload.heaviest(asked).name == "2 × 64x64x9"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_has_a_plan(name):
    asked = load(Fit, [f"recipe={name}"])
    if asked.trains == "chain":
        return
    plan = planned(asked, Machine("gpu", True, LARGE, 1e15, 1e14, 1))
    assert plan.fits
    assert 0 < plan.days < 1e5
    assert plan.work.total > 0
    assert plan.table().row_count > 8
    assert networks_of(asked).is_dit == (asked.model in PRESETS)
