"""Runs: which one a command goes on with, which it refuses, and what is found again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from model.layout import best, weights
from recipes.load import UsageError, load
from recipes.training import Fit
from tests.tiny_training import Line, Module, recipes
from tests.tiny_training import config as tiny
from training.differences import differences
from training.environment import PACKAGES
from training.lock import Lock
from training.runs import label, newest, open_run, stages

ROOT = Path(__file__).parents[1]


def checkpoint(folder: Path, step: int, **meta) -> Path:
    place = folder / "checkpoints" / f"step={step:08d}"
    place.mkdir(parents=True)
    (place / "meta.json").write_text(json.dumps({"class": "WanDiT", "step": step} | meta))
    return place


def begun(folder: Path, *arguments: str) -> Path:
    with open_run(tiny(folder, *arguments)) as run:
        return run.folder


def finished(folder: Path, *arguments: str) -> Path:
    with open_run(tiny(folder, *arguments)) as run:
        checkpoint(run.folder, 10)
        run.finish(Module(run.config))
    return run.folder


def refused(folder: Path, *arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        open_run(tiny(folder, *arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_newest_unfinished_run_is_gone_on_with_and_a_finished_one_never(tmp_path):
    first = begun(tmp_path)
    assert first.parent == tmp_path / "tiny"
    assert begun(tmp_path) == first
    second = begun(tmp_path, "resume=never")
    assert second != first
    assert begun(tmp_path) == second
    assert finished(tmp_path) == second
    assert begun(tmp_path) == first
    assert finished(tmp_path) == first
    assert begun(tmp_path) not in (first, second)


def test_a_name_is_that_run_finished_or_not(tmp_path):
    folder = begun(tmp_path, "name=mine")
    assert folder == tmp_path / "tiny/mine"
    assert begun(tmp_path, "name=mine") == folder
    assert "is there already; give another name=" in refused(tmp_path, "name=mine", "resume=never")
    finished(tmp_path, "name=mine")
    with open_run(tiny(tmp_path, "name=mine")) as run:
        assert run.done
    assert "finished, with another" in refused(tmp_path, "name=mine", "seed=1")
    for name in ("../mine", ".mine", "a/b"):
        assert "a plain name" in refused(tmp_path, f"name={name}")


def test_another_configuration_is_refused_by_the_key_that_differs(tmp_path):
    folder = begun(tmp_path, "optimizer.lr=1e-4", "buckets.growth.0=17")
    checkpoint(folder, 10)
    given = ("optimizer.lr=2e-4", "buckets.growth.0=17", "model=14b", "data.shards=a")
    told = refused(tmp_path, *given)
    assert told.startswith(f"{folder}: unfinished, with another configuration: model=1.3b there, ")
    assert "14b now; " in told
    assert "optimizer.lr=0.0001 there, 0.0002 now" in told
    assert 'data.shards=[] there, ["a"] now' in told
    assert told.endswith("give the same, or resume=never for a new run")
    assert 'buckets.growth={"0": 17} there, {} now' in refused(tmp_path)
    assert begun(tmp_path, *given, "resume=never") != folder


def test_what_does_not_change_what_is_learned_may_differ_and_is_kept_as_of_the_last_start(tmp_path):
    folder = begun(tmp_path)
    checkpoint(folder, 10)
    more = ("compute.precision=float32", "save.every=7", "validate.samples=3", "data.workers=9")
    assert begun(tmp_path, *more, "optimizer.steps=5") == folder
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert (kept["save"]["every"], kept["data"]["workers"], kept["optimizer"]["steps"]) == (7, 9, 5)


def test_the_number_of_steps_may_change_only_where_no_step_depends_on_it():
    def told(**optimizer) -> dict:
        return {"optimizer": {"decay": 0.0, **optimizer}}

    assert differences(told(steps=5), told(steps=9)) == []
    found = differences(told(steps=5, decay=0.1), told(steps=9, decay=0.1))
    assert found == ["optimizer.steps=5 there, 9 now"]


def test_what_is_measured_may_not_change_for_it_lowers_the_rate_and_names_the_best():
    for name in ("every", "clips", "timesteps"):
        found = differences({"validate": {name: 4}}, {"validate": {name: 5}})
        assert found == [f"validate.{name}=4 there, 5 now"]


def test_a_run_that_its_guard_stops_may_go_on_with_another_guard():
    assert differences({}, {"optimizer": {"spike": 0.0, "give_up": 100}}) == []


def test_a_run_in_which_nothing_was_saved_blocks_no_other_configuration(tmp_path):
    folder = begun(tmp_path, "vae=wrong.pth")
    left = ["vae/model.safetensors", ".text_encoder.7.partial/model.safetensors", "events.1"]
    for name in left:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    right = tiny(tmp_path, "vae=right.pth", f"name={folder.name}")
    with open_run(tiny(tmp_path, "vae=wrong.pth")) as other:
        assert "trained by another process" in refused(tmp_path, "vae=right.pth")
        assert other.folder == folder
    with open_run(right) as run:
        assert run.folder == folder
        assert not [name for name in left if (folder / name).exists()]
        assert yaml.safe_load((folder / "config.yaml").read_text())["vae"] == "right.pth"
        assert (folder / "checkpoints").is_dir()
    # nor a part that was mended in its place: the same configuration takes it anew
    (folder / "vae").mkdir()
    assert begun(tmp_path, "vae=right.pth") == folder
    assert not (folder / "vae").exists()
    checkpoint(folder, 10)
    (folder / "vae").mkdir()
    assert "unfinished, with another configuration" in refused(tmp_path, "vae=wrong.pth")
    assert (folder / "vae").is_dir()


@pytest.mark.parametrize("name", ["validation.jsonl", "export/model.safetensors", "checkpoints"])
def test_a_run_that_has_trained_is_not_emptied_where_its_checkpoints_are_out_of_sight(
    tmp_path, name
):
    folder = begun(tmp_path)
    if name == "checkpoints":  # on a disk that is not there now
        (folder / name).rmdir()
        (tmp_path / "elsewhere").mkdir()
        (folder / name).symlink_to(tmp_path / "elsewhere")
    else:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "samples").mkdir()
    line = refused(tmp_path)
    assert f"without a checkpoint, but there is {name.split('/')[0]}; move it away" in line
    assert (folder / "samples").is_dir()
    assert (folder / name).exists()


def test_an_old_run_that_cant_be_read_is_passed_over(tmp_path):
    old, new = begun(tmp_path, "name=old"), begun(tmp_path, "name=new")
    checkpoint(new, 10)
    (old / "config.yaml").write_text("recipe: [")
    with open_run(tiny(tmp_path)) as run:
        assert run.folder == new


def test_a_start_that_was_refused_stands_before_no_run_that_can_be_gone_on_with(tmp_path):
    first = begun(tmp_path)
    checkpoint(first, 10)
    again = begun(tmp_path, "resume=never")
    refuses = begun(tmp_path, "resume=never", "seed=7")
    assert begun(tmp_path) == again  # begun later than the first, and as this one
    assert begun(tmp_path, "seed=7") == refuses
    assert finished(tmp_path) == again
    assert begun(tmp_path) == first


@pytest.mark.parametrize("at", ["to_yaml", "environment"])
def test_a_start_killed_before_it_was_a_run_blocks_none_of_its_name(tmp_path, monkeypatch, at):
    from training import runs

    def killed(*_) -> None:
        (tmp_path / "tiny/mine/.config.yaml.part").touch()
        raise KeyboardInterrupt

    config = tiny(tmp_path, "name=mine")
    with monkeypatch.context() as patch:
        patch.setattr(runs, at, killed)
        with pytest.raises(KeyboardInterrupt):
            open_run(config)
    (tmp_path / "tiny/mine/.lock").unlink()  # the kernel drops it with the process
    assert begun(tmp_path, "name=mine", "seed=3") == tmp_path / "tiny/mine"


def test_a_chain_counts_as_saved_once_one_of_its_stages_is(tmp_path):
    chain = ("recipe=curriculum", "name=c1", "trains=chain", "chain=tiny-vae,tiny")
    folder = begun(tmp_path, *chain)
    stage = begun(tmp_path, "recipe=tiny-vae", "name=c1")
    assert begun(tmp_path, *chain, "seed=1") == folder
    checkpoint(stage, 10)
    assert "seed=1 there, 2 now" in refused(tmp_path, *chain, "seed=2")


def test_a_run_older_than_a_key_counts_as_begun_with_its_default():
    assert differences({}, {"seed": 0}) == []
    assert differences({}, {"seed": 1}) == ["seed=0 there, 1 now"]


def test_the_kept_configuration_is_read_as_a_recipe_again(tmp_path):
    given = tiny(tmp_path, "optimizer.lr=3e-6", "objective.masks.first=0.5")
    with open_run(given) as run:
        again = load(Fit, [f"recipe={run.folder / 'config.yaml'}"], folder=recipes(tmp_path))
    again.recipe = given.recipe
    assert again == given


# --- two processes ------------------------------------------------------------------------------


def test_two_processes_in_one_run_are_refused_until_the_first_is_gone(tmp_path):
    first = open_run(tiny(tmp_path))
    told = refused(tmp_path)
    assert f"{first.folder}: trained by another process (process {os.getpid()} on " in told
    assert "resume=never" in told
    with open_run(tiny(tmp_path, "resume=never")) as other:
        assert other.folder != first.folder
        assert "trained by another process" in refused(tmp_path, f"name={first.folder.name}")
    first.close()
    assert begun(tmp_path, f"name={first.folder.name}") == first.folder


HOLDING = """
import os, sys, time
from pathlib import Path
from training.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.take()
if sys.argv[2] == "alone" or not os.fork():
    # a child says so itself: only then has it let go of the lock
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["alone", "forked"])
def test_the_lock_of_a_killed_process_is_taken_over_also_while_its_loaders_live(tmp_path, how):
    command = [sys.executable, "-c", HOLDING, tmp_path / ".lock", how]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        try:
            with pytest.raises(UsageError, match=f"process {process.pid}"):
                Lock(tmp_path / ".lock").take()
            process.kill()
            process.wait()
            lock = Lock(tmp_path / ".lock")
            lock.take()
            lock.release()
        finally:
            process.kill()
            if how == "forked":
                os.kill(child, signal.SIGKILL)


def test_a_place_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    assert "can't be written" in refused(tmp_path, f"runs={tmp_path / 'file'}")
    (tmp_path / "tiny/mine").mkdir(parents=True)
    (tmp_path / "tiny/mine/holiday.jpg").touch()
    assert "no run, but not empty (holiday.jpg)" in refused(tmp_path, "name=mine")
    assert "save.keep=0" in refused(tmp_path, "save.keep=0")


# --- checkpoints --------------------------------------------------------------------------------


def test_half_written_checkpoints_are_never_picked_and_cleared_away(tmp_path):
    folder = begun(tmp_path)
    checkpoint(folder, 100, validation=0.5)
    checkpoint(folder, 300)
    place = folder / "checkpoints"
    checkpoint(folder, 900).rename(place / ".new-step=00000900")  # all but its name
    checkpoint(folder, 800).rename(place / ".gone-step=00000800")  # being removed
    checkpoint(folder, 300 + 1).rename(place / ".old-step=00000301")  # being replaced
    (place / "step=00000700").mkdir()  # copied by hand, and not all of it
    with open_run(tiny(tmp_path)) as run:
        assert [one.step for one in run.checkpoints()] == [100, 300, 301]
        assert run.resume_path() == place / "step=00000301/trainer.ckpt"
        assert run.best() == place / "step=00000100"
        assert not [one for one in place.iterdir() if one.name.startswith(".")]


def test_a_new_run_has_nothing_to_resume_from(tmp_path):
    with open_run(tiny(tmp_path)) as run:
        assert run.resume_path() is None
        assert run.best() is None
        assert not run.done


def test_every_start_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training/fit.py", "recipe=tiny", "name=a b"])
    folder = begun(tmp_path)
    begun(tmp_path)
    starts = json.loads((folder / "environment.json").read_text())["starts"]
    assert len(starts) == 2
    assert starts[0]["time"] < starts[1]["time"]
    assert starts[0]["command"] == "python training/fit.py recipe=tiny 'name=a b'"
    assert starts[0]["versions"].keys() == {"python", *PACKAGES}
    assert starts[0]["versions"]["lightning"].startswith("2.")
    commit = starts[0]["commit"]
    if (Path(__file__).parents[1] / ".git").exists():
        assert set(commit.rstrip("+")) <= set("0123456789abcdef")
    else:
        assert commit is None


def test_a_validated_checkpoint_keeps_its_own_statistics_and_others_get_those_of_the_end(tmp_path):
    with open_run(tiny(tmp_path)) as run:
        for step, score in ((10, 0.1), (15, None), (20, 0.2)):
            place = checkpoint(run.folder, step, validation=score)
            config = {"class": "WanDiT", "latent_mean": [float(step)]}
            (place / "config.json").write_text(json.dumps(config))
        module = Module(run.config, Line())
        module.network.config = {"latent_mean": [20.0]}
        run.finish(module)
    configs = [json.loads((one.path / "config.json").read_text()) for one in run.checkpoints()]
    assert [one["latent_mean"] for one in configs] == [[10.0], [20.0], [20.0]]
    done = json.loads((run.folder / "done.json").read_text())
    assert (done["step"], done["best"]) == (20, "step=00000010")


@pytest.mark.parametrize(("gan", "handed"), [("0", 10), ("0.05", 20)])
def test_a_vae_with_an_adversary_hands_on_its_last_checkpoint(tmp_path, gan, handed):
    keys = ("trains=vae", "model=micro", f"loss.gan={gan}")
    with open_run(tiny(tmp_path, *keys)) as run:
        for step in (10, 20):  # the validation loss leaves the adversary out, and rises with it
            checkpoint(run.folder, step, validation=step, **{"class": "WanVAE"})
        run.finish(Module(run.config, Line()))
    assert run.best().name == best(run.folder).name == f"step={handed:08d}"
    assert weights(run.folder, "vae").parent.name == f"step={handed:08d}"


# --- finding ------------------------------------------------------------------------------------


def test_the_newest_finished_run_of_a_recipe_is_found_or_the_command_that_makes_it(tmp_path):
    with pytest.raises(UsageError, match=r"make one: python training/fit\.py recipe=tiny$"):
        newest(tmp_path, "tiny")
    first = finished(tmp_path, "name=z")
    assert newest(tmp_path, "tiny") == first
    second = finished(tmp_path, "name=a")
    begun(tmp_path)
    assert newest(tmp_path, "tiny") == newest(str(tmp_path), "my/tiny.yaml") == second
    assert newest(tmp_path, "tiny", "z") == first
    assert newest(tmp_path, "tiny", "y") == second


def test_a_chain_knows_which_of_its_stages_are_finished(tmp_path):
    chain = ("recipe=curriculum", "name=c1", "trains=chain", "chain=tiny-vae,tiny")
    with open_run(tiny(tmp_path, *chain)) as run:
        assert [(one.recipe, one.done) for one in stages(run)] == [
            ("tiny-vae", False),
            ("tiny", False),
        ]
        finished(tmp_path, "recipe=tiny-vae", "name=c0")  # of another chain
        assert not any(one.done for one in stages(run))
        folder = finished(tmp_path, "recipe=tiny-vae", "name=c1")
        assert stages(run)[0].folder == folder
        assert [one.done for one in stages(run)] == [True, False]


def test_a_recipe_given_as_a_path_has_the_folder_of_its_name():
    assert label("my/own.yaml") == "own"
    assert label("480p") == "480p"
    assert label(None) == "custom"


def test_the_other_processes_of_a_training_are_told_the_run_and_hold_no_lock(tmp_path, monkeypatch):
    from training import runs

    with open_run(tiny(tmp_path)) as first:
        monkeypatch.setattr(runs.rank_zero_only, "rank", 1)
        other = open_run(tiny(tmp_path))
        assert other.folder == first.folder
        other.finish(Module(other.config))
        assert not first.done
        monkeypatch.delenv("WAN_RECIPES_RUN")
        with pytest.raises(UsageError, match=r"start torch\.distributed before"):
            open_run(tiny(tmp_path))
