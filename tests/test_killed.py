"""Saving under fire: kill -9 at random moments, and several processes, one of which fails.

Processes are forked from one that has imported everything, which takes most of the time.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny_training
from tests.tiny_training import config, steps, train
from training.runs import open_run

pytestmark = [*tiny_training.QUIET, pytest.mark.slow]
ROOT = Path(__file__).parents[1]


def leftovers(run) -> list[str]:
    return [one.name for one in (run.folder / "checkpoints").iterdir() if one.name.startswith(".")]


KILLING = """
import os, sys, time
from pathlib import Path
import warnings
warnings.filterwarnings("ignore")
from tests import tiny_training
from training.runs import open_run

folder, total = Path(sys.argv[1]), int(sys.argv[2])

class Logged(tiny_training.Module):
    def training_step(self, batch, index):
        super().training_step(batch, index)
        step, number, loss = self.losses[-1]
        os.write(1, f"{step} {number} {loss.hex()}\\n".encode())

print("ready", flush=True)
for line in sys.stdin:  # each line starts a process that trains to the end, if it may
    child = os.fork()
    if not child:
        given = tiny_training.config(folder, "save.every=1")
        tiny_training.train(given, total, module=Logged(given))
        os.write(1, b"done\\n")
        os._exit(0)
    print("child", child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def test_killed_with_signal_9_at_random_moments_nothing_past_the_last_save_is_lost(tmp_path):
    total, dice = 120, random.Random(0)
    reference, _ = train(config(tmp_path / "whole", "save.every=0"), total)
    wanted = {one[0]: one for one in reference.losses}
    command = [sys.executable, "-c", KILLING, tmp_path / "killed", str(total)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    given, seen, kills = config(tmp_path / "killed"), 0, 0
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            finished = False
            while not finished:
                process.stdin.write("\n")
                process.stdin.flush()
                child = int(process.stdout.readline().split()[1])
                first, left = None, dice.randint(3, 20)
                for line in process.stdout:
                    if line == "gone\n":
                        break
                    if line == "done\n":
                        finished = True
                        continue
                    step, number, loss = line.split()
                    assert wanted[int(step)] == (int(step), int(number), float.fromhex(loss))
                    if first is None:
                        first = int(step)
                        assert first in (seen, seen + 1)  # what was saved, or the step under way
                    seen = int(step)
                    left -= 1
                    if not left:  # the step, its save, or the next
                        time.sleep(dice.uniform(0, 0.05))
                        os.kill(child, signal.SIGKILL)
                        kills += 1
        finally:
            process.kill()
    with open_run(given) as run:
        assert run.newest().step == total
        assert leftovers(run) == []
    assert kills >= 5


# --- several processes ----------------------------------------------------------------------------

RANKS = """
import errno, json, os, signal, socket, sys, traceback, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from tests import tiny_training
from training import snapshot
from training.checkpoints import Saver
from training.runs import open_run

folder, strategy, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]


class Module(tiny_training.Module):
    if strategy == "fsdp":
        def configure_model(self):
            for one in (self.network, self.ema.network):
                fully_shard(one, mesh=self.device_mesh["data_parallel"])


def full(path, *_):
    if str(path) == os.devnull:
        return written(path, *_)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


written = snapshot.write_file


def train(rank):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    config = tiny_training.config(folder, "optimizer.steps=10")
    module = Module(config)
    act = {
        "signal": lambda: rank == 1 and os.kill(os.getpid(), signal.SIGTERM),
        "full": lambda: setattr(snapshot, "write_file", full),
        "end": lambda: None,
    }[what]
    plan = (
        ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        if strategy == "fsdp"
        else DDPStrategy()
    )
    with open_run(config) as run:
        trainer = tiny_training.trainer_of(
            tiny_training.At(5, act), Saver(run), devices=2, strategy=plan
        )
        try:
            data, path = tiny_training.Data(10), run.resume_path()
            trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
            return "end"
        except SystemExit as error:
            return f"exit {error.code}"
        except snapshot.NotSaved as error:
            return "not saved"


children = []
for rank in range(2):
    children.append(os.fork())
    if not children[-1]:
        try:
            told = train(rank)
        except BaseException:
            told = traceback.format_exc()
        os.write(1, f"{told}\\n".encode())
        os._exit(0)
for child in children:
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_save_stop_fail_and_go_on_together(tmp_path, strategy):
    """A signal to one of them stops all; a full disk, which only the first meets, hangs none."""

    whole = train(config(tmp_path / "whole"), 10)[0]

    def run(what: str) -> list[str]:
        command = [sys.executable, "-c", RANKS, tmp_path, strategy, what]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
        )
        return done.stdout.splitlines()

    assert run("full") == ["not saved", "not saved"]
    with open_run(config(tmp_path)) as found:
        assert steps(found) == [3, 4]
    assert run("signal") == ["exit 143", "exit 143"]
    with open_run(config(tmp_path)) as found:
        assert found.newest().step == 5
    assert run("end") == ["end", "end"]
    with open_run(config(tmp_path)) as found:
        newest = found.newest()
    assert newest.step == 10
    for name, network in (("model", whole.network), ("ema", whole.ema.network)):
        tensors, wanted = load_file(newest.path / f"{name}.safetensors"), network.state_dict()
        assert tensors.keys() == wanted.keys()
        for key in wanted:
            torch.testing.assert_close(tensors[key], wanted[key], rtol=1e-6, atol=1e-6)
