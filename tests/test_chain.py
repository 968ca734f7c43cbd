"""Keys that are given for a chain, and how they reach its stages."""

import pytest

from recipes.load import load
from recipes.training import Fit
from tests.rendered_shards import rendered
from tests.small_fit import QUIET, shrink, train
from training.chain import first, given_to, stage, written


def given(*keys: str) -> dict:
    return given_to(load(Fit, ["recipe=curriculum", *keys]))


def test_what_the_command_line_says_is_handed_on_and_nothing_else():
    assert given() == {}
    assert given("name=a", "resume=never") == {}  # the chain's own
    assert given("optimizer.lr=1e-3", "buckets.growth.0=17", "data.shards=a b,c") == {
        "optimizer.lr": 1e-3,
        "buckets.growth.0": 17,
        "data.shards": ["a b", "c"],
    }
    # also where it is what the chain would have anyway: a stage may have another value
    assert given("compute.precision=bfloat16", "seed=0") == {
        "compute.precision": "bfloat16",
        "seed": 0,
    }
    tiny = load(Fit, ["recipe=tiny-vae", "compute.precision=bfloat16"])
    assert first(tiny).compute.precision == "bfloat16"
    assert stage("tiny-vae-image", {}).compute.precision == "float32"


@pytest.mark.parametrize(
    "key",
    [
        'data.shards=["a, b",c]',
        "data.captions=zh",
        "compute.compile=true",
        "objective.shift=3.5",
        "validate.prompts=一只猫",
        "objective.shift=null",
    ],
)
def test_a_key_reaches_a_stage_with_its_value(key):
    path = key.partition("=")[0]
    value = load(Fit, [key])
    for part in path.split("."):
        value = getattr(value, part)
    one = stage("480p", {path: value})
    for part in path.split("."):
        one = getattr(one, part)
    assert one == value
    assert load(Fit, [f"{path}={written(value)}"]) == load(Fit, [key])


def test_a_size_goes_to_the_stages_that_have_it():
    assert stage("480p", {"model": "14b"}).model == "14b"
    assert stage("vae-image", {"model": "14b"}).model == "full"
    assert stage("vae-image", {"model": "micro"}).model == "micro"


@QUIET
def test_a_chain_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    shrink(monkeypatch)
    shards, runs = rendered(tmp_path / "shards", count=8), tmp_path / "runs"
    assert train("tiny-vae", shards, runs) == 0
    first = {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    assert {path.parts[len(runs.parts)] for path in first} == {"tiny-vae-image", "tiny-vae-video"}
    (chain,) = (runs / "tiny-vae").iterdir()
    # as if the machine had stopped in the second stage
    (chain / "done.json").unlink()
    (runs / "tiny-vae-video" / chain.name / "done.json").unlink()
    assert train("tiny-vae", shards, runs) == 0
    assert "tiny-vae-image: done" in capsys.readouterr().out
    assert (chain / "done.json").is_file()
    image = {path for path in first if "tiny-vae-image" in path.parts}
    assert {path: path.stat().st_mtime_ns for path in image} == {p: first[p] for p in image}
