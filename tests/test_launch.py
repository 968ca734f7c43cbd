"""One command, two processes: what is shown, exit statuses, signals; the real training so."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.rendered_shards import rendered

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from training.launch import launch, launched

if not launched():
    sys.exit(launch(2))
rank, what, folder = int(os.environ["RANK"]), sys.argv[1], Path(sys.argv[2])
print(what, "in process", rank, "of", os.environ["WORLD_SIZE"], flush=True)

def saves(*_):
    time.sleep(1)
    (folder / f"saved by {rank}").touch()
    os._exit(143)

if what == "waits":
    signal.signal(signal.SIGTERM, saves)
    (folder / f"ready {rank}").touch()
    time.sleep(600)
if what == "fails" and rank == 1:
    print("no such disk", file=sys.stderr)
    sys.exit(2)
if what == "fails":
    time.sleep(600)
"""


def start(folder: Path, *command: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return lambda what: start(tmp_path, tmp_path / "script.py", what, tmp_path)


def test_every_process_runs_the_command_and_the_first_one_speaks(script):
    out, err = script("works").communicate(timeout=300)
    assert (out, err) == ("works in process 0 of 2\n", "")


def test_what_another_process_failed_of_is_shown_and_is_the_exit_status(script):
    process = script("fails")
    _, err = process.communicate(timeout=300)
    assert err == "[process 1] no such disk\n"
    assert process.returncode == 2


def test_a_signal_lets_every_process_save_and_is_the_exit_status(script, tmp_path):
    process = script("waits")
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("ready *"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "")
    assert len(list(tmp_path.glob("saved by *"))) == 2


# --- the real training ---------------------------------------------------------------------------

KEYS = ["optimizer.steps=3", "optimizer.warmup=0", "optimizer.eps=1e-4", "optimizer.kind=adamw"]
KEYS += ["buckets.batches=2", "buckets.tokens=96", "data.weights=1", "data.workers=1"]
KEYS += ["validate.every=2", "validate.clips=2", "validate.timesteps=2", "save.every=1"]
KEYS += ["compute.precision=float32"]  # in bfloat16 sharded weights are rounded elsewhere
KEYS += ["validate.sample_every=3", "validate.samples=1", "validate.steps=2", "starts_from=null"]
TWO = ["compute.devices=2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return rendered(tmp_path_factory.mktemp("shards"), count=10)


@pytest.fixture(scope="module")
def fit(shards, tmp_path_factory):
    """Runs the real command; its exit status, and what it said."""
    runs = tmp_path_factory.mktemp("runs")

    def run(*keys: str) -> tuple[int, str, str]:
        given = [f"data.shards={shards}", f"runs={runs}", *KEYS, *keys]
        process = start(runs, "training/fit.py", *given)
        out, err = process.communicate(timeout=1200)
        return process.returncode, out, err

    run.runs = runs
    return run


def weights(run: Path, step: int) -> dict:
    return load_file(run / "checkpoints" / f"step={step:08d}" / "model.safetensors")


def apart(one: Path, other: Path, step: int) -> float:
    a, b = weights(one, step), weights(other, step)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def forget(run: Path, step: int) -> None:
    """As if it had been killed before a step was saved."""
    (run / "done.json").unlink()
    shutil.rmtree(run / "checkpoints" / f"step={step:08d}")


def test_a_run_of_two_processes_is_gone_on_with_by_one_and_learns_the_same(fit):
    status, out, err = fit("recipe=tiny-vae-video", "name=two", *TWO)
    assert status == 0, err
    assert out.count("Trained") == 1  # not said by each of them
    assert fit("recipe=tiny-vae-video", "name=one")[0] == 0
    vaes = fit.runs / "tiny-vae-video"
    assert apart(vaes / "one", vaes / "two", 3) < 1e-5

    dit = ["recipe=tiny", f"vae={vaes / 'one'}", "compute.strategy=auto"]
    shared = ["compute.strategy=fsdp", "compute.context=2"]
    assert fit(*dit, "name=one")[0] == 0
    status, _, err = fit(*dit, "name=two", *TWO, *shared)
    assert status == 0, err
    dits = fit.runs / "tiny"
    assert apart(dits / "one", dits / "two", 3) < 1e-5
    assert len(list(dits.glob("two/samples/step=*/*.mp4"))) == 1
    forget(dits / "two", 3)
    status, _, err = fit(*dit, "name=two")
    assert status == 0, err
    assert apart(dits / "one", dits / "two", 3) < 1e-5
    forget(dits / "one", 3)
    status, _, err = fit(*dit, "name=one", *TWO, *shared)
    assert status == 0, err
    assert apart(dits / "one", dits / "two", 3) < 1e-5
    lines = [(dits / name / "validation.jsonl").read_text().splitlines() for name in ("one", "two")]
    for mine, theirs in zip(*([json.loads(line) for line in some] for some in lines), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_a_chain_runs_in_two_processes(fit):
    status, out, err = fit("recipe=tiny-vae", "name=chain", "optimizer.steps=1", *TWO)
    assert status == 0, err
    assert out.count("Trained") == 2


def test_a_mistake_is_one_line_and_status_2_also_of_two_processes(fit):
    status, _, err = fit("recipe=tiny-vae-image", "buckets.batches=3", *TWO)
    assert status == 2
    assert err.count("\n") == 1
    assert "wants a multiple of the 2 processes" in err
