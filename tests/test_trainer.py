"""A real run's wiring: what the command leaves in TensorBoard, what it refuses and leaves out."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from safetensors.torch import save_file

from model.presets import VAES
from model.vae import WanVAE
from tests.drawn import draw
from tests.rendered_shards import rendered
from tests.small_fit import QUIET, shrink, train
from tests.test_board import charts, curve, events
from training import machine
from training.samples import Samples

pytestmark = QUIET


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return rendered(tmp_path_factory.mktemp("shards"), count=6)


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    shrink(monkeypatch)


@pytest.fixture
def vae(small, tmp_path) -> Path:
    """A folder of weights."""
    network = draw(WanVAE(**VAES["micro"]))
    folder = tmp_path / "vae"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"class": "WanVAE", **network.config}))
    return folder


def test_a_run_shows_all_that_it_promises(shards, vae, tmp_path, capsys):
    keys = {"vae": vae, "optimizer__steps": 4, "validate__every": 2}
    assert train("tiny", shards, tmp_path / "runs", name="a", **keys) == 0
    run = tmp_path / "runs" / "tiny" / "a"
    board = events(run)
    tags = board.Tags()["scalars"]
    every = ["loss/training", "optimizer/learning rate", "optimizer/gradient norm", "data/broken"]
    every += [f"machine/{one}" for one in ("step seconds", "data wait", "samples a second")]
    every += [f"machine/{one}" for one in ("TFLOP a second", "MFU", "memory GiB")]
    validated = ["held-out/loss", "optimizer/EMA drift", "tier/optimal"]
    validated += [f"held-out by timestep/{one}" for one in ("0250", "0750")]
    validated += [f"held-out by timestep 64x64x9/{one}" for one in ("0250", "0750")]
    for names, steps in ((every, [4]), (validated, [2, 4])):
        for name in names:
            assert [*curve(board, name)] == steps, name
    assert curve(board, "machine/MFU")[4] > 0
    assert 0 <= curve(board, "machine/data wait")[4] <= 1
    patterns = [
        pattern
        for category in charts(board).category
        for chart in category.chart
        for pattern in chart.multiline.tag
    ]
    assert {one for one in tags if not any(re.match(each, one) for each in patterns)} == set()
    told = capsys.readouterr()
    where = f"tensorboard --logdir {run}"
    assert f"curves: {where}, then http://localhost:6006/#custom_scalars" in told.err
    assert where in told.out


def test_a_run_that_is_never_validated_is_trained_saved_and_sampled(shards, vae, tmp_path):
    """Its samples show the captions of held-out clips, which no validation has brought."""
    keys = {"vae": vae, "optimizer__steps": 4, "validate__every": 0, "validate__sample_every": 2}
    keys |= {"validate__steps": 1, "validate__samples": 1}
    assert train("tiny", shards, tmp_path / "runs", name="a", **keys) == 0
    run = tmp_path / "runs" / "tiny" / "a"
    assert json.loads((run / "done.json").read_text())["step"] == 4
    assert not (run / "validation.jsonl").exists()
    assert "held-out/loss" not in events(run).Tags()["scalars"]
    made = sorted(path.parent.name for path in run.glob("samples/*/1-*.mp4"))
    assert made == ["step=00000002", "step=00000004"]


def test_a_signal_amid_the_samples_saves_before_they_are_finished(
    shards, vae, tmp_path, monkeypatch, capsys
):
    asks, go_on = [], Samples.go_on

    def asked(self, module, *step):
        asks.append(step)
        os.kill(os.getpid(), signal.SIGTERM)
        go_on(self, module)

    monkeypatch.setattr(Samples, "go_on", asked)
    keys = {"vae": vae, "optimizer__steps": 3, "save__every": 0, "validate__sample_every": 2}
    with pytest.raises(SystemExit) as caught:
        train("tiny", shards, tmp_path / "runs", name="a", **keys)
    assert (caught.value.code, len(asks)) == (143, 1)
    assert "checkpoints/step=00000002\nto go on: " in capsys.readouterr().err
    assert not [*(tmp_path / "runs").glob("tiny/a/samples/*/*")]


def test_a_vae_that_is_never_validated_has_its_latents_described(shards, tmp_path):
    assert train("tiny-vae-image", shards, tmp_path, name="a", validate__every=0) == 0
    folder = tmp_path / "tiny-vae-image" / "a" / "checkpoints" / "step=00000002"
    assert json.loads((folder / "config.json").read_text())["latent_std"] != [1.0] * 16


@pytest.mark.parametrize("plan", ["false", "true"])
def test_what_can_not_fit_is_refused_before_anything_is_written(
    plan, shards, vae, tmp_path, monkeypatch, capsys
):
    """With plan=true its table is shown too: that is what was asked for."""
    monkeypatch.setattr(machine, "memory", lambda: 2**28)
    assert train("tiny", shards, tmp_path / "runs", vae=vae, plan=plan) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert re.search(r"tiny: takes .* and this machine has 0\.2 GiB", told.err)
    assert ("does not fit" in told.out) == (plan == "true")
    assert not (tmp_path / "runs").exists()
