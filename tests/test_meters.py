"""What a step costs, by a clock that the test turns, and by closed forms."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler

from tests.test_board import curve, events, recipe
from tests.tiny_fit import TIERS, Steps, Toy, batch, fit
from training.board import Board
from training.meters import FETCH, Meters, Watch, memory


class Clock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds


class Slow(Toy):
    """A step takes 3 s, a validation 50 s."""

    clock: Clock

    def training_step(self, step, index):
        super().training_step(step, index)
        self.clock.turn(3.0)

    def on_validation_epoch_start(self):
        super().on_validation_epoch_start()
        self.clock.turn(50.0)


class Saver(Callback):
    """Saving takes 7 s after each step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.clock.turn(7.0)


@pytest.fixture
def timed(tmp_path, monkeypatch):
    """A run whose loader takes 1 s, steps 3 s, saving 7 s and validation 50 s."""
    clock = Clock()
    original = Steps.__iter__

    def slow(self):
        for step in original(self):
            clock.turn(1.0)
            yield step

    monkeypatch.setattr(Steps, "__iter__", slow)
    board = Board(tmp_path)
    tokens = batch(0).tokens
    meters = Meters(board, every=10, flops=lambda step: 2e12, peak=5e12, clock=clock)
    config = recipe()
    module = Slow(config)
    module.clock = clock
    fit(config, [board, meters, Saver(clock)], module=module)
    return events(tmp_path), tokens, meters


def test_throughput_and_mfu_are_those_of_the_steps_alone(timed):
    board, tokens, _ = timed
    expected = {
        "machine/step seconds": 4.0,
        "machine/data wait": 1 / 4,
        "machine/samples a second": 6 / 4,
        "machine/tokens a second": tokens / 4,
        "machine/TFLOP a second": 2 / 4,
        "machine/MFU": 2e12 / 4 / 5e12,
    }
    for tag, value in expected.items():
        assert curve(board, tag)[20] == pytest.approx(value), tag


def test_validation_and_saving_count_as_beside_and_never_as_waiting(timed):
    board, _, _ = timed
    beside = curve(board, "machine/beside")
    assert beside[20] == pytest.approx(7 / (7 + 4))
    assert beside[30] == pytest.approx((10 * 7 + 50) / (10 * 7 + 50 + 40))  # validated after 20
    assert curve(board, "machine/data wait")[30] == pytest.approx(1 / 4)


def test_without_a_peak_there_is_no_mfu_and_without_flops_neither(tmp_path):
    board = Board(tmp_path)
    fit(recipe(steps=10), [board, Meters(board)])
    assert not {"machine/MFU", "machine/TFLOP a second"} & set(events(tmp_path).Tags()["scalars"])


def test_a_point_is_the_mean_over_the_steps_since_the_last(tmp_path):
    seen = []

    class Noting(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            seen.append((module.last.loss, module.last.gradient, module.last.parts["l1"]))

    board = Board(tmp_path)
    fit(recipe(steps=25), [board, Meters(board, every=10), Noting()])
    losses, gradients, parts = (torch.tensor(one) for one in zip(*seen, strict=True))
    for tag, values in (
        ("loss/training", losses),
        ("optimizer/gradient norm", gradients),
        ("loss/l1", parts),
    ):
        expected = {10: values[:10].mean(), 20: values[10:20].mean(), 25: values[20:].mean()}
        assert curve(events(tmp_path), tag) == pytest.approx(
            {step: float(value) for step, value in expected.items()}
        )


def test_a_skipped_step_is_counted_and_leaves_the_loss_as_it_is(tmp_path):
    class Broken(Toy):
        def losses(self, batch, generator):
            found = super().losses(batch, generator)
            if batch.keys[0] == "clip-30":  # of step 5
                found.total = found.total * float("nan")
            return found

    board, other = Board(tmp_path / "broken"), Board(tmp_path / "sound")
    config = recipe(steps=10)
    config.optimizer.lr = 0.0
    fit(config, [board, Meters(board)], module=Broken(config))
    fit(config, [other, Meters(other)])
    broken, sound = events(board.run), events(other.run)
    assert curve(broken, "optimizer/skipped steps") == {10: 1.0}
    assert curve(sound, "optimizer/skipped steps") == {10: 0.0}
    assert curve(broken, "loss/training")[10] == pytest.approx(
        curve(sound, "loss/training")[10], rel=0.05
    )


def test_planted_tiers_and_deciles_come_out_in_the_curves(tmp_path):
    """The loss of a sample is (1 + w²) · (level of its tier + score / 10)."""
    board = Board(tmp_path)
    config = recipe()
    config.optimizer.lr = 0.0
    module = fit(config, [board, Meters(board)])
    scale = 1 + float(module.network(torch.ones(1, 1)).detach()) ** 2
    found = events(tmp_path)
    for tier, level in TIERS.items():
        assert curve(found, f"tier/{tier}")[20] == pytest.approx(scale * (level + 0.45), abs=0.02)
    mean = sum(TIERS.values()) / 3
    for decile in (1, 5, 10):
        loss = curve(found, f"score aesthetic/{decile:02d}")[20]
        assert loss == pytest.approx(scale * (mean + 0.1 * (decile - 1)), abs=0.02)


def test_ema_drift_is_what_the_ema_says(tmp_path):
    board = Board(tmp_path)
    module = fit(recipe(), [board, Meters(board)])
    drift = curve(events(tmp_path), "optimizer/EMA drift")[40]
    assert drift == pytest.approx(module.ema.drift(module.network), rel=1e-5)
    assert drift > 0


def test_another_profiler_is_told_everything_and_given_back():
    clock, inner = Clock(), SimpleProfiler()
    watch = Watch(inner, clock)
    with watch.profile(f"[_TrainingEpochLoop].{FETCH}"):
        clock.turn(2.0)
    with watch.profile("something else"):
        clock.turn(5.0)
    assert watch.waited == 2.0
    assert set(inner.recorded_durations) == {f"[_TrainingEpochLoop].{FETCH}", "something else"}


def test_lightning_still_names_the_wait_for_a_batch_so(tmp_path):
    board = Board(tmp_path)
    meters = Meters(board)
    config = recipe(steps=3)
    module = fit(config, [board, meters])
    assert isinstance(module.trainer.profiler, PassThroughProfiler)
    assert meters.watch.began is not None


def test_memory_is_what_the_process_holds():
    held = torch.ones(50 * 2**20)  # 200 MiB
    with_it = memory(held.device)["machine/memory GiB"]
    device = held.device
    del held
    assert with_it - memory(device)["machine/memory GiB"] == pytest.approx(0.2, abs=0.05)
