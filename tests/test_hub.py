"""The videos and images of a Hugging Face dataset are sources, with their captions."""

import gc
from pathlib import Path

import pytest

from curation import sources
from recipes.load import UsageError
from tests.finding import content, find, names, put, texts


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    import datasets

    cache = str(tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(cache))
    datasets.disable_progress_bars()
    sources.hub.load.cache_clear()
    yield datasets
    sources.hub.load.cache_clear()


def records(datasets):
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "clip": datasets.Video(decode=False),
            "caption": datasets.Value("string"),
            "both": datasets.List(datasets.Value("string")),
        }
    )
    rows = {
        "id": [0, 1, 2],
        "clip": [
            {"bytes": b"zero", "path": "猫 (1).mp4"},
            {"bytes": b"one", "path": None},
            {"bytes": b"", "path": "x/two.mp4"},
        ],
        "caption": ["a cat", "一只狗", None],
        "both": [["a cat", "一只猫"], [], []],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", ["parquet", "folder", "disk"])
def test_a_datasets_videos_are_sources_with_their_captions(dataset, tmp_path, kind):
    where = tmp_path / "数据 set"
    if kind == "disk":
        records(dataset).save_to_disk(where)
    else:
        where.mkdir()
        records(dataset).to_parquet(where / "train.parquet")
        where = where / "train.parquet" if kind == "parquet" else where
    found = find(f"datasets:{where}")
    # saving to disk, `datasets` keeps a path's last part alone
    two = "two.mp4" if kind == "disk" else "x/two.mp4"
    assert names(found) == ["train/00000001", two, "猫 (1).mp4"]
    assert [texts(one) for one in found] == [["一只狗"], [], ["a cat"]]
    assert [one.bytes for one in found] == [3, 0, 4]
    assert [content(one) for one in found] == [b"one", b"", b"zero"]
    assert [c.language for c in found[0].captions] == ["zh"]


def test_a_datasets_caption_column_may_hold_lists_and_splits_are_named(dataset, tmp_path):
    splits = dataset.DatasetDict({"val": records(dataset), "test": records(dataset)})
    splits.save_to_disk(tmp_path / "ds")
    with pytest.raises(UsageError, match="val, test"):
        find(f"datasets:{tmp_path / 'ds'}")
    found = find(f"datasets:{tmp_path / 'ds'}:test", column="both")
    assert names(found)[0] == "test/00000001"
    assert texts(found[2]) == ["a cat", "一只猫"]


# `datasets` leaves metadata.csv to be closed by the garbage collector
@pytest.mark.filterwarnings("ignore:.*metadata.csv:pytest.PytestUnraisableExceptionWarning")
def test_a_folder_of_images_through_datasets_names_files_that_stay_where_they_are(
    dataset, tmp_path
):
    put(tmp_path / "im" / "train" / "a.png", b"png")
    put(tmp_path / "im" / "train" / "metadata.csv", "file_name,caption\na.png,a dot\n")
    (one,) = find(f"datasets:{tmp_path / 'im'}")
    assert (one.name, texts(one)) == ("train/a.png", ["a dot"])
    assert one.uri == str(tmp_path / "im" / "train" / "a.png")
    assert content(one) == b"png"
    sources.hub.load.cache_clear()
    gc.collect()  # here, where that is expected, and not in whatever test comes next


def test_a_dataset_without_videos_or_that_is_missing_is_one_line(dataset, tmp_path):
    dataset.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "ds")
    with pytest.raises(UsageError, match=r"no column of type Video or Image among text"):
        find(f"datasets:{tmp_path / 'ds'}")
    with pytest.raises(UsageError, match="cannot be loaded") as error:
        find(f"datasets:{tmp_path / 'missing'}")
    assert "\n" not in str(error.value)
