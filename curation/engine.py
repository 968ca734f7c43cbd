"""Runs a step's function over many jobs: `engine=local`, a supervised process pool.

A step is a plain picklable generator function, `function(job)`. What it yields comes back as it
appears, and is a sign of life: a worker that stays silent for `timeout_s` (a decoder that hangs)
is killed, one that dies (a decoder that crashes) is noticed; either costs its job an error and is
replaced. With `--debug` an unforeseen exception prints its traceback. Ray Data's `flat_map` takes
the same functions.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from recipes.load import UsageError

THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
START_S = 60.0  # a worker may be silent so long before its first job: it imports, from a cold disk
SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit locks of DuckDB and ONNX


@dataclass(frozen=True)
class Event:
    """Something that happened to a job: a value, its error, or its end (neither)."""

    job: Any
    value: Any = None
    error: str | None = None
    done: bool = False
    mistake: bool = False  # the user's (weights that are missing, say): it ends the run


READY = "ready"  # what a worker says before its first event


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    patience_s: float  # how long it may be silent
    job: Any = None
    busy: bool = False
    heard: float = 0.0

    @property
    def deadline(self) -> float:
        return self.heard + self.patience_s


def run(
    function: Callable[[Any], Iterator[Any]],
    jobs: Iterable[Any],
    *,
    workers: int = 0,
    timeout_s: float = 120.0,
    setup: Callable[[], None] | None = None,
) -> Iterator[Event]:
    """Runs `function` over the jobs and yields what happens, in the order in which it happens.

    Args:
        function: importable generator function of one job; its values must pickle.
        workers: processes; 0 means one a core.
        timeout_s: longest silence of a working worker (one that starts has a minute at least).
        setup: called once in each new worker.

    Yields:
        for each job its values, then one event with `done`, whose `error` is None or one line.

    Raises:
        UsageError: one of the jobs raised it.
    """
    queue = iter(jobs)
    pool: list[_Worker] = []
    todo = workers or available_cores()
    share = max(1, available_cores() // todo)
    waiting = next(queue, _END)
    try:
        while waiting is not _END or any(w.busy for w in pool):
            for worker in pool:
                if not worker.busy and waiting is not _END:
                    _give(worker, waiting)
                    waiting = next(queue, _END)
            while waiting is not _END and len(pool) < todo:
                with _undisturbed():
                    pool.append(_hire(function, setup, share, max(timeout_s, START_S)))
                _give(pool[-1], waiting)
                waiting = next(queue, _END)
            busy = {w.pipe: w for w in pool if w.busy}
            patience = min(w.deadline for w in busy.values()) - time.monotonic()
            for pipe in wait(list(busy), timeout=max(0.0, patience)):
                worker = busy[pipe]
                worker.heard = time.monotonic()
                try:
                    event = pipe.recv()
                except (EOFError, OSError):
                    worker.process.join(5)
                    yield _lost(pool, worker, _death(worker.process.exitcode))
                    continue
                if event == READY:
                    worker.patience_s = timeout_s
                    continue
                worker.busy = not event.done
                if event.mistake:
                    raise UsageError(event.error)
                yield replace(event, job=worker.job)
            for worker in [w for w in pool if w.busy]:
                if time.monotonic() > worker.deadline:
                    silent = f"silent for {worker.patience_s:g} s: gave up (timeout_s)"
                    yield _lost(pool, worker, silent)
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


_END = object()


def available_cores() -> int:
    """Cores that this process may use (containers and taskset give fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hire(function, setup, threads: int, patience_s: float) -> _Worker:
    for library in THREADED:  # each reads it once, as it is imported
        os.environ[library] = str(threads)
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_work, args=(function, theirs, setup), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, patience_s)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C reaches the whole process group and is ours to handle: a worker inherits the block,
    and here it waits until the worker has all that it needs to start."""
    resource_tracker.ensure_running()  # which would lift the block
    if threading.current_thread() is not threading.main_thread():  # no signal reaches it
        yield
        return
    held = []  # what reaches a thread that has no block
    before = signal.signal(signal.SIGINT, lambda *_: held.append(True))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)


def _give(worker: _Worker, job: Any) -> None:
    worker.job, worker.busy, worker.heard = job, True, time.monotonic()
    with contextlib.suppress(OSError):  # died while idle: recv tells
        worker.pipe.send(job)


def _lost(pool: list[_Worker], worker: _Worker, error: str) -> Event:
    pool.remove(worker)
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()
    return Event(worker.job, error=error, done=True)


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"the worker died: {signal.Signals(-exitcode).name}"
    return f"the worker died: exit status {exitcode}"


def _work(function, pipe: Connection, setup) -> None:
    """A worker's life: one job after another, until the parent is gone."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if setup:
        setup()
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: recv tells
        pipe.send(READY)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        end = Event(job=None, done=True)
        try:
            for value in function(job):
                pipe.send(Event(job=None, value=value))
        except BrokenPipeError:
            return
        except UsageError as mistake:
            end = replace(end, error=str(mistake), mistake=True)
        except Exception as failure:
            if "--debug" in sys.argv:  # a worker has the run's arguments
                traceback.print_exc()
            end = replace(end, error=one_line(failure))
        pipe.send(end)


def _die_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def one_line(failure: BaseException) -> str:
    """An exception as the one line that a row or a terminal shows."""
    text = " ".join(str(failure).split()) or "no message"
    return (
        text
        if type(failure).__name__.endswith("VideoError")
        else f"{type(failure).__name__}: {text}"
    )
