"""Shards are what the contract says, byte for byte the same, and survive being killed anywhere."""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import decord
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from curation import layout, packing, shards
from curation.shards import Sample
from curation.video import VideoError
from recipes.load import UsageError
from recipes.schema import Shards
from tests import zoo
from tests.planted import package_video

RATE = 25
FAST = Shards(samples=2, preset="ultrafast", crf=30)
CHINESE = "一个红色的圆形向左移动，背景是“夜晚”"


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    zoo.ffmpeg(*zoo.test_pattern("64x48", seconds=4), *zoo.X264, folder / "film 影.mp4")
    zoo.ffmpeg(*zoo.test_pattern("65x49", seconds=4), "-c:v", "ffv1", folder / "odd.mkv")
    ten = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le"]
    zoo.ffmpeg(*zoo.test_pattern("64x48", seconds=1), *ten, folder / "ten.mkv")
    zoo.picture(folder / "picture.jpg")
    zoo.picture(folder / "picture.png")
    (folder / "broken.mp4").write_text("this is no video")
    return {path.stem.split()[0] + path.suffix: path for path in folder.iterdir()}


def video_id(path: Path) -> str:
    return hashlib.sha256(path.name.encode()).hexdigest()[:16]


def clip(path: Path, start: int, end: int, **more) -> Sample:
    """Frames start … end of a file with 25 frames a second; an image where there are none."""
    given = {
        "clip_id": f"{video_id(path)}-{start:08d}-{end:08d}",
        "source_path": path,
        "name": path.name,
        "uri": str(path),
        "start_s": start / RATE,
        "end_s": end / RATE,
        "start_frame": start,
        "end_frame": end,
        "captions": (
            {"text": CHINESE, "language": "zh", "source": "sidecar", "model": None},
            {"text": "a red circle", "language": "en", "source": "vlm", "model": "Org/VLM-7B.v2"},
        ),
        "width": 64,
        "height": 48,
        "fps": float(RATE),
        "scores": {"flow_mean": 0.1 + 0.2, "aesthetic": 5.5, "border_box": [0, 0, 64, 48]},
        "tier": "optimal",
        "sampling_weight": 0.25,
        "bucket": "192p-17f-4x3",
        "split": "train",
    }
    return Sample(**given | more)


def written(samples, folder: Path, settings: Shards = FAST) -> dict:
    jobs = shards.plan(samples, folder, settings)
    for job in jobs:
        list(shards.write_shard(job))
    return shards.finish(folder, jobs)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def several(sources) -> list[Sample]:
    film, odd = sources["film.mp4"], sources["odd.mkv"]
    return [
        clip(film, 0, 20),
        clip(film, 30, 55, crop=(9, 5, 41, 31)),
        clip(odd, 40, 60),
        clip(sources["ten.mkv"], 3, 20),
        clip(sources["picture.jpg"], 0, 1, start_s=0, end_s=0, is_image=True),
        clip(sources["picture.png"], 0, 1, start_s=0, end_s=0, is_image=True),
        clip(sources["broken.mp4"], 0, 9),
        clip(film, 90, 120),  # more frames than there are
    ]


@pytest.fixture(scope="session")
def finished(several, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "tiny" / "train"
    written(several, folder)
    return folder


def test_the_files_are_those_of_the_contract(finished, several):
    numbers = [f"{n:05d}" for n in range(4)]
    manifest = json.loads((finished / "manifest.json").read_text())
    tars = {f"{n}.tar" for n in numbers if manifest["shards"][int(n)]["shard"]}
    assert {p.name for p in finished.iterdir()} == tars | {
        "manifest.json",
        *(f"{n}.parquet" for n in numbers),
    }
    assert manifest["samples"] == len(several) - 2
    assert {one["reason"] for one in manifest["left_out"]} == {
        "cannot be opened: Invalid data found when processing input",
        "has 10 frames where the catalog counted 30",
    }


def test_a_sample_s_members_are_neighbours_and_carry_nothing_of_the_machine(finished):
    for tar in sorted(finished.glob("*.tar")):
        with tarfile.open(tar) as file:
            members = file.getmembers()
        names = [member.name for member in members]
        assert names == sorted(names)
        keys = [name.partition(".")[0] for name in names]
        assert all(len({*keys[i : i + 3]}) == 1 for i in range(0, len(keys), 3))
        for i in range(0, len(names), 3):
            kinds = {name.partition(".")[2] for name in names[i : i + 3]}
            assert kinds in ({"json", "txt", one} for one in ("mp4", "jpg", "png"))
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members}
        assert facts == {(0, 0, 0, "", "", 0o644)}


def test_tar_lists_it(finished):
    done = subprocess.run(["tar", "tf", finished / "00000.tar"], capture_output=True, check=True)
    with tarfile.open(finished / "00000.tar") as file:
        assert done.stdout.decode().split() == file.getnames()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves its files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_itself_reads_what_we_wrote(finished, several):
    urls = sorted(map(str, finished.glob("*.tar")))
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    assert len(found) == len(several) - 2
    assert {one["txt"] for one in found} == {CHINESE}
    assert {one["json"]["clip_id"] for one in found} == {one["__key__"] for one in found}


def test_read_gives_every_sample_and_a_caption_in_chinese_comes_back(finished, several):
    found = {sample["__key__"]: sample for sample in shards.read(finished)}
    assert found.keys() == {row["clip_id"] for row in shards.index(finished)}
    for sample in found.values():
        assert sample["txt"] == CHINESE
        assert [c["text"] for c in sample["json"]["captions"]] == [CHINESE, "a red circle"]
        assert sample["json"]["scores"]["flow_mean"] == 0.1 + 0.2, "a float lost digits"
        assert str(finished) not in json.dumps(sample["json"])
        assert "/tmp" not in json.dumps(sample["json"]), "somebody's path"
    braces = str(finished / "0000{0..1}.tar")
    some = [sample["__key__"] for sample in shards.read(braces)]
    assert some == list(found)[: len(some)]
    assert some


def test_the_media_open_everywhere_with_the_frames_the_json_counts(finished):
    for sample in shards.read(finished):
        facts = sample["json"]
        if facts["is_image"]:
            kind = "png" if "png" in sample else "jpg"
            assert facts["source"] == f"picture.{kind}"
            assert Image.open(io.BytesIO(sample[kind])).size == (facts["width"], facts["height"])
            assert facts["frames"] == 1
            continue
        reader = decord.VideoReader(io.BytesIO(sample["mp4"]), num_threads=1)
        with av.open(io.BytesIO(sample["mp4"])) as container:
            frames = list(container.decode(video=0))
        assert len(reader) == len(frames) == facts["frames"]
        assert reader[0].shape == (facts["height"], facts["width"], 3)
        assert frames[0].format.name == "yuv420p"
        assert facts["width"] % 2 == facts["height"] % 2 == 0
        assert facts["frames"] == facts["span_frames"][1] - facts["span_frames"][0]


def test_the_crop_is_in_the_pixels_and_in_the_json(finished):
    found = {s["json"]["span_frames"][0]: s["json"] for s in shards.read(finished) if "mp4" in s}
    assert found[30]["crop"] == [10, 6, 40, 30]
    assert (found[30]["width"], found[30]["height"]) == (40, 30)
    assert found[0]["crop"] == [0, 0, 64, 48]


def test_readers_of_cosmos_curate_and_video2dataset_find_their_names(finished):
    facts = next(s["json"] for s in shards.read(finished) if "mp4" in s)
    assert facts["url"] == facts["source_video"] == facts["source"]
    assert (facts["key"], facts["status"], facts["error_message"]) == (
        facts["clip_id"],
        "success",
        None,
    )
    assert facts["caption"] == CHINESE
    assert facts["duration_span"] == facts["span"]
    assert (facts["width_source"], facts["height_source"], facts["framerate_source"]) == (
        64,
        48,
        25,
    )
    assert facts["clip_location"] == facts["clip_id"] + ".mp4"
    assert facts["motion_score"] == {"global_mean": 0.1 + 0.2, "per_patch_min_256": None}
    assert facts["aesthetic_score"] == 5.5
    assert facts["errors"] == []
    assert facts["valid"] is True
    assert len(facts["span_uuid"]) == 36
    assert facts["windows"] == [
        {
            "start_frame": 0,
            "end_frame": facts["frames"] - 1,
            "sidecar_caption": CHINESE,
            "org_vlm_7b_v2_caption": "a red circle",
        }
    ]
    table = pq.read_table(finished / "00000.parquet").to_pylist()
    assert {"url", "caption", "key", "status", "error_message"} <= table[0].keys()


def test_two_captions_of_one_author_both_stay(sources):
    said = [{"text": t, "language": "en", "source": "csv", "model": None} for t in "abc"]
    sample = clip(sources["film.mp4"], 0, 9, captions=tuple(said))
    row = dict.fromkeys(layout.INDEX.names) | {"frames": 9, "media": "mp4"}
    (window,) = packing.record(sample, row)["windows"]
    assert sorted(v for k, v in window.items() if k.endswith("_caption")) == ["a", "b", "c"]


def test_the_index_finds_each_clip_s_bytes_without_reading_the_tar(finished):
    rows = shards.index(finished)
    assert len(rows) == 6
    for row in rows:
        with (finished / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            assert hashlib.sha256(file.read(row["bytes"])).hexdigest() == row["sha256"]
    failed = [row for row in shards.index(finished, failed=True) if row["status"] != "success"]
    assert len(failed) == 2
    assert all(row["error_message"] for row in failed)


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
    from curation import media

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


def test_verify_names_the_file_that_was_changed(finished, tmp_path):
    assert shards.verify(finished) == []
    folder = tmp_path / "changed"
    shutil.copytree(finished, folder)
    data = bytearray((folder / "00001.tar").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "00001.tar").write_bytes(data)
    (folder / "00000.parquet").unlink()
    (folder / "00009.tar").touch()
    assert shards.verify(folder) == [
        "00000.parquet: missing",
        "00001.tar: its checksum is not the manifest's",
        "00009.tar: not in the manifest",
    ]


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


def test_a_remote_address_stays_and_a_local_path_does_not(sources):
    film = sources["film.mp4"]
    assert clip(film, 0, 1, uri="s3://bucket/film.mp4").url == "s3://bucket/film.mp4"
    assert clip(film, 0, 1).url == clip(film, 0, 1, uri=f"file://{film}").url == film.name


def test_odd_values_make_sound_json():
    value = {"b": math.nan, "a": [np.float32(0.5), np.array([1, 2])], "名": "x\udcff", 3: math.inf}
    data = packing.json_bytes(value)
    assert json.loads(data) == {"b": None, "a": [0.5, [1, 2]], "名": "x\udcff", "3": None}
    assert data.startswith(b'{"3": null, "a"')


@pytest.mark.parametrize("key", ["../evil", "a/b", "a.b", "", "-x", "x" * 91, "é"])
def test_a_key_that_is_no_plain_name_is_refused(sources, tmp_path, key):
    sample = clip(sources["film.mp4"], 0, 5, clip_id=key)
    with pytest.raises(ValueError, match="can't be the key"):
        shards.plan([sample], tmp_path, FAST)


def test_a_clip_that_comes_twice_is_refused(sources, tmp_path):
    sample = clip(sources["film.mp4"], 0, 5)
    with pytest.raises(ValueError, match="comes twice"):
        shards.plan([sample, sample], tmp_path, FAST)


@pytest.mark.parametrize("name", ["../../evil.txt", "/etc/evil.txt", "a/b.txt", "key.exe", "key"])
def test_reading_refuses_a_member_that_is_no_sample_s(tmp_path, name):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(ValueError, match="is no name of a sample's file"):
        list(shards.read(str(tmp_path / "bad.tar")))


def test_a_manifest_that_names_a_path_is_refused(finished, tmp_path):
    folder = tmp_path / "evil"
    shutil.copytree(finished, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["shard"] = "../../evil.tar"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for reader in (shards.read, shards.index, shards.verify):
        with pytest.raises(UsageError, match="is no shard's name"):
            reader(folder)


def test_no_samples_make_a_finished_set_that_says_so(tmp_path):
    assert written([], tmp_path)["samples"] == 0
    assert shards.index(tmp_path) == []
    with pytest.raises(UsageError, match="hold no sample"):
        shards.read(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't be written"):
        shards.plan([], tmp_path / "file" / "train", FAST)


def test_a_real_film_is_cut_into_its_frames(tmp_path):
    bikes = package_video("bikes.mp4")
    samples = [clip(bikes, a, b, width=640, height=272) for a, b in ((31, 40), (188, 200))]
    assert written(samples, tmp_path)["samples"] == 2
    with av.open(str(bikes)) as container:
        source = [f.to_ndarray(format="gray") for f in container.decode(video=0)]
    for sample in shards.read(tmp_path):
        start = sample["json"]["span_frames"][0]
        with av.open(io.BytesIO(sample["mp4"])) as container:
            for number, frame in enumerate(container.decode(video=0)):
                off = [
                    np.abs(frame.to_ndarray(format="gray").astype(int) - source[start + d + number])
                    .mean()
                    for d in (-1, 0, 1)
                ]  # fmt: skip
                assert min(off) == off[1]


def test_shards_need_neither_the_catalog_nor_duckdb():
    code = "import sys, curation.shards; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"duckdb", "curation.catalog", "lightning", "torch"}


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ((854, 480, 81), "480p-81f-16x9"),
        ((1920, 800, 200), "720p-81f-21x9"),
        ((1920, 800, 200, 480), "480p-81f-21x9"),
        ((180, 320, 7), "0p-1f-9x16"),
        ((480, 480, 1), "480p-1f-1x1"),
        ((479, 640, 33), "256p-33f-3x4"),
        ((720, 1280, 80), "720p-65f-9x16"),
    ],
)
def test_a_bucket_is_the_largest_that_the_clip_fills(what, expected):
    assert shards.bucket(*what) == expected


@pytest.mark.parametrize("resolution", [192, 256, 480, 720])
def test_a_bucket_s_size_has_whole_patches_and_about_the_resolution_s_area(resolution):
    wide = shards.bucket_size(f"{resolution}p-81f-16x9")
    for aspect in ("21x9", "16x9", "4x3", "1x1", "3x4", "9x16", "9x21"):
        width, height = shards.bucket_size(f"{resolution}p-81f-{aspect}")
        assert width % 16 == height % 16 == 0
        assert 0.85 < width * height / math.prod(wide) <= 1.0
        a, b = map(int, aspect.split("x"))
        assert width / height == pytest.approx(a / b, rel=0.06)


def test_the_published_sizes_are_met():
    assert shards.bucket_size("480p-81f-16x9") == (832, 480)
    assert shards.bucket_size("480p-1f-9x16") == (480, 832)
    assert shards.bucket_size("720p-81f-16x9") == (1280, 720)


@pytest.mark.parametrize("name", ["0p-1f-16x9", "480p", "480p-81f-2x1", "481p-81f-1x1", ""])
def test_a_name_that_is_no_bucket_s_is_refused(name):
    with pytest.raises(ValueError, match="no bucket"):
        shards.bucket_size(name)
