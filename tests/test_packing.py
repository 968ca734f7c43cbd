"""Writing shards: the same bytes every time, nothing done twice, killed anywhere or not."""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curation import media, packing, shards
from curation.video import VideoError
from recipes.load import UsageError
from recipes.schema import Shards
from tests import shelf
from tests.shelf import FAST, clip, content, written


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    return shelf.made(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def several(sources):
    return shelf.several(sources)


@pytest.fixture(scope="session")
def finished(several, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "tiny" / "train"
    written(several, folder)
    return folder


def test_the_same_samples_give_the_same_bytes_in_any_order(finished, several, tmp_path):
    written(list(reversed(several)), tmp_path / "again")
    assert content(tmp_path / "again") == content(finished)


def test_a_finished_set_is_left_alone(finished, several, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in finished.iterdir()}

    def never(*arguments, **more):
        raise AssertionError("cut again")

    monkeypatch.setattr("curation.media.cut_many", never)
    written(several, finished)
    assert {p: p.stat().st_mtime_ns for p in finished.iterdir()} == before


def test_a_shifted_plan_copies_what_was_encoded_and_equals_a_fresh_one(
    finished, several, sources, tmp_path, monkeypatch
):
    folder, fresh = tmp_path / "shifted", tmp_path / "fresh"
    shutil.copytree(finished, folder)
    changed = [several[0], *several[2:5], clip(sources["film.mp4"], 5, 8)]  # one goes, one comes
    written(changed, fresh)

    cuts = []
    whole = media.cut_many

    def counted(path, spans, **more):
        cuts.extend(spans)
        return whole(path, spans, **more)

    monkeypatch.setattr(media, "cut_many", counted)
    written(changed, folder)
    assert [span.frames for span in cuts] == [3], "only the new clip is cut"
    assert content(folder) == content(fresh)
    assert not shards.verify(folder)


def test_other_settings_encode_anew(finished, several, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(finished, folder)
    other = Shards(samples=2, preset="ultrafast", crf=40)
    written(several[:2], folder, other)
    assert max(r["bytes"] for r in shards.index(folder)) < max(
        r["bytes"] for r in shards.index(finished) if r["media"] == "mp4"
    )
    written(several[:2], tmp_path / "fresh", other)
    assert content(folder) == content(tmp_path / "fresh")


def test_a_damaged_older_shard_lends_no_bytes(finished, several, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    for tar in folder.glob("*.tar"):
        data = bytearray(tar.read_bytes())
        data[len(data) // 3] ^= 255
        data[len(data) // 10] ^= 255
        tar.write_bytes(data)
    bigger = Shards(samples=5, preset="ultrafast", crf=30)
    written(several, folder, bigger)
    written(several, tmp_path / "fresh", bigger)
    assert content(folder) == content(tmp_path / "fresh")


class Killed(BaseException):
    """Stands for kill -9 between two steps."""


def killed_at(monkeypatch, step: int):
    """Lets so many changes of the disk pass, and then none: neither a clean-up's nor ours."""
    left = [step]

    def guarded(change):
        def call(*arguments, **more):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return change(*arguments, **more)

        return call

    monkeypatch.setattr(packing.os, "replace", guarded(os.replace))
    monkeypatch.setattr(packing.shutil, "rmtree", guarded(shutil.rmtree))
    monkeypatch.setattr(Path, "unlink", guarded(Path.unlink))
    monkeypatch.setattr(Path, "mkdir", guarded(Path.mkdir))
    monkeypatch.setattr(packing.pq, "write_table", guarded(pq.write_table))
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a kill loses nothing that was written
    return left


@pytest.mark.parametrize("older", [False, True], ids=["first run", "over an older set"])
def test_killed_at_any_step_a_rerun_equals_an_uninterrupted_run(
    sources, tmp_path, monkeypatch, older
):
    images = [sources["picture.jpg"], sources["picture.png"]]
    still = {"start_s": 0, "end_s": 0, "is_image": True}
    samples = [
        clip(path, n, n + 1, **still, crop=(n, n, 32, 32)) for path in images for n in range(3)
    ]
    before = [clip(path, 7, 8, **still, crop=(0, 0, 16, 16)) for path in images] + samples[1:3]
    fresh, old = tmp_path / "fresh", tmp_path / "old"
    written(samples, fresh)
    written(before, old)
    known = {frozenset(r["clip_id"] for r in shards.index(one)) for one in (fresh, old)}
    step = 0
    while True:
        folder = tmp_path / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        if older:
            shutil.copytree(old, folder)
        with monkeypatch.context() as patch:
            left = killed_at(patch, step)
            with contextlib.suppress(Killed):
                written(samples, folder)
        if left[0] >= 0:
            break
        if (folder / "manifest.json").exists():  # then what it names is there, and whole
            assert frozenset(s["__key__"] for s in shards.read(folder)) in known
            assert all("not in the manifest" in fault for fault in shards.verify(folder))
        written(samples, folder)
        assert content(folder) == content(fresh), f"killed at step {step}"
        step += 1
    assert step > (20 if older else 12)


def test_killed_for_real_it_goes_on_where_it_was(several, finished, tmp_path):
    script = tmp_path / "run.py"
    folder = tmp_path / "out"
    told = [dataclasses.asdict(s) | {"source_path": str(s.source_path)} for s in several]
    script.write_text(f"""
import os, signal
from curation import shards
from recipes.schema import Shards
jobs = shards.plan([shards.Sample(**one) for one in {told!r}], {str(folder)!r}, {FAST!r})
for job in jobs:
    for row in shards.write_shard(job):
        if job.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
""")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    first = (folder / "00000.tar").stat().st_mtime_ns
    assert [p.name for p in folder.glob(".tmp-*")] == [".tmp-00001"]
    with pytest.raises(UsageError, match="no finished shards"):
        shards.read(folder)
    written(several, folder)
    assert (folder / "00000.tar").stat().st_mtime_ns == first, "a finished shard was redone"
    assert content(folder) == content(finished)


def test_without_all_its_shards_a_set_is_not_finished(several, tmp_path):
    jobs = shards.plan(several, tmp_path, FAST)
    list(shards.write_shard(jobs[0]))
    with pytest.raises(RuntimeError, match="shard 00001 has not been written"):
        shards.finish(tmp_path, jobs)


def test_a_worker_that_dies_costs_its_source_and_no_other(several, sources, tmp_path):
    (job,) = shards.plan(several, tmp_path, Shards(samples=99, preset="ultrafast"))
    rows = shards.write_shard(job)
    seen = [next(rows), next(rows)]
    rows.close()
    again = shards.retry(job, len(seen), "the worker died: SIGSEGV")
    lost = {one.clip_id for one in again.samples if one.clip_id in again.broken}
    source = again.samples[2].source_path
    assert lost == {s.clip_id for s in job.samples[2:] if s.source_path == source}
    made = {row["clip_id"]: row for row in shards.write_shard(again) if row}
    for clip_id in lost:
        assert made[clip_id]["error_message"] == "the worker died: SIGSEGV"
    assert sum(row["status"] == "success" for row in made.values()) >= 6 - len(lost)
    assert shards.finish(tmp_path, [job])["samples"] >= 6 - len(lost), "its plan is still the same"


def test_a_source_that_must_be_fetched_is_fetched_once_a_shard(sources, tmp_path):
    fetched = []

    @contextlib.contextmanager
    def fetch(name):
        fetched.append(name)
        if name == "gone":
            raise VideoError("cannot be fetched: 404")
        yield sources["film.mp4"]

    film, ten = sources["film.mp4"], sources["ten.mkv"]
    samples = [clip(film, n, n + 3, source_path="remote") for n in (0, 5, 10)]
    samples += [clip(ten, 0, 3, source_path="gone")]
    (job,) = shards.plan(samples, tmp_path, Shards(preset="ultrafast"))
    rows = [row for row in shards.write_shard(job, fetch) if row]
    assert sorted(fetched) == ["gone", "remote"]
    assert [row["error_message"] for row in rows if row["status"] == "failed"] == [
        "cannot be fetched: 404"
    ]


def test_a_bucket_s_size_is_filled(sources, tmp_path):
    film = sources["film.mp4"]
    samples = [clip(film, 0, 5), clip(film, 9, 14, bucket="0p-1f-4x3")]
    written(samples, tmp_path, Shards(size="bucket", preset="ultrafast"))
    good, small = shards.index(tmp_path, failed=True)
    assert (good["width"], good["height"]) == shards.bucket_size("192p-17f-4x3")
    assert small["error_message"] == "0p-1f-4x3: no bucket with a size of its own"


@pytest.mark.parametrize("key", ["../evil", "a/b", "a.b", "", "-x", "x" * 91, "é"])
def test_a_key_that_is_no_plain_name_is_refused(sources, tmp_path, key):
    sample = clip(sources["film.mp4"], 0, 5, clip_id=key)
    with pytest.raises(ValueError, match="can't be the key"):
        shards.plan([sample], tmp_path, FAST)


def test_a_clip_that_comes_twice_is_refused(sources, tmp_path):
    sample = clip(sources["film.mp4"], 0, 5)
    with pytest.raises(ValueError, match="comes twice"):
        shards.plan([sample, sample], tmp_path, FAST)


def test_no_samples_make_a_finished_set_that_says_so(tmp_path):
    assert written([], tmp_path)["samples"] == 0
    assert shards.index(tmp_path) == []
    with pytest.raises(UsageError, match="hold no sample"):
        shards.read(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't be written"):
        shards.plan([], tmp_path / "file" / "train", FAST)
