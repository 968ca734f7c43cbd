"""One command, several processes: it starts itself once more for each of them.

torchrun's own agent does the work, on one machine; on several, `torchrun --nnodes … training/fit.py
…` is started on each by hand, and nothing is left to do here. Only the first process writes to the
terminal. What another one has to say goes to a file, and is shown if it was the one that failed.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

PATIENCE = 600  # seconds that a process has to save its work once it is told to stop
SHOWN = 20  # lines


def launched() -> bool:
    """Whether this is one of several processes, started here or by torchrun."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(processes: int) -> int:
    """Runs this process's own command in so many; their exit status."""
    logging.disable(logging.CRITICAL)  # of the agent: the processes speak for themselves
    # PyTorch's DDP warns where the first batch left no weight idle; a later one may
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not torch.cuda.is_available():  # else each takes all cores, and they wait for one another
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    with tempfile.TemporaryDirectory(prefix="fit-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=str(os.getpid()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            shutdown_timeout=PATIENCE,
            logs_specs=DefaultLogsSpecs(
                log_dir=folder, redirects=dict.fromkeys(range(1, processes), Std.ALL)
            ),
        )
        try:
            elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if rank:
                print(last_words(Path(folder), rank), file=sys.stderr)
            return status(failure.exitcode)
        except SignalException as error:
            return 128 + error.sigval
    return 0


def last_words(folder: Path, rank: int) -> str:
    """What a process wrote to its standard error before it failed."""
    for path in folder.rglob(f"{rank}/stderr.log"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:]
        return "\n".join(f"[process {rank}] {line}" for line in lines)
    return f"[process {rank}] failed without a word"


def status(code: int) -> int:
    """As shells have it: 137 for a process that was killed."""
    return code if code >= 0 else 128 - code
