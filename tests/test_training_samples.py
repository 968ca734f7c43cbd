"""Samples during training are those that the sampler gives from the EMA weights."""

import io
import json
import os
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from torch.utils.data import DataLoader

from model.byte_encoder import ByteEncoder
from model.defaults import Defaults
from model.sampler import decode, sample
from recipes.load import UsageError
from recipes.training import Buckets, Fit
from tests.test_board import events
from tests.tiny_fit import ToyData, batch, fit
from tests.tiny_wan import ours
from training.batch import Bucket
from training.board import Board
from training.checkpoints import Saver
from training.dit_module import DiTModule
from training.meters import Meters
from training.module import Losses, Trained
from training.movie import GAP, frames
from training.parts import Parts
from training.runs import open_run
from training.samples import Samples, Stopping, longest, plain

HOW = Defaults(64, 64, 9, fps=16, steps=50, guidance=5.0, shift=3.0, negative="", solver="euler")
PROMPTS = ["a red circle, moving left", "一个红色的圆/向左移动"]


def recipe(trains: str = "dit", steps: int = 3, every: int = 3) -> Fit:
    config = Fit(recipe="toy", trains=trains)
    config.optimizer.steps, config.optimizer.lr = steps, 1e-3
    config.validate.every, config.validate.sample_every = every, every
    config.validate.samples, config.validate.steps, config.validate.timesteps = 2, 2, 1
    config.objective.masks = {"first": 1.0, "continuation": 0.0, "both": 0.0, "random": 0.0}
    return config


class Dit(DiTModule):
    """One step takes no network pass: only samples are of interest."""

    def losses(self, batch, generator):
        loss = sum(one.square().sum() for one in self.network.parameters())
        return Losses(loss.expand(len(batch)) / 1e6)

    def measure(self, batch, index):
        return {"loss": torch.zeros(len(batch))}


class Vae(Trained):
    kind = "vae"
    losses, measure = Dit.losses, Dit.measure


@pytest.fixture(scope="module")
def parts():
    return Parts(ours("wan"), ByteEncoder(width=24), None, {})


def dit(config: Fit, parts: Parts, variant: str = "t2v", **more) -> Dit:
    small = {"width": 128, "num_heads": 1, "num_layers": 1}
    network = ours(variant, **small, **more).requires_grad_(True).train()
    return Dit(network, config, parts.vae, parts.text, parts.image)


def shown(folder, tag) -> list[np.ndarray]:
    found = []
    for event in events(folder).Images(tag):
        image = Image.open(io.BytesIO(event.encoded_image_string))
        assert image.n_frames == 9
        found.append(np.asarray(image.convert("RGB")).astype(float))
    return found


def played(path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([one.to_ndarray(format="rgb24") for one in file.decode(video=0)])


def test_a_dit_samples_the_prompts_given_from_its_ema_weights(tmp_path, parts):
    config = recipe()
    config.validate.prompts = PROMPTS
    board = Board(tmp_path)
    samples = Samples(board, tmp_path / "samples", parts, HOW)
    module = fit(config, [board, samples], module=dit(config, parts))
    folder = tmp_path / "samples" / "step=00000003"
    told = json.loads((folder / "samples.json").read_text("utf-8"))
    files = ["1-a-red-circle-moving-left.mp4", "2-一个红色的圆-向左移动.mp4"]
    assert [one["file"] for one in told["samples"]] == files
    assert [one["prompt"] for one in told["samples"]] == PROMPTS
    assert [one["seed"] for one in told["samples"]] == [0, 1]

    settings = samples.settings(module, Bucket(64, 64, 9))
    assert (settings.steps, settings.shift, settings.guidance) == (2, 3.0, 5.0)
    assert settings.solver == told["samples"][0]["solver"] == "euler"
    bundle = samples.bundle(module)
    assert bundle.dit is module.ema.network
    latents = sample(bundle, [PROMPTS[1]], [1], settings)
    expected = frames(torch.cat(list(decode(bundle, latents)), dim=2)[0])
    video, other = (played(folder / file).astype(float) for file in (files[1], files[0]))
    assert video.shape == (9, 64, 64, 3)
    # noise, whose colours are halved in H.264
    assert np.abs(video - expected).mean() < 16 < 24 < np.abs(other - expected).mean()
    images = events(tmp_path).Tags()["images"]
    assert images == ["samples/1 a red circle, moving left", "samples/2 一个红色的圆 向左移动"]
    assert np.abs(shown(tmp_path, images[1])[0] - expected[0]).mean() < 12


def test_without_prompts_it_takes_the_captions_of_the_largest_held_out_clips(tmp_path, parts):
    config = recipe()
    board = Board(tmp_path)
    fit(config, [board, Samples(board, tmp_path / "s", parts, HOW)], module=dit(config, parts))
    told = json.loads((tmp_path / "s" / "step=00000003" / "samples.json").read_text())
    assert [one["prompt"] for one in told["samples"]] == ["prompt 6000", "prompt 6001"]


def test_samples_come_when_due_and_at_the_end_the_same_question_each_time(tmp_path, parts):
    config = recipe(steps=5, every=2)
    config.validate.every, config.validate.samples = 4, 1
    config.optimizer.lr = 0.0
    board = Board(tmp_path)
    fit(config, [board, Samples(board, tmp_path / "s", parts, HOW)], module=dit(config, parts))
    folders = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert folders == ["step=00000002", "step=00000004", "step=00000005"]  # none twice
    first, second, third = shown(tmp_path, "samples/1 prompt 6000")
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)


def test_sampling_changes_nothing_of_what_is_learned(tmp_path, parts):
    weights = []
    for every in (0, 1):
        config = recipe(steps=3, every=3)
        config.validate.sample_every = every
        board = Board(tmp_path / str(every))
        callbacks = [board, Samples(board, tmp_path / f"s{every}", parts, HOW)]
        module = fit(config, callbacks, module=dit(config, parts))
        assert module.network.training
        weights.append([one.clone() for one in module.network.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_an_image_to_video_model_starts_from_frames_of_held_out_clips(tmp_path, parts, monkeypatch):
    given = []
    monkeypatch.setattr(
        "training.samples.sample",
        lambda bundle, prompts, seeds, settings, inputs, callback: (
            given.append((settings.task, inputs)) or torch.zeros(1, 16, 3, 8, 8)
        ),
    )

    class Bright(ToyData):
        def val_dataloader(self):
            clips = batch(0)
            clips.video = torch.full_like(clips.video, 255)
            clips.video[1, :, 0] = 0
            return DataLoader([clips], batch_size=None)

    monkeypatch.setattr("tests.tiny_fit.ToyData", Bright)
    config = recipe()
    board = Board(tmp_path)
    module = dit(config, parts, in_channels=36)
    fit(config, [board, Samples(board, tmp_path / "s", parts, HOW)], module=module)
    assert [task for task, _ in given] == ["image-to-video"] * 2
    assert [float(inputs.image.mean()) for _, inputs in given] == [1.0, -1.0]
    assert given[0][1].image.shape == (1, 3, 64, 64)


def test_a_vae_shows_held_out_clips_and_what_it_makes_of_them(tmp_path):
    config = recipe(trains="vae")
    board = Board(tmp_path)
    module = Vae(ours("wan").requires_grad_(True), config)
    fit(config, [board, Samples(board, tmp_path / "s")], module=module)
    path = tmp_path / "s" / "step=00000003" / "1.mp4"
    video = played(path)
    assert video.shape == (9, 64, 128 + GAP, 3)
    assert video[:, :, :60].max() < 10  # the clip is black
    black = -torch.ones(1, 3, 9, 64, 64)
    vae = module.ema.network
    with torch.no_grad():
        expected = frames(vae.decode(vae.encode(black).mean)[0])
    assert np.abs(video[:, :, 64 + GAP :].astype(float) - expected).mean() < 12
    assert events(tmp_path).Tags()["images"] == [
        "left: clip, right: reconstruction/1",
        "left: clip, right: reconstruction/2",
    ]


def test_where_there_are_fewer_held_out_clips_than_asked_for_none_comes_twice(tmp_path, parts):
    config = recipe(steps=4, every=2)
    config.validate.samples = 9  # of 6 that are held out
    board = Board(tmp_path)
    samples = Samples(board, tmp_path / "s", parts, HOW)
    samples.show = lambda *_: None
    fit(config, [board, samples], module=dit(config, parts))
    assert [clip.prompt for clip in samples.clips] == [f"prompt {6000 + one}" for one in range(6)]


def test_settings_that_no_sampler_takes_are_told_before_the_first_step(tmp_path, parts):
    config = recipe()
    config.validate.guidance = 0.5
    board = Board(tmp_path)
    callbacks = [board, Samples(board, tmp_path / "s", parts, HOW)]
    with pytest.raises(UsageError, match=r"validate: guidance=0\.5"):
        fit(config, callbacks, module=dit(config, parts))


def test_a_resumed_run_samples_what_an_uninterrupted_one_would(tmp_path, parts):
    class Save(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if module.step == 3:
                trainer.save_checkpoint(tmp_path / "3.ckpt")

    config = recipe(steps=4, every=2)
    config.validate.every, config.validate.samples = 3, 1
    for number, resume in enumerate((None, tmp_path / "3.ckpt")):
        board = Board(tmp_path / str(number))
        callbacks = [board, Meters(board), Samples(board, board.run / "s", parts, HOW)]
        fit(config, [*callbacks, Save()], resume, module=dit(config, parts))
    whole, resumed = (tmp_path / str(one) / "s" / "step=00000004" for one in (0, 1))
    assert sorted(one.name for one in whole.iterdir()) == ["1-prompt-6000.mp4", "samples.json"]
    for file in whole.iterdir():
        assert (resumed / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize(
    ("kind", "sends", "last"),
    [("dit", 1, 2), ("dit", 3, 2), ("dit", 4, 3), ("vae", 2, 2), ("vae", 2, 3)],
)
def test_a_signal_ends_the_samples_saves_and_the_run_that_goes_on_makes_the_others(
    tmp_path, parts, monkeypatch, kind, validated, sends, last
):
    """Sent when it asks for the n-th time: before each video and, of a DiT's, after each step."""
    config = recipe(trains=kind, steps=last, every=2)
    config.validate.every, config.validate.samples = 2 if validated else 3, 2
    config.runs, config.save.every = str(tmp_path / "runs"), 0
    asks, go_on = [], Samples.go_on

    def counting(self, module, *step):
        asks.append(step)
        if len(asks) == sends:
            os.kill(os.getpid(), signal.SIGTERM)
        go_on(self, module)

    def train(name: str, runs: Path) -> Path:
        given = replace(config, runs=str(runs), name=name)
        module = (
            Vae(ours("wan").requires_grad_(True), given) if kind == "vae" else dit(given, parts)
        )
        with open_run(given) as run:
            board = Board(run.folder)
            how = (None, None) if kind == "vae" else (parts, HOW)
            samples = Samples(board, run.folder / "s", *how, asked=lambda: saver.signal)
            saver = Saver(run, left=samples.left)
            fit(given, [board, Meters(board), samples, saver], run.resume_path(), module=module)
        return run.folder

    whole = train("whole", tmp_path / "whole")
    monkeypatch.setattr(Samples, "go_on", counting)
    with pytest.raises(SystemExit) as caught:
        train("cut", tmp_path / "cut")
    assert caught.value.code == 143
    assert len(asks) == sends  # nothing more is sampled
    with open_run(replace(config, runs=str(tmp_path / "cut"), name="cut")) as found:
        assert found.newest().step == 2
    cut = train("cut", tmp_path / "cut")
    assert {path.relative_to(whole) for path in whole.glob("s/*/*")} == {
        path.relative_to(cut) for path in cut.glob("s/*/*")
    }
    for path in whole.glob("s/*/*"):
        assert path.read_bytes() == (cut / path.relative_to(whole)).read_bytes()
    for tag in events(whole).Tags()["images"]:
        steps = [[one.step for one in events(run).Images(tag)] for run in (whole, cut)]
        assert steps[0] == steps[1], tag


def test_a_signal_to_another_rank_ends_the_samples_of_this_one(tmp_path, monkeypatch):
    samples = Samples(Board(tmp_path), tmp_path)
    samples.go_on(None)
    monkeypatch.setattr("training.samples.agreed", lambda module, mine: [max(mine, 15.0)])
    with pytest.raises(Stopping):
        samples.go_on(None)


@pytest.mark.parametrize("prompts", [PROMPTS, []])
def test_prompts_that_are_fixed_want_no_held_out_clip(tmp_path, parts, monkeypatch, prompts):
    class NothingHeldOut(ToyData):
        def val_dataloader(self):
            return DataLoader([], batch_size=None)

    monkeypatch.setattr("tests.tiny_fit.ToyData", NothingHeldOut)
    config = recipe(steps=1, every=1)
    config.validate.prompts = prompts
    config.buckets.sizes, config.buckets.frames = ["64x64", "32x32"], [1, 9, 17]
    config.buckets.growth = {"0": 9, "5": 17}
    board = Board(tmp_path)
    callbacks = [board, Samples(board, tmp_path / "s", parts, HOW)]
    with warnings.catch_warnings():  # Lightning's, of a loader without a batch
        warnings.filterwarnings("ignore", message="Total length of")
        fit(config, callbacks, module=dit(config, parts))
    made = sorted((tmp_path / "s").glob("*/*.mp4"))
    assert len(made) == len(prompts)
    assert {played(path).shape for path in made} <= {(9, 64, 64, 3)}


def test_clips_are_no_longer_than_training_has_come_to():
    config = Buckets(growth={"0": 17, "1000": 49, "20000": 81})
    assert [longest(config, step) for step in (0, 999, 1000, 30000)] == [17, 17, 49, 81]
    assert longest(Buckets(frames=[1, 33]), 5) == 33


def test_a_prompt_makes_a_plain_file_name():
    assert plain("../../etc/passwd: a *star*?") == "etc-passwd-a-star"
    assert plain("???") == "sample"
    assert len(plain("长" * 500).encode()) < 255
