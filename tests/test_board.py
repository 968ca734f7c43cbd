"""TensorBoard and validation.jsonl hold what they promise, each step once."""

import io
import json
import re

import numpy as np
import pytest
from lightning.pytorch import Callback
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from recipes.training import Fit
from tests.tiny_fit import fit
from training.board import Board
from training.charts import PARTS
from training.meters import Meters


class Saving(Callback):
    """Saves at one step and dies at another."""

    def __init__(self, path, save: int, die: int) -> None:
        self.path, self.save, self.die = path, save, die

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if module.step == self.save:
            trainer.save_checkpoint(self.path)
        if module.step == self.die:
            raise RuntimeError("killed")


def recipe(steps: int = 40, every: int = 20) -> Fit:
    config = Fit(recipe="toy", expect="a loss of 0")
    config.optimizer.steps, config.optimizer.lr, config.optimizer.warmup = steps, 1e-2, 2
    config.validate.every = every
    return config


def events(folder) -> EventAccumulator:
    found = EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def curve(board: EventAccumulator, tag: str) -> dict[int, float]:
    points = board.Scalars(tag)
    assert len({one.step for one in points}) == len(points), f"{tag}: a step stands twice"
    return {one.step: one.value for one in points}


def charts(board: EventAccumulator) -> Layout:
    config = board.Tensors("custom_scalars__config__")[-1]
    return Layout.FromString(config.tensor_proto.string_val[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    board = Board(folder)
    module = fit(recipe(), [board, Meters(board, every=10)])
    return folder, events(folder), module


def test_the_promised_curves_are_there(run):
    _, board, module = run
    tags = set(board.Tags()["scalars"])
    assert tags >= {
        "loss/training",
        "loss/l1",
        "held-out/loss",
        "held-out/psnr",
        "held-out by timestep/0050",
        "held-out by timestep 64x64x9/0950",
        "held-out by bucket/64x64x1",
        "optimizer/learning rate",
        "optimizer/gradient norm",
        "optimizer/skipped steps",
        "data/broken",
        "optimizer/EMA drift",
        "machine/step seconds",
        "machine/data wait",
        "machine/samples a second",
        "machine/tokens a second",
        "machine/memory GiB",
        "tier/static",
        "score aesthetic/01",
        "score aesthetic/10",
    }
    assert list(curve(board, "loss/training")) == [10, 20, 30, 40]
    assert list(curve(board, "held-out/loss")) == [20, 40]
    assert curve(board, "held-out/loss")[40] == pytest.approx(module.validation["loss"])
    assert curve(board, "optimizer/learning rate")[40] == pytest.approx(1e-2)


def test_every_chart_has_a_curve_and_every_curve_of_note_a_chart(run):
    _, board, _ = run
    tags = board.Tags()["scalars"]
    patterns = [
        pattern
        for category in charts(board).category
        for chart in category.chart
        for pattern in chart.multiline.tag
    ]
    for pattern in patterns:
        assert any(re.match(pattern, tag) for tag in tags), pattern
    left = [tag for tag in tags if not any(re.match(pattern, tag) for pattern in patterns)]
    assert left == []


def test_what_the_loss_is_made_of_has_a_chart_a_part(run):
    _, board, _ = run
    parts = next(one for one in charts(board).category if one.title == PARTS)
    assert [chart.title for chart in parts.chart] == ["l1"]


def test_the_configuration_can_be_read_and_compared(run):
    _, board, _ = run
    text = board.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "warmup: 2" in text
    assert "_hparams_/session_start_info" in board.summary_metadata


def test_each_validation_is_a_line_with_all_its_numbers(run):
    folder, _, module = run
    lines = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40]
    assert lines[-1] == {"step": 40} | module.validation


@pytest.mark.parametrize("save", [15, 20, 30])
def test_a_run_killed_and_resumed_tells_what_an_uninterrupted_one_tells(run, tmp_path, save):
    folder, whole, _ = run
    checkpoint = tmp_path / "last.ckpt"
    for resume, end in ((None, 35), (checkpoint, None)):
        board = Board(tmp_path)
        saving = Saving(checkpoint, save if end else -1, end)
        callbacks = [board, Meters(board, every=10), saving]
        if end:
            with pytest.raises(RuntimeError, match="killed"):
                fit(recipe(), callbacks)
        else:
            fit(recipe(), callbacks, resume)
    resumed = events(tmp_path)
    tags = [tag for tag in whole.Tags()["scalars"] if not tag.startswith("machine/")]
    for tag in tags:
        assert curve(resumed, tag) == curve(whole, tag), tag
    written = (tmp_path / "validation.jsonl").read_text()
    assert written == (folder / "validation.jsonl").read_text()
    assert charts(resumed) == charts(whole)


def test_a_number_that_is_none_leaves_a_gap(tmp_path):
    board = Board(tmp_path)
    board.open(0, recipe())
    for step, value in enumerate([1.0, float("nan"), float("inf"), 2.0]):
        board.scalars({"loss/training": value}, step)
    board.close()
    assert curve(events(tmp_path), "loss/training") == {0: 1.0, 3: 2.0}


def test_a_video_is_an_animation_that_shows_its_frames_in_order(tmp_path):
    shades = np.arange(9, dtype=np.uint8) * 28
    video = np.broadcast_to(shades[:, None, None, None], (9, 32, 48, 3))
    board = Board(tmp_path)
    board.open(0, recipe())
    board.movie("samples/1", np.ascontiguousarray(video), 16.0, step=7)
    board.close()
    (image,) = events(tmp_path).Images("samples/1")
    assert (image.step, image.width, image.height) == (7, 48, 32)
    shown = Image.open(io.BytesIO(image.encoded_image_string))
    assert (shown.format, shown.n_frames, shown.info["loop"]) == ("GIF", 9, 0)
    for number, shade in enumerate(shades):
        shown.seek(number)
        assert np.abs(np.asarray(shown.convert("RGB")).astype(int) - shade).max() <= 2
