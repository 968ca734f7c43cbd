"""Every recipe on disk: it loads, its chain ends, and it trains two steps through the real command.

Networks are shrunk and clips are 64 pixels wide; data, chain, checkpoints and start are real.
"""

import json
from functools import cache

import pytest
import yaml

from model.presets import PRESETS, VAES
from recipes.load import RECIPES, load
from recipes.training import DITS, Fit
from recipes.training import VAES as VAE_SIZES
from tests.rendered_shards import rendered
from tests.small_fit import QUIET, shrink, train

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


@QUIET
def test_each_takes_two_steps_from_what_the_one_before_has_left(tmp_path, monkeypatch, capsys):
    shrink(monkeypatch)
    shards, runs = rendered(tmp_path / "shards", count=10), tmp_path / "runs"
    for name in order():
        longest = min(9, max(config(name).buckets.frames))
        keys: dict[str, object] = {"buckets__frames": longest, "loss__gan": 0}
        keys |= {f"buckets__growth__{step}": 9 for step in config(name).buckets.growth}
        keys |= {"data__frames_as_images": "true"} if longest == 1 else {}
        assert train(name, shards, runs, **keys) == 0, (name, capsys.readouterr().err)
        (run,) = (runs / name).iterdir()
        assert (run / "done.json").is_file()
        meta = json.loads((run / "checkpoints" / "step=00000002" / "meta.json").read_text("utf-8"))
        advised, asked = meta["trained_on"], config(name).validate
        if config(name).trains == "dit":
            assert (advised["guidance"], advised["solver"]) == (asked.guidance, asked.solver)
