"""A run as a checkpoint: of a DiT as of a VAE, in every place that takes weights."""

import json
from pathlib import Path

import pytest

from model import layout as layouts
from model.bundle import card, fingerprints
from model.byte_encoder import ByteEncoder, save_byte_encoder
from model.checkpoint import load_dit, load_vae, save
from model.layout import checkpoints, find, weights
from model.tensors import CheckpointError
from tests import tiny_wan


def checkpoint(run: Path, step: int, variant: str, validation: float | None = None) -> Path:
    """Of a network whose averaged weights were drawn from seed `step`."""
    module = tiny_wan.ours(variant, seed=step)
    folder = save(module, run / "checkpoints" / f"step={step:08d}")
    (folder / "model.safetensors").rename(folder / "ema.safetensors")
    save(tiny_wan.ours(variant, seed=step + 1), folder / "raw")
    (folder / "raw/model.safetensors").rename(folder / "model.safetensors")
    meta = {"class": type(module).__name__, "step": step, "validation": validation}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run that trained a VAE, best at step 10, and one that trained a DiT with another VAE."""
    place = tmp_path_factory.mktemp("runs")
    for step, score in ((10, 0.1), (20, 0.2)):
        checkpoint(place / "vae", step, "wan", score)
    checkpoint(place / "dit", 30, "t2v")
    save(tiny_wan.ours("wan", seed=40), place / "dit/vae")
    save_byte_encoder(ByteEncoder(width=24), place / "dit/text_encoder")
    return {"vae": place / "vae", "dit": place / "dit"}


def is_drawn(module, variant: str, seed: int) -> bool:
    wanted = tiny_wan.ours(variant, seed=seed).state_dict()
    return tiny_wan.same_tensors(module.state_dict(), wanted)


def test_a_run_that_trained_a_vae_means_its_best_averaged_weights(runs):
    best = runs["vae"] / "checkpoints/step=00000010"
    assert weights(runs["vae"]) == weights(runs["vae"], "vae") == best / "ema.safetensors"
    assert weights(best.with_name("step=00000020"), "vae").parent.name == "step=00000020"
    assert is_drawn(load_vae(runs["vae"]), "wan", 10)
    assert is_drawn(load_vae(best.with_name("step=00000020")), "wan", 20)


def test_a_run_that_trained_a_dit_is_opened_as_one_and_its_vae_as_a_vae(runs):
    assert weights(runs["dit"]).parent.name == "step=00000030"
    assert is_drawn(load_dit(runs["dit"]), "t2v", 30)
    assert is_drawn(load_vae(runs["dit"]), "wan", 40)
    assert weights(runs["dit"], "vae") == runs["dit"] / "vae"
    with pytest.raises(CheckpointError, match="weights of a WanVAE; a WanDiT is wanted"):
        load_dit(runs["vae"])


def test_a_run_that_trained_a_vae_stands_in_for_a_checkpoints_own(runs):
    layout = find(str(runs["dit"]), vae=str(runs["vae"]))
    assert layout.vae == weights(runs["vae"])
    assert card(layout).compression == (4, 8, 8)
    assert len(fingerprints(layout)["vae"]["sha256"]) == 64
    assert find(str(runs["dit"])).vae == runs["dit"] / "vae"


def test_an_encoder_of_a_run_is_the_one_it_was_trained_with(runs, tmp_path):
    assert weights(runs["dit"], "text") == runs["dit"] / "text_encoder"
    assert weights(runs["dit"], "image") == runs["dit"] / "image_encoder"
    layout = find(str(runs["dit"]), text_encoder=str(runs["dit"]))
    assert layout.text == runs["dit"] / "text_encoder"
    with pytest.raises(CheckpointError, match="weights of a WanVAE; a WanDiT is wanted"):
        weights(runs["vae"], "text")
    # another path than the run's own, or a name on the hub
    place = tmp_path / "checkpoints/step=00000001"
    place.mkdir(parents=True)
    named = {"text_encoder": "someone/umt5", "image_encoder": str(tmp_path)}
    (place / "meta.json").write_text(json.dumps({"class": "WanDiT", "parts": named}))
    assert weights(tmp_path, "text") == "someone/umt5"
    assert find(str(runs["dit"]), text_encoder=str(tmp_path)).text == "someone/umt5"
    assert weights(tmp_path, "image") == tmp_path


def test_of_a_finished_run_the_checkpoint_is_the_one_that_it_names(tmp_path):
    for step, score in ((10, 0.1), (20, 0.2)):
        place = tmp_path / f"checkpoints/step={step:08d}"
        place.mkdir(parents=True)
        meta = {"class": "WanVAE", "step": step, "validation": score}
        (place / "meta.json").write_text(json.dumps(meta))
    for named, step in ((None, 10), ("step=00000020", 20), ("step=00000099", 10)):
        (tmp_path / "done.json").write_text(json.dumps({"best": named}))
        assert layouts.best(tmp_path).name == f"step={step:08d}"


def test_whole_checkpoints_come_in_the_order_of_their_steps(runs, tmp_path):
    found = checkpoints(runs["vae"])
    assert [(one.step, one.validation) for one in found] == [(10, 0.1), (20, 0.2)]
    assert layouts.best(runs["vae"]) == found[0].path
    (tmp_path / "checkpoints/step=00000001").mkdir(parents=True)
    assert checkpoints(tmp_path) == []
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        weights(tmp_path)


def test_any_other_path_is_its_own_answer(tmp_path):
    assert weights(tmp_path) == tmp_path
    assert weights(tmp_path / "nothing.pth", "vae") == tmp_path / "nothing.pth"
