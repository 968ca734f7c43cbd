"""The pool loses nothing when a worker crashes, hangs or raises."""

import os
import signal
import threading
import time

import pytest

from curation import engine
from recipes.load import UsageError


def misbehave(job: str):
    """A step that does what its job says."""
    yield f"began {job}"
    if job == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "exit":
        os._exit(7)
    if job == "hang":
        time.sleep(3600)
    if job == "raise":
        raise ValueError("two\nlines")
    if job == "mistake":
        raise UsageError("no weights there")
    yield f"ended {job}"


def slow_but_alive(job: int):
    """Takes longer than the timeout, and shows signs of life."""
    for _ in range(4):
        time.sleep(0.5)
        yield None


def slow_start():
    time.sleep(2)


def ends(events) -> dict:
    return {event.job: event.error for event in events if event.done}


def test_one_bad_job_costs_one_error_and_every_other_job_finishes():
    jobs = ["a", "crash", "b", "hang", "c", "raise", "d", "exit", "e"]
    events = list(engine.run(misbehave, jobs, workers=2, timeout_s=2))
    errors = ends(events)
    assert set(errors) == set(jobs)
    assert errors["crash"] == "the worker died: SIGSEGV"
    assert errors["exit"] == "the worker died: exit status 7"
    assert errors["hang"] == "silent for 2 s: gave up (timeout_s)"
    assert errors["raise"] == "ValueError: two lines"
    values = [event.value for event in events if event.value]
    for job in "abcde":
        assert errors[job] is None
        assert f"ended {job}" in values


def test_a_slow_start_and_a_slow_job_that_shows_signs_of_life_are_not_killed():
    events = engine.run(slow_but_alive, [1], workers=1, timeout_s=1.5, setup=slow_start)
    assert ends(events) == {1: None}


def test_an_unforeseen_exception_shows_its_traceback_with_debug_alone(capfd, monkeypatch):
    list(engine.run(misbehave, ["raise"], workers=1))
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("sys.argv", ["run.py", "--debug"])
    list(engine.run(misbehave, ["raise"], workers=1))
    err = capfd.readouterr().err
    assert "in misbehave" in err
    assert err.endswith("ValueError: two\nlines\n")


def test_a_user_s_mistake_ends_the_run():
    with pytest.raises(UsageError, match="no weights there"):
        list(engine.run(misbehave, ["a", "mistake", "b"], workers=1, timeout_s=60))
    assert not engine.SPAWN.active_children()


def test_no_jobs_start_no_worker():
    assert list(engine.run(misbehave, [], workers=2)) == []


def test_ctrl_c_waits_until_a_worker_that_starts_has_all_that_it_needs(capfd, monkeypatch):
    start = engine.SPAWN.Process.start

    def interrupted(process):
        other = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
        other.start()  # a thread without a block, as those of NumPy and DuckDB are
        other.join()
        time.sleep(0.1)  # here it would come through
        start(process)

    monkeypatch.setattr(engine.SPAWN.Process, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(engine.run(misbehave, ["a"], workers=1))
    assert not engine.SPAWN.active_children()
    assert capfd.readouterr().err == ""


def test_leaving_the_loop_kills_the_workers():
    events = engine.run(misbehave, ["hang", "hang"], workers=2, timeout_s=60)
    next(events)
    events.close()
    assert not engine.SPAWN.active_children()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux tells the allowed cores")
def test_workers_are_the_cores_this_process_may_use():
    assert engine.available_cores() == len(os.sched_getaffinity(0))
