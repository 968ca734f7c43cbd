"""The command: a run from shards to a sample, killed and resumed, and what it refuses."""

import json
import re
from pathlib import Path

import pytest

from model.bundle import load_bundle
from model.checkpoint import save
from model.dit import WanDiT
from model.layout import best
from model.presets import PRESETS, VAES
from model.sampler import Settings, sample
from model.vae import WanVAE
from tests.drawn import draw
from tests.rendered_shards import rendered
from tests.small_fit import QUIET, shrink, train
from training.module import Trained

pytestmark = QUIET


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return rendered(tmp_path_factory.mktemp("shards"), count=10)


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    shrink(monkeypatch)


def contents(run: Path) -> dict[str, bytes]:
    """What a training has learned: its last weights and every validation."""
    names = ("model.safetensors", "ema.safetensors", "config.json")
    found = {name: (run / "checkpoints" / "step=00000006" / name).read_bytes() for name in names}
    return found | {"validation": (run / "validation.jsonl").read_bytes()}


@pytest.mark.parametrize("recipe", ["tiny-vae-video", "tiny"])
def test_a_run_that_died_goes_on_bit_for_bit(recipe, shards, tmp_path, monkeypatch):
    vae = tmp_path / "runs"
    if recipe == "tiny":
        assert train("tiny-vae-image", shards, vae, name="vae", buckets__frames=1) == 0
        assert train("tiny-vae-video", shards, vae, name="vae") == 0
    keys = {"optimizer__steps": 6, "save__every": 2, "validate__every": 3, "starts_from": "null"}
    keys |= {"vae": vae / "tiny-vae-video" / "vae"} if recipe == "tiny" else {}

    def run(name: str) -> int:
        return train(recipe, shards, tmp_path / "runs", name=name, **keys)

    assert run("whole") == 0
    took = Trained.training_step

    def dies(self, step, index):
        if step.number == 5:
            raise RuntimeError("the machine is gone")
        took(self, step, index)

    monkeypatch.setattr(Trained, "training_step", dies)
    assert run("broken") == 1
    monkeypatch.setattr(Trained, "training_step", took)
    assert run("broken") == 0
    home = tmp_path / "runs" / recipe
    assert contents(home / "broken") == contents(home / "whole")


def test_from_shards_to_a_sampled_video(shards, tmp_path, capsys):
    runs = tmp_path / "runs"
    assert train("tiny-vae", shards, runs, name="a") == 0
    assert train("tiny", shards, runs, name="b", validate__shift=2) == 0
    run = runs / "tiny" / "b"
    bundle = load_bundle(str(run))
    known = bundle.defaults
    assert (known.width, known.height, known.frames, known.fps) == (64, 64, 9, 16)
    assert (known.shift, known.negative) == (2, "")
    latents = sample(bundle, ["a red circle"], [0], Settings.of(bundle.card, steps=2))
    assert latents.shape == (1, 16, 3, 8, 8)
    # the run keeps the VAE that it was trained with, and the statistics of its latents
    vae = best(runs / "tiny-vae-video" / "a")
    assert bundle.vae.config == {
        key: value
        for key, value in json.loads((vae / "config.json").read_text("utf-8")).items()
        if key != "class"
    }
    assert bundle.vae.config["latent_std"] != [1.0] * 16
    assert (run / "vae" / "model.safetensors").is_file()
    assert (run / "text_encoder" / "config.json").is_file()


def test_a_finished_run_does_nothing(shards, tmp_path, capsys):
    assert train("tiny-vae-image", shards, tmp_path, name="once") == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert train("tiny-vae-image", shards, tmp_path, name="once") == 0
    assert "done already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before


def test_plan_writes_nothing(shards, tmp_path, capsys):
    assert train("tiny-vae-image", shards, tmp_path / "runs", plan="true") == 0
    assert "memory" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("recipe", "keys", "says"),
    [
        ("tiny", {}, "vae=tiny-vae: no finished run .*fit.py recipe=tiny-vae`"),
        ("tiny", {"vae": "null"}, "vae=: a DiT is trained with one"),
        ("tiny", {"vae": "no/such.pth"}, "no/such.pth"),
        ("tiny-vae-video", {}, "starts_from=tiny-vae-image: no finished run"),
        ("tiny-vae-image", {"data__shards": "no/such/folder"}, "no/such/folder"),
        ("tiny-vae-image", {"buckets__frames": "7"}, "7"),
        ("tiny-vae-image", {"model": "1.3b"}, "model=1.3b: no size of a vae; it comes as full, "),
        ("480p", {"model": "small", "plan": "true"}, "model=small: no size of a dit"),
        ("tiny-vae-image", {"compute__device": "cuda"}, "GPU"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(recipe, keys, says, shards, tmp_path, capsys):
    assert train(recipe, shards, tmp_path / "runs", **keys) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(says, err), err


def test_a_start_that_was_refused_is_no_obstacle_to_the_right_one(shards, tmp_path, capsys):
    runs = tmp_path / "runs"
    for vae in (draw(WanDiT(**PRESETS["tiny"])), draw(WanVAE(width=4, blocks=1))):
        save(vae, tmp_path / type(vae).__name__)
    assert train("tiny", shards, runs, vae=tmp_path / "WanDiT") == 2
    assert "no weights of a VAE there" in capsys.readouterr().err
    assert train("tiny", shards, runs, vae=tmp_path / "WanVAE") == 0
    (run,) = (runs / "tiny").iterdir()
    assert (run / "done.json").is_file()


def test_weights_of_another_size_are_refused(shards, tmp_path, monkeypatch, capsys):
    assert train("tiny-vae-image", shards, tmp_path) == 0
    monkeypatch.setitem(VAES, "micro", {"width": 6, "blocks": 1})
    assert train("tiny-vae-video", shards, tmp_path) == 2
    assert "its width is 4, model=micro has 6" in capsys.readouterr().err
