"""One bad file costs one row; a run killed at any moment continues; a mistake is one line."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import psutil
import pytest

from tests import zoo
from tests.running import TINY, curated, query, shards, started, tables


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A small folder of what people have: good, odd and broken."""
    folder = tmp_path_factory.mktemp("原始 raw")
    for name in ("plain.mp4", "rotated.mp4", "中文 名字 (1).mp4", "picture.jpg", "web.webm"):
        zoo.GOOD[name](folder / name)
    for name in ("empty.mp4", "not a video.mp4"):
        zoo.BROKEN[name](folder / name)
    long = folder / "deep" / "long.mp4"
    long.parent.mkdir()
    zoo.ffmpeg(*zoo.moving(size="160x90", rate="12", seconds=12), *zoo.X264, long)
    return folder


@pytest.fixture(scope="module")
def finished(raw, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    assert curated(f"source={raw}", f"out={out}", *TINY) == 0
    return out


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def at_work(run: subprocess.Popen, out: Path) -> None:
    """Waits until a run has its catalog, which comes before any work."""
    lock = out / "catalog.lock"
    until(lambda: lock.exists() and lock.read_text().startswith(f"process {run.pid},"))


def test_every_file_has_its_row_and_the_broken_ones_say_why(raw, finished):
    rows = query(finished, "SELECT name, status, error FROM videos ORDER BY name")
    assert {name for name, _, _ in rows} == {
        str(path.relative_to(raw)) for path in raw.rglob("*") if path.is_file()
    }
    errors = {name: error for name, status, error in rows if status == "error"}
    assert errors.keys() == {"empty.mp4", "not a video.mp4"}
    assert all(error and "\n" not in error for error in errors.values())


def test_a_second_run_does_nothing_and_changes_nothing(raw, finished):
    before, files = tables(finished), shards(finished)
    stamps = {path: path.stat().st_mtime_ns for path in (finished / "shards").rglob("*.tar")}
    assert curated(f"source={raw}", f"out={finished}", *TINY) == 0
    assert tables(finished) == before
    assert shards(finished) == files
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_killed_ten_times_at_random_it_ends_as_if_never_interrupted(raw, finished, tmp_path):
    keys = (f"source={raw}", f"out={tmp_path}", *TINY)
    moments = random.Random(4)
    for _ in range(10):
        run = started(*keys)
        at_work(run, tmp_path)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(moments.uniform(0, 2.5))
        with contextlib.suppress(ProcessLookupError):  # it was through
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    assert curated(*keys) == 0
    assert tables(tmp_path) == tables(finished)
    assert shards(tmp_path) == shards(finished)
    left = [p.name for p in tmp_path.rglob("*") if p.name.startswith(".") or ".tmp" in p.name]
    assert left == []


def test_ctrl_c_ends_with_130_and_the_next_run_continues(raw, finished, tmp_path):
    keys = (f"source={raw}", f"out={tmp_path}", *TINY)
    run = started(*keys)
    at_work(run, tmp_path)
    time.sleep(0.5)  # the workers are starting
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert curated(*keys) == 0
    assert tables(tmp_path) == tables(finished)
    assert shards(tmp_path) == shards(finished)


def test_a_crash_and_a_hang_cost_one_file_each_its_row_and_the_run_goes_on(tmp_path):
    """What a decoder does to its process when it crashes or hangs is done to it from outside."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    zoo.ffmpeg(*zoo.moving(seconds=9), *zoo.X264, tmp_path / "short.mp4")
    again = ("-stream_loop", "9", "-i", tmp_path / "short.mp4", "-c", "copy")
    for name in ("a crash.mp4", "b hang.mp4"):  # long, so that they are still being read
        zoo.ffmpeg(*again, source / name)
    zoo.GOOD["plain.mp4"](source / "z.mp4")
    keys = (f"source={source}", f"out={out}", *TINY, "steps=basic", "workers=1", "timeout_s=5")
    run = started(*keys)
    reading(run.pid, "a crash.mp4").send_signal(signal.SIGKILL)
    reading(run.pid, "b hang.mp4").send_signal(signal.SIGSTOP)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    rows = dict(query(out, "SELECT name, coalesce(error, status) FROM videos"))
    assert rows == {
        "a crash.mp4": "the worker died: SIGKILL",
        "b hang.mp4": "silent for 5 s: gave up (timeout_s)",
        "z.mp4": "ok",
    }
    assert query(out, "SELECT count(*) FROM clips") == [(1,)]


def reading(parent: int, name: str) -> psutil.Process:
    """The worker of a run that has a file open."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(parent).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(name in one.path for one in child.open_files()):
                    return child
        time.sleep(0.02)
    raise AssertionError(f"nobody reads {name}")


def test_a_new_file_is_picked_up_and_the_others_are_not_touched(raw, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shutil.copy2(raw / "plain.mp4", source)
    keys = (f"source={source}", f"out={out}", *TINY, "steps=basic")
    assert curated(*keys) == 0
    first = query(out, "SELECT * FROM videos")
    shutil.copy2(raw / "web.webm", source)
    assert curated(*keys) == 0
    both = query(out, "SELECT * FROM videos")
    assert len(both) == 2
    assert first[0] in both


def test_a_file_that_changed_replaces_its_rows(raw, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target = source / "a.mp4"
    shutil.copy(raw / "plain.mp4", target)
    keys = (f"source={source}", f"out={out}", *TINY, "steps=basic")
    assert curated(*keys) == 0
    shutil.copy(raw / "deep" / "long.mp4", target)
    assert curated(*keys) == 0
    assert query(out, "SELECT count(*) FROM videos") == [(1,)]
    assert query(out, "SELECT max(end_s) > 10 FROM clips") == [(True,)]
    orphans = "SELECT count(*) FROM basic ANTI JOIN clips USING (clip_id)"
    assert query(out, orphans) == [(0,)]


def test_two_runs_on_one_catalog_the_second_is_refused_in_one_line(raw, tmp_path, capsys):
    keys = (f"source={raw / 'plain.mp4'}", f"out={tmp_path}", *TINY, "steps=basic")
    first = started(*keys)
    at_work(first, tmp_path)
    os.killpg(first.pid, signal.SIGSTOP)  # so that it is still at work
    second = curated(*keys)
    os.killpg(first.pid, signal.SIGCONT)
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert second == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "another run" in line


def test_a_notebook_that_keeps_the_catalog_open_delays_the_run_and_loses_nothing(
    raw, finished, tmp_path
):
    source, out = tmp_path / "in", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    shutil.copy2(raw / "web.webm", source / "new.webm")
    shutil.copy2(finished / "catalog.duckdb", out)
    notebook = duckdb.connect(str(out / "catalog.duckdb"), read_only=True)
    run = started(f"source={source}", f"out={out}", *TINY, "steps=basic,select")
    until(lambda: any(part.name[0] != "." for part in (out / "parts").glob("*")))
    time.sleep(3)
    assert run.poll() is None, "it waits"
    notebook.close()
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert "open in" in err
    names = {name for (name,) in query(out, "SELECT name FROM videos")}
    assert names == {name for (name,) in query(finished, "SELECT name FROM videos")} | {"new.webm"}
    assert not any((out / "parts").glob("*"))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["source=/no/such/folder"], "/no/such/folder"),
        (["profile=481p"], "480p"),
        (["slect.min_sharpness=0.2"], "select.min_sharpness"),
        (["steps=basic,selct"], "select"),
        (["split.window_s=long"], "split.window_s"),
        (["skip=text"], "text_area"),
        (["--pla"], "key=value"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(keys, says, tmp_path, capsys):
    assert curated(f"out={tmp_path / 'out'}", *keys) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line
    assert not (tmp_path / "out").exists(), "nothing was written"


def test_an_empty_folder_is_a_mistake(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    assert curated(f"source={tmp_path / 'in'}", f"out={tmp_path / 'out'}") == 2
    assert "no video" in capsys.readouterr().err


def test_only_broken_files_end_with_1_and_still_with_a_report(tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    zoo.BROKEN["empty.mp4"](source / "empty.mp4")
    zoo.BROKEN["not a video.mp4"](source / "letter.mp4")
    assert curated(f"source={source}", f"out={out}", *TINY) == 1
    assert capsys.readouterr().err == ""
    assert "0 bytes" in (out / "report.html").read_text()


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, raw, capsys):
    blocked = tmp_path / "a file"
    blocked.write_text("in the way")
    assert curated(f"source={raw}", f"out={blocked / 'out'}", *TINY) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(blocked) in line


def test_a_catalog_of_an_older_schema_is_brought_up_to_date(raw, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    with duckdb.connect(str(out / "catalog.duckdb")) as con:
        con.execute("ALTER TABLE basic DROP COLUMN sharpness")
    assert curated(f"source={raw}", f"out={out}", *TINY, "steps=basic") == 0
    assert "sharpness" in [row[0] for row in query(out, "DESCRIBE basic")]


def test_scores_of_an_older_version_alone_are_computed_again(raw, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    with duckdb.connect(str(out / "catalog.duckdb")) as con:
        con.execute("UPDATE basic SET luma_mean = -1, sharpness = -1")
        con.execute("UPDATE basic SET versions = map_concat(versions, MAP {'sharpness': 'old'})")
    assert curated(f"source={raw}", f"out={out}", *TINY, "steps=basic") == 0
    assert query(out, "SELECT min(sharpness) >= 0 FROM basic") == [(True,)]
    assert query(out, "SELECT max(luma_mean) FROM basic") == [(-1.0,)]


def test_a_full_disk_is_one_line_and_the_next_run_continues(raw, finished, tmp_path):
    """A file size limit stands in for the disk: writes beyond it fail as on a full one."""
    keys = (f"source={raw}", f"out={tmp_path}", *TINY)
    code = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, resource.RLIM_INFINITY))\n"
        "sys.argv[0] = 'curation/run.py'\n"
        "runpy.run_path('curation/run.py', run_name='__main__')\n"
    )
    full = subprocess.run(
        [sys.executable, "-c", code, *keys], capture_output=True, text=True, timeout=120
    )
    assert full.returncode in (1, 2)
    assert "Traceback" not in full.stderr
    assert curated(*keys) == 0
    assert tables(tmp_path) == tables(finished)
    assert shards(tmp_path) == shards(finished)
