"""Saving: what is resumed is what was never interrupted, and a checkpoint is whole or not there."""

import errno
import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from recipes.load import main
from recipes.training import Fit
from tests import tiny_training
from tests.tiny_training import At, Data, Module, Steps, config, same, steps, train
from training import snapshot
from training.runs import open_run
from training.snapshot import NotSaved

pytestmark = tiny_training.QUIET


def send(number: int):
    """A signal to ourselves, as `kill` sends it."""
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Module:
    """Ten steps without an interruption; validated at 3, 6 and 9."""
    return train(config(tmp_path_factory.mktemp("whole")), 10)[0]


def leftovers(run) -> list[str]:
    return [one.name for one in (run.folder / "checkpoints").iterdir() if one.name.startswith(".")]


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_a_resumed_run_is_one_that_was_never_interrupted(tmp_path, whole, stop):
    first, _ = train(config(tmp_path), stop)
    again, run = train(config(tmp_path), 10)
    assert [one[0] for one in again.losses] == list(range(stop + 1, 11))
    assert first.losses + again.losses == whole.losses
    assert same(again, whole)
    assert len(list(run.folder.parent.iterdir())) == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(("step", "validating"), [(5, False), (6, False), (6, True)])
def test_a_signal_saves_and_nothing_is_lost(
    tmp_path, whole, capfd, number, status, step, validating
):
    """Also at a step that is to be validated, and amid its validation, which is made up for."""
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as caught:
        train(config(tmp_path), 10, At(step, send(number), validating))
    assert caught.value.code == status
    assert handlers == [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    told = capfd.readouterr().err
    assert f"checkpoints/step={step:08d}\nto go on: python " in told
    assert ("Ctrl-C again" in told) == (number == signal.SIGINT)
    again, _ = train(config(tmp_path), 10)
    assert again.losses == whole.losses[step:]
    assert again.validated == [one for one in whole.validated if one >= step]
    assert same(again, whole)


def test_what_to_type_goes_on_where_the_command_began_anew(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training/fit.py", "recipe=tiny", "resume=never", "seed=1"])
    with pytest.raises(SystemExit):
        train(config(tmp_path, "resume=never"), 10, At(2, send(signal.SIGTERM)))
    assert "to go on: python training/fit.py recipe=tiny seed=1\n" in capfd.readouterr().err


def test_a_second_interrupt_stops_at_once(tmp_path):
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with pytest.raises(SystemExit) as caught:
        train(config(tmp_path), 10, At(6, twice))
    assert caught.value.code == 130
    assert steps(open_run(config(tmp_path))) == [3, 4]


@pytest.mark.parametrize("stop", [4, 10])
def test_a_signal_amid_what_the_last_start_left_is_ours_and_saves(tmp_path, whole, stop):
    """Also where no step is left to take."""
    train(config(tmp_path), stop)
    with pytest.raises(SystemExit) as caught:
        train(config(tmp_path), 10, left=lambda *_: send(signal.SIGTERM)())
    assert caught.value.code == 143
    assert steps(open_run(config(tmp_path)))[-1] == stop
    done = []
    again, _ = train(config(tmp_path), 10, left=lambda *_: done.append(1))
    assert done == [1]
    assert again.losses == whole.losses[stop:]
    assert same(again, whole)


def test_a_signal_while_callbacks_begin_ends_the_first_step(tmp_path):
    """Before the saver's turn, where Lightning catches it."""

    class Early(Callback):
        def on_train_start(self, *_) -> None:
            send(signal.SIGTERM)()

    with pytest.raises(SystemExit) as caught:
        train(config(tmp_path), 10, Early())
    assert caught.value.code == 143
    assert steps(open_run(config(tmp_path))) == [1]


def test_an_interrupt_before_the_first_step_has_the_status_of_one(tmp_path):
    class Slow(Data):
        def train_dataloader(self):
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        train(config(tmp_path), 10, data=Slow(10))
    assert caught.value.code == 130
    assert signal.getsignal(signal.SIGINT) == handler


def test_a_signal_that_also_ends_the_loaders_processes_saves_all_the_same(tmp_path, whole):
    fatal = [7]

    class Dying(Steps):
        def __iter__(self):
            for numbers in super().__iter__():
                if numbers.number in fatal:
                    fatal.clear()
                    send(signal.SIGTERM)()
                    raise RuntimeError("DataLoader worker exited unexpectedly")
                yield numbers

    class Loader(Data):
        def train_dataloader(self):
            return Dying(self.next, self.total)

    with pytest.raises(SystemExit) as caught:
        train(config(tmp_path), 10, data=Loader(10))
    assert caught.value.code == 143
    again, _ = train(config(tmp_path), 10, data=Loader(10))
    assert again.losses == whole.losses[7:]
    assert same(again, whole)


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    class Worse(Module):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            self.validation = {"loss": float(abs(self.step - 6))}  # best at 6

    _, run = train(config(tmp_path, "save.every=1"), 12, module=Worse(config(tmp_path)))
    assert steps(run) == [6, 11, 12]
    assert run.best().name == "step=00000006"
    assert run.resume_path().parent.name == "step=00000012"


def test_a_checkpoint_has_the_score_of_its_own_step_and_a_better_one_is_saved(tmp_path):
    class Scores(Module):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            self.validation = {"loss": {3: 2.0, 6: float("nan"), 9: 1.0, 12: 5.0}[self.step]}

    given = config(tmp_path, "save.every=5", "save.keep=9")
    _, run = train(given, 13, module=Scores(given))
    found = {one.step: one.validation for one in run.checkpoints()}
    assert found == {3: 2.0, 5: None, 9: 1.0, 10: None, 13: None}


def test_minutes_count_from_the_last_save(tmp_path):
    seconds = iter(range(0, 100_000, 20))
    given = config(tmp_path, "save.every=0", "save.minutes=1", "save.keep=9")
    _, run = train(given, 8, module=Quiet(given), clock=lambda: next(seconds))
    # the clock is read once a step, and once more at a save
    assert steps(run) == [3, 6, 8]


class Quiet(Module):
    """Never validated as better."""

    def on_validation_epoch_end(self) -> None:
        self.validation = {}


# --- what is written ------------------------------------------------------------------------------


def test_the_files_hold_the_network_its_average_and_what_is_resumed(tmp_path):
    module, run = train(
        config(tmp_path), 5, parts={"vae": "vae"}, trained_on={"width": 64, "fps": 8.0}
    )
    folder = run.newest().path
    model, ema = (load_file(folder / f"{name}.safetensors") for name in ("model", "ema"))
    for found, network in ((model, module.network), (ema, module.ema.network)):
        wanted = network.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not torch.equal(model["a"], ema["a"])
    assert json.loads((folder / "config.json").read_text()) == {"class": "WanDiT", "sizes": [1]}
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["class"], meta["step"], meta["validation"]) == ("WanDiT", 5, None)
    assert (meta["parts"], meta["trained_on"]) == ({"vae": "vae"}, {"width": 64, "fps": 8.0})
    kept = torch.load(folder / "trainer.ckpt", weights_only=True)
    assert kept["Data"] == {"next": 5}
    assert kept["trained"]["step"] == 5


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Planted:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    _, run = train(config(tmp_path), 5)
    torch.save({"state_dict": Planted()}, run.resume_path())
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        train(config(tmp_path), 10)
    assert not (tmp_path / "ran").exists()


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_ends_in_one_line_and_the_previous_checkpoint_stays(
    tmp_path, whole, monkeypatch, capsys
):
    def full(path: Path, *_) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def start() -> None:
        monkeypatch.setattr(snapshot, "write_file", full)

    given = config(tmp_path)
    assert main(Fit, lambda _: train(given, 10, At(5, start)), []) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "step=00000006 could not be written (No space left on device); the last" in line
    assert "step=00000004; make room, then: python " in line
    monkeypatch.undo()
    with open_run(given) as run:
        assert steps(run) == [3, 4]
        assert leftovers(run) == []
    again, _ = train(given, 10)
    assert same(again, whole)


def test_a_file_that_the_system_really_refuses_is_told_as_that(tmp_path):
    """PyTorch's own writer reports `unexpected pos` instead of the disk's error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(most: int = 1500) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))

    try:
        with pytest.raises(NotSaved, match=r"could not be written \(File too large\)"):
            train(config(tmp_path), 10, At(5, limit))
    finally:
        limit(soft)
    run = open_run(config(tmp_path))
    assert steps(run) == [3, 4]
    assert leftovers(run) == []
    torch.load(run.resume_path(), weights_only=True)


# --- killed ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing of ours catches it, as nothing survives kill -9."""


@pytest.mark.parametrize("at", range(6))
def test_killed_at_any_step_of_a_save_no_half_checkpoint_is_picked(
    tmp_path, whole, monkeypatch, at
):
    """Steps of a save: the resumable file, two of weights, the disk, the rename, the thinning."""
    places = [(snapshot.Files, "save_checkpoint"), (snapshot, "write_file"), (snapshot, "as_json")]
    places += [(snapshot, "synced"), (snapshot, "take_place"), (snapshot, "remove")]
    owner, name = places[at]
    done = getattr(owner, name)

    def killed(*arguments, **more):
        if name in ("as_json", "take_place"):
            done(*arguments, **more)  # between this and the next
        raise Killed

    def start() -> None:
        monkeypatch.setattr(owner, name, killed)
        monkeypatch.setattr(snapshot.shutil, "rmtree", lambda *_, **__: None)

    with pytest.raises(Killed):
        train(config(tmp_path), 10, At(8, start))
    monkeypatch.undo()
    with open_run(config(tmp_path)) as run:
        assert leftovers(run) == []
        assert run.newest().step == (6 if at < 4 else 8)
        for one in run.checkpoints():
            assert torch.load(one.path / "trainer.ckpt", weights_only=True)["trained"]["step"]
            assert load_file(one.weights).keys() == {"a", "b"}
    again, _ = train(config(tmp_path), 10)
    assert same(again, whole)
