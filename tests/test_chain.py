"""Keys that are given for a chain, and how they reach its stages."""

import pytest
import torch

from model.checkpoint import load_vae
from recipes.load import UsageError, elements, load
from recipes.training import Fit
from tests.rendered_shards import rendered
from tests.small_fit import QUIET, shrink, train
from training import parts
from training.chain import asked_of, first, flat, given_to, recipe_of, stage, written


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


def test_a_chain_within_a_chain_is_its_stages_and_none_holds_itself(tmp_path):
    chain = load(Fit, ["trains=chain", "chain=tiny-vae,tiny", "starts_from=there.pth", "seed=3"])
    asked = asked_of(chain)
    assert [*asked] == ["tiny-vae-image", "tiny-vae-video", "tiny"]
    assert {one.seed for one in asked.values()} == {3}
    # the later ones start from those before
    starts = ["there.pth", "tiny-vae-image", None]
    assert [one.starts_from for one in asked.values()] == starts
    assert first(chain) == asked["tiny-vae-image"]
    assert recipe_of("curriculum") == "sft"
    assert recipe_of("Wan-AI/Wan2.1") is recipe_of("runs/tiny/a") is None
    for name, other in (("one", "two"), ("two", "one")):
        (tmp_path / f"{name}.yaml").write_text(f"trains: chain\nchain: [{tmp_path}/{other}.yaml]")
    for wrong, says in ((f"{tmp_path}/one.yaml", "part of itself"), ("", "wants recipes")):
        with pytest.raises(UsageError, match=says):
            flat(elements(wrong))


def test_all_stages_are_planned_before_the_first_begins(tmp_path, capsys):
    """What only the last of them can't do, here sharing a sequence, is told at once."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("trains: chain\nchain: [tiny, tiny-vae]\n")
    shards, runs = rendered(tmp_path / "shards", count=4), tmp_path / "runs"
    given = {"compute__context": 2, "vae": "none/here"}
    assert train(str(mine), shards, runs, plan="true", **given) == 2
    out, err = capsys.readouterr()
    # the others are planned all the same
    assert out.count("Plan: tiny-vae-") == 2
    assert err.count("\n") == 1
    assert ": tiny: compute.context=2: does not divide the 1 processes there are" in err
    mine.write_text("trains: chain\nchain: [tiny-vae, tiny]\n")
    assert train(str(mine), shards, runs, **given) == 2
    out, err = capsys.readouterr()
    assert ": tiny: compute.context=2: does not divide" in err
    assert not [*runs.glob("tiny-vae*")]


@QUIET
def test_a_chain_takes_what_it_starts_from_from_its_own_runs(tmp_path, monkeypatch):
    shrink(monkeypatch)
    mine = tmp_path / "mine.yaml"
    mine.write_text("trains: chain\nchain: [tiny-vae, tiny]\n")
    shards, runs = rendered(tmp_path / "shards", count=8), tmp_path / "runs"
    # somebody trains a VAE while the chain is at its last stage
    started = parts.parts_of

    def meanwhile(*given):
        monkeypatch.setattr(parts, "parts_of", started)
        other = train("tiny-vae-image", shards, runs, name="theirs", seed=5)
        assert other or train("tiny-vae-video", shards, runs, name="theirs", seed=5) == 0
        return started(*given)

    monkeypatch.setattr(parts, "parts_of", meanwhile)
    assert train(str(mine), shards, runs, name="own") == 0
    stored = load_vae(runs / "tiny/own/vae").state_dict()
    for name, same in (("own", True), ("theirs", False)):
        made = load_vae(runs / "tiny-vae-video" / name).state_dict()
        assert all(torch.equal(made[key], stored[key]) for key in stored) == same


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
