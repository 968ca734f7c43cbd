"""Shards are what the contract says, and readers find in them what they look for."""

import hashlib
import io
import json
import math
import shutil
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
from recipes.load import UsageError
from tests import shelf
from tests.planted import package_video
from tests.shelf import CHINESE, clip, written


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


def test_a_remote_address_stays_and_a_local_path_does_not(sources):
    film = sources["film.mp4"]
    assert clip(film, 0, 1, uri="s3://bucket/film.mp4").url == "s3://bucket/film.mp4"
    assert clip(film, 0, 1).url == clip(film, 0, 1, uri=f"file://{film}").url == film.name


def test_odd_values_make_sound_json():
    value = {"b": math.nan, "a": [np.float32(0.5), np.array([1, 2])], "名": "x\udcff", 3: math.inf}
    data = packing.json_bytes(value)
    assert json.loads(data) == {"b": None, "a": [0.5, [1, 2]], "名": "x\udcff", "3": None}
    assert data.startswith(b'{"3": null, "a"')


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
