"""Every recipe on disk: it loads, its chain ends, and it trains two steps through the real command.

Networks are shrunk and clips are 64 pixels wide; data, chain, checkpoints and start are real.
"""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from model.checkpoint import save
from model.image import ImageEncoder
from model.presets import PRESETS, VAES
from recipes.load import RECIPES, load
from recipes.training import DITS, Fit
from recipes.training import VAES as VAE_SIZES
from tests.rendered_shards import rendered
from tests.small_fit import QUIET, shrink, train
from tests.tiny_wan import redrawn
from training.preflight import preflight

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
LINKS = ("starts_from", "vae", "text_encoder", "image_encoder")


@cache
def config(name: str) -> Fit:
    return load(Fit, [f"recipe={name}"])


def named(one: Fit) -> list[str]:
    """The recipes that must have been trained before this one."""
    links = [getattr(one, link) for link in LINKS]
    found = [link for link in links if link in NAMES]
    return found + one.chain


def test_there_are_the_published_stages_and_their_small_counterparts():
    assert {"vae-image", "vae-video", "vae-finetune"} <= {*NAMES}
    assert {"256p-image", "192p", "480p", "720p", "sft", "i2v", "i2v-sft", "curriculum"} <= {*NAMES}
    assert {"tiny-vae", "tiny", "tiny-i2v"} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_loads_says_what_to_expect_and_nothing_that_its_parent_says(name):
    one = config(name)
    assert one.expect
    own = yaml.safe_load((RECIPES / f"{name}.yaml").read_text("utf-8"))
    parent = own.pop("parent", None)
    if parent is None:
        return
    told = vars(config(parent))

    def same(mine, theirs) -> list[str]:
        if isinstance(mine, dict):
            both = theirs if isinstance(theirs, dict) else vars(theirs)
            return [f"{k}.{x}" for k, v in mine.items() for x in same(v, both.get(k))]
        return [""] if mine == theirs else []

    assert not same({k: v for k, v in own.items() if k != "expect"}, told)


GPU = [name for name in NAMES if not name.startswith("tiny") and name != "curriculum"]
FAST = ("vae-video", "256p-image")


def hours(name: str) -> float:
    """What a recipe says that it costs."""
    return float(re.match(r"([\d,]+) GPU hours", config(name).expect)[1].replace(",", ""))


@pytest.mark.parametrize(
    "name", [one if one in FAST else pytest.param(one, marks=pytest.mark.slow) for one in GPU]
)
def test_a_recipe_fits_eight_h100_and_costs_what_it_says(name):
    asked = load(Fit, [f"recipe={name}", "plan=true", "compute.gpu=h100", "compute.devices=8"])
    assert preflight(asked).gpu_hours == pytest.approx(hours(name), rel=0.02)


def test_the_curriculum_costs_the_sum_of_its_stages():
    stages = sum(map(hours, config("curriculum").chain))
    assert hours("curriculum") == pytest.approx(stages, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_recipe_needs_is_there_and_never_itself(name):
    seen: set[str] = set()
    ahead = named(config(name))
    while ahead:
        one = ahead.pop()
        assert one in NAMES
        assert one != name, f"{name} needs itself"
        if one not in seen:
            seen.add(one)
            ahead += named(config(one))


def test_the_sizes_that_recipes_may_name_are_those_of_the_model():
    assert {*DITS} == {name for name, size in PRESETS.items() if "image_width" not in size}
    assert {*VAE_SIZES} == {*VAES}


def test_optimiser_and_loss_are_the_reports():
    for name in ("256p-image", "192p", "480p", "720p", "sft"):
        one = config(name).optimizer
        assert (one.lr, one.weight_decay) == (1e-4, 1e-3)
        assert one.patience > 0  # lowered on plateaus
        assert config(name).compute.precision == "bfloat16"
    video = config("vae-video")
    assert (video.loss.l1, video.loss.kl, video.loss.perceptual) == (3, 3e-6, 3)
    assert (video.buckets.sizes, max(video.buckets.frames)) == (["128x128"], 5)
    assert config("vae-image").taps == 1
    assert config("vae-finetune").loss.gan > 0
    sizes = [config(name).buckets.sizes for name in ("192p", "480p", "720p", "sft")]
    assert sizes == [["192p"], ["480p"], ["720p"], ["480p", "720p"]]


# --- two real steps of each ----------------------------------------------------------------------


def order() -> list[str]:
    """Recipes after those that they need; chains are trained by their stages."""
    found: list[str] = []

    def visit(name: str) -> None:
        for one in named(config(name)):
            visit(one)
        if name not in found and config(name).trains != "chain":
            found.append(name)

    for name in NAMES:
        visit(name)
    return found


def short(one: Fit, image_encoder: Path) -> dict[str, object]:
    """Keys that make clips short; the rest of a recipe stays: precision, recomputation, judges."""
    longest = min(9, max(one.buckets.frames))
    keys: dict[str, object] = {"buckets__frames": longest, "buckets__batches": 2}
    if one.buckets.growth:  # the second step lets the longer ones in
        keys |= {f"buckets__growth__{step}": 9 for step in (*one.buckets.growth, 1)}
        keys |= {"buckets__growth__0": 5, "buckets__frames": "5,9"}
    if longest == 1:
        keys["data__frames_as_images"] = "true"
    if one.loss.gan:  # the adversary judges the first step and is trained with it
        keys["loss__gan_start"] = 0
    if one.image_encoder:
        keys["image_encoder"] = image_encoder
    how = one.compute
    return keys | {"compute__precision": how.precision, "compute__recompute": how.recompute}


@QUIET
def test_each_takes_two_steps_from_what_the_one_before_has_left(tmp_path, monkeypatch, capsys):
    shrink(monkeypatch)
    shards, runs = rendered(tmp_path / "shards", count=10), tmp_path / "runs"
    save(redrawn(ImageEncoder(1280, 2, 2, mlp_width=16, image_size=28)), tmp_path / "clip")
    for name in order():
        one = config(name)
        keys = short(one, tmp_path / "clip")
        assert train(name, shards, runs, **keys) == 0, (name, capsys.readouterr().err)
        (run,) = (runs / name).iterdir()
        assert (run / "done.json").is_file()
        meta = json.loads((run / "checkpoints" / "step=00000002" / "meta.json").read_text("utf-8"))
        advised, asked = meta["trained_on"], one.validate
        if one.trains == "dit":
            assert (advised["guidance"], advised["solver"]) == (asked.guidance, asked.solver)
        if one.image_encoder:
            assert meta["parts"]["image_encoder"] == str(tmp_path / "clip")
