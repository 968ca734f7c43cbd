"""Tars that others wrote are understood as they wrote them."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from recipes.load import UsageError, load
from recipes.training import Buckets, Data
from tests import numbered, zoo
from training import buckets, decode, foreign, tars
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


def test_a_clip_is_put_where_its_crop_box_fits_and_not_enlarged_to_its_whole_picture_s(tmp_path):
    boxes = {"a": None, "b": [64, 16, 64, 64], "c": [0, 0, 193, 96], "d": "all", "e": [0, 0, -9, 9]}
    members = {}
    for key, box in boxes.items():
        members[f"{key}.mp4"] = numbered.clip(9, size=(192, 96))
        members[f"{key}.json"] = {"caption": "x"} | ({"crop_box": box} if box else {})
    numbered.tar(tmp_path / "train" / "a.tar", members)
    rows = gather(Data(shards=[str(tmp_path)]), "train")
    assert rows.keys.to_pylist() == [*boxes]
    assert rows.width.tolist() == [192, 64, 192, 0, 0]
    assert rows.height.tolist() == [96, 64, 96, 0, 9]
    config = load(Buckets, ["sizes=192x96,64x64", "frames=9"])
    some = buckets.buckets(config)
    found = buckets.assign(rows, some, config, captions=True)
    where = [some[number].name if number >= 0 else None for number in found.number.tolist()]
    assert where == ["192x96x9", "64x64x9", "192x96x9", None, None]
    assert found.reason.tolist()[3:] == [buckets.BROKEN] * 2
    shown = decode.decode(rows.row(1), some[found.number[1]], Taste(), decode.HELD_OUT).video
    whole = decode.decode(rows.row(0), some[found.number[0]], Taste(), decode.HELD_OUT).video
    # pixel for pixel what the box has
    assert (shown.float() - whole[:, :, 16:80, 64:128].float()).abs().mean() < 3


def stills(folder, name: str, count: int = 4) -> Path:
    keys = {f"{name}{k}": numbered.image(k) for k in range(count)}
    both = [{f"{key}.png": data, f"{key}.txt": "x"} for key, data in keys.items()]
    return numbered.tar(folder / f"{name}.tar", {n: x for one in both for n, x in one.items()})


def spoilt(tar: Path, how: str) -> None:
    """A tar that can't be read beyond its second sample."""
    data = tar.read_bytes()
    at = [one[0].start for one in tars.scan(str(tar))][2]
    ends = {
        "cut in a sample": data[: at + 600],
        "cut in a header": data[: at + 100],
        "overwritten": data[:at] + b"\7" * 4096,
        "no tar at all": b"<html>" * 400,
    }
    tar.write_bytes(ends[how])


@pytest.mark.parametrize(
    "how", ["cut in a sample", "cut in a header", "overwritten", "no tar at all"]
)
def test_of_a_tar_that_is_cut_off_what_can_be_read_is_used_and_the_rest_is_told(tmp_path, how):
    for name in "abcd":
        stills(tmp_path / "train", name)
    spoilt(tmp_path / "train" / "b.tar", how)
    index = gather(Data(shards=[str(tmp_path)]), "train")
    known = [f"{name}{k}" for name in "abcd" for k in range(4)]
    lost = ["b0", "b1", "b2", "b3"] if how == "no tar at all" else ["b2", "b3"]
    assert index.keys.to_pylist() == [key for key in known if key not in lost]
    (told,) = index.cut_off
    assert told.startswith(f"{tmp_path}/train/b.tar: ")
    for row in range(len(index)):
        decode.decode(index.row(row), Bucket(64, 64, 1), Taste(), decode.HELD_OUT)


def test_whole_tars_are_not_told_as_cut_off(tmp_path, video2dataset):
    for index in both(video2dataset):
        assert index.cut_off == []
    long = {f"{'folder/' * 30}{k}.png": numbered.image(k) for k in range(2)}
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        tar = numbered.tar(tmp_path / "a.tar", long | {"README": "no sample"}, kind)
        assert foreign.scanned(str(tar))[3] is None
        tar.write_bytes(tar.read_bytes().rstrip(b"\0") + b"\0" * 512)  # some writers end so
        assert foreign.scanned(str(tar))[3] is None


def test_more_tars_cut_off_than_the_share_allows_stop_the_command_and_are_named(tmp_path):
    for name in "abcd":
        stills(tmp_path / "train", name)
    for name in "bd":
        spoilt(tmp_path / "train" / f"{name}.tar", "cut in a sample")
    line = (
        r"2 of 4 tars can't be read to the end, more than data.broken_share=0.01 allows: .*b.tar:"
    )
    with pytest.raises(UsageError, match=line):
        gather(Data(shards=[str(tmp_path)]), "train")
    assert len(gather(Data(shards=[str(tmp_path)], broken_share=0.5), "train")) == 12


def test_a_tar_that_is_not_there_is_an_error_and_a_lone_one_that_holds_nothing_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone.tar: can't be read: .*No such file"):
        gather(Data(shards=[str(tmp_path / "gone.tar")]), "train")
    stills(tmp_path, "a")
    spoilt(tmp_path / "a.tar", "no tar at all")
    with pytest.raises(UsageError, match=r"no sample to train on; .*a.tar: no whole tar"):
        gather(Data(shards=[str(tmp_path / "a.tar")]), "train")


def test_of_cosmos_curate_s_texts_what_precedes_the_cut_is_kept(tmp_path):
    stills(tmp_path / "video", "a")
    texts = {f"a{k}.json": {"caption": f"caption {k}"} for k in range(4)}
    spoilt(numbered.tar(tmp_path / "metas" / "a.tar", texts), "cut in a sample")
    columns, lost = foreign.scanned(str(tmp_path / "video" / "a.tar"))[1::2]
    assert columns["beside"][:, 1].astype(bool).tolist() == [True, True, False, False]
    assert lost.startswith(f"{tmp_path}/metas/a.tar: ")


def test_a_broken_json_or_name_costs_its_sample(tmp_path):
    numbered.tar(tmp_path / "a.tar", {"a.mp4": numbered.clip(9), "a.json": b"{"})
    assert foreign.scanned(str(tmp_path / "a.tar"))[1]["width"].tolist() == [0]
    with tarfile.open(
        tmp_path / "b.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as tar:
        for name in ("é.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = len(numbered.image(1))
            tar.addfile(info, io.BytesIO(numbered.image(1)))
    columns = foreign.scanned(str(tmp_path / "b.tar"))[1]
    assert columns["width"].tolist() == [0, 64]
    assert columns["key"].to_pylist() == ["?", "b"]


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
