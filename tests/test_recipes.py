"""Every recipe on disk: it loads, its chain ends, and it trains two steps through the real command.

Networks are shrunk and clips are 64 pixels wide; data, chain, checkpoints and start are real.
"""

from functools import cache
from pathlib import Path

import pytest
import yaml

from model.presets import PRESETS, VAES
from recipes.load import RECIPES, load, main
from recipes.training import DITS, Fit
from recipes.training import VAES as VAE_SIZES
from tests.rendered_shards import rendered
from training.fit import fit

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


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return rendered(tmp_path_factory.mktemp("shards"), count=10)


@pytest.fixture
def shrunk(monkeypatch) -> None:
    """Every size as small as its parts allow."""
    small = {"width": 64, "ffn_width": 64, "num_heads": 2, "num_layers": 1}
    small |= {"text_width": 16, "text_length": 64}
    for name, size in PRESETS.items():
        monkeypatch.setitem(
            PRESETS, name, {k: v for k, v in size.items() if k not in small} | small
        )
    for name in VAES:
        monkeypatch.setitem(VAES, name, {"width": 4, "blocks": 1})


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


KEYS = (
    *("buckets.sizes=64x64", "buckets.image_sizes=64x64", "buckets.tokens=64", "buckets.batches=1"),
    *("optimizer.steps=2", "optimizer.warmup=1", "validate.clips=2", "validate.timesteps=2"),
    *("validate.sample_every=0", "text_encoder=bytes", "image_encoder=null", "data.workers=0"),
    *("compute.device=cpu", "compute.precision=float32", "compute.recompute=none", "loss.gan=0"),
    "data.weights=null",
)


def test_each_takes_two_steps_from_what_the_one_before_has_left(shards, shrunk, tmp_path, capsys):
    runs = tmp_path / "runs"
    for name in order():
        one = config(name)
        keys = [key for key in KEYS if not key.startswith("data.weights")]
        frames = [1] if max(one.buckets.frames) == 1 else [min(9, max(one.buckets.frames))]
        keys += [f"buckets.frames={frames[0]}", f"data.shards={shards}", f"runs={runs}"]
        keys += [f"buckets.growth.{step}=9" for step in one.buckets.growth]
        if frames == [1]:
            keys.append("data.frames_as_images=true")
        argv = [f"recipe={name}", *keys]
        assert main(Fit, fit, argv) == 0, (name, capsys.readouterr().err)
        (run,) = (runs / name).iterdir()
        assert (run / "done.json").is_file()
        assert (run / "checkpoints" / "step=00000002" / "meta.json").is_file()
