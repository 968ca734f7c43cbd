"""Tars that others wrote are understood as they wrote them."""

import io
import json

import pytest

from recipes.load import UsageError
from recipes.training import Data
from tests import numbered, zoo
from training import decode, foreign
from training.batch import Bucket
from training.decode import Taste
from training.index import gather

NINE = Bucket(64, 64, 9)


def read(index, row: int) -> tuple[list[int], str]:
    found = decode.decode(index.row(row), NINE, Taste(), decode.HELD_OUT)
    return numbered.numbers(found.video), found.prompt


def both(folder) -> list:
    """All samples, wherever they went."""
    return [gather(Data(shards=[str(folder)]), split) for split in ("train", "val")]


@pytest.fixture(scope="module")
def video2dataset(tmp_path_factory):
    """As its WebDatasetSampleWriter has it: 00000.tar, 00000.parquet and a JSON of statistics."""
    folder = tmp_path_factory.mktemp("v2d")
    for shard in range(2):
        members = {}
        for k in range(3):
            key = f"{shard:05d}_{k:08d}"
            number = 10 * shard + k
            members[f"{key}.mp4"] = numbered.clip(12, 16, start=number)
            members[f"{key}.txt"] = f"caption {number}"
            members[f"{key}.json"] = {
                "url": f"https://host/{number}.mp4",
                "key": key,
                "status": "success",
                "error_message": None,
                "caption": f"caption {number}",
                "video_metadata": {"streams": [{"width": 1920, "height": 1080}]},
            }
        numbered.tar(folder / f"{shard:05d}.tar", members)
        (folder / f"{shard:05d}.parquet").write_bytes(parquet())
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return folder


def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"key": ["00000_00000000"], "status": ["success"]}), out)
    return out.getvalue()


def test_video2dataset_s_folders_are_read(video2dataset):
    found = {}
    for index in both(video2dataset):
        for k in range(len(index)):
            numbers, prompt = read(index, k)
            found[index.row(k).key] = (numbers[0], prompt)
            # of the clip in the tar, not of what its JSON says of the source
            assert (index.width[k], index.height[k], index.frames[k]) == (64, 64, 12)
            assert index.duration[k] == pytest.approx(12 / 16, abs=1e-3)
    expected = {
        f"{shard:05d}_{k:08d}": (10 * shard + k + 2, f"caption {10 * shard + k}")
        for shard in range(2)
        for k in range(3)
    }
    assert found == expected  # the middle of 12 frames begins at the third


def test_cosmos_curate_s_parallel_trees_are_read_together(tmp_path):
    place = "v0/resolution_720/aspect_ratio_16_9/frames_0_255"
    keys = [f"{k:08x}-1111-5222-8333-444444444444" for k in range(3)]
    videos = {f"{key}.mp4": numbered.clip(9, start=k) for k, key in enumerate(keys)}
    metas = {
        f"{key}.json": {
            "span_uuid": key,
            "source_video": "s3://raw/one.mp4",
            "width_source": 1280,
            "windows": [{"start_frame": 0, "end_frame": 255, "qwen_caption": f"clip {k}"}],
        }
        for k, key in enumerate(keys)
    }
    part = "part_000000/000000.tar"
    numbered.tar(tmp_path / place / "video" / part, videos)
    numbered.tar(tmp_path / place / "metas" / part, dict(reversed(metas.items())))
    numbered.tar(tmp_path / place / "t5_xxl" / part, {f"{keys[0]}.pickle": b"\x80never"})
    train, val = both(tmp_path)
    whole = train if len(train) else val  # one source, so all on one side
    assert len(train) + len(val) == len(whole) == 3
    assert [read(whole, k) for k in range(3)] == [
        (list(range(k, k + 9)), f"clip {k}") for k in range(3)
    ]
    assert whole.captioned.all()


def test_clips_of_one_source_are_held_out_together(tmp_path):
    members = {}
    for k in range(1000):
        members[f"{k:04d}.jpg"] = b"\xff\xd8broken"
        members[f"{k:04d}.json"] = {"source_video": f"film {k // 4}"}
    numbered.tar(tmp_path / "a.tar", members)
    train, val = both(tmp_path)
    films = [{int(key) // 4 for key in one.keys.to_pylist()} for one in (train, val)]
    assert not films[0] & films[1]
    assert len(films[0] | films[1]) == 250
    assert 0 < len(val) < 60  # 2 % are 20
    assert (train.width == 0).all()  # can't be opened, as the buckets' table will say


def test_a_folder_that_is_split_already_is_taken_as_it_is(tmp_path):
    for split, number in (("train", 1), ("val", 2)):
        clip = {"a.mp4": numbered.clip(9, start=number), "a.txt": "x"}
        numbered.tar(tmp_path / split / "0.tar", clip)
    train, val = both(tmp_path)
    assert read(train, 0)[0][0] == 1
    assert read(val, 0)[0][0] == 2
    assert len(train) == len(val) == 1


def test_a_sample_without_media_and_one_without_caption_are_told_apart(tmp_path):
    members = {"a.json": "{}", "b.mp4": numbered.clip(9), "c.png": numbered.image(3)}
    numbered.tar(tmp_path / "a.tar", members | {"c.json": {"caption": "three"}})
    columns = foreign.scanned(str(tmp_path / "a.tar"))[1]
    assert columns["key"].to_pylist() == ["b", "c"]
    assert columns["captioned"].tolist() == [False, True]
    assert columns["frames"].tolist() == [9, 1]


def test_a_broken_json_costs_its_sample_and_a_broken_tar_is_an_error(tmp_path):
    numbered.tar(tmp_path / "a.tar", {"a.mp4": numbered.clip(9), "a.json": b"{"})
    assert foreign.scanned(str(tmp_path / "a.tar"))[1]["width"].tolist() == [0]
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:1500])
    with pytest.raises(UsageError, match=r"b.tar: can't be read"):
        foreign.scanned(str(tmp_path / "b.tar"))


def test_sizes_are_those_of_the_upright_picture(tmp_path):
    zoo.rotated(tmp_path / "phone.mp4")
    zoo.ffmpeg(*zoo.moving("96x64"), "-vf", "setsar=2", *zoo.X264, tmp_path / "wide.mp4")
    for name, size in (("phone", (180, 320)), ("wide", (192, 64))):
        data = (tmp_path / f"{name}.mp4").read_bytes()
        assert foreign.probed(io.BytesIO(data), "mp4")[:2] == size, name


@pytest.mark.parametrize("told", [[], {"windows": 3}, {"captions": {}}, {"caption": None}])
def test_json_of_any_kind_has_captions_or_none(told):
    assert foreign.captions(told if isinstance(told, dict) else {}) == []
    assert json.dumps(told)
