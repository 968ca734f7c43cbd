"""What there is to train on: own shards, others' tars, here and far away; and what is missing."""

import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation.shards import index as curation_index
from recipes.load import UsageError, load
from recipes.training import Data, Fit
from tests import numbered, zoo
from training import chain, decode, tars
from training.batch import Bucket
from training.decode import Taste
from training.index import Index, gather, subset

NINE, STILL = Bucket(64, 64, 9), Bucket(64, 64, 1)


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Path:
    """Two shards of clips and images to train on, and one to validate with."""
    folder = tmp_path_factory.mktemp("curated") / "tiny"
    kinds = [numbered.clip(9, start=k) for k in range(4)]
    kinds += [numbered.image(4), numbered.image(5, "jpg"), numbered.clip(17, start=6)]
    numbered.curated(folder, kinds, "train", samples=4, sampling_weight=0.25)
    numbered.curated(folder, [numbered.clip(9, start=k) for k in (100, 101)], "val")
    return folder


def data(*places: Path | str, **more) -> Data:
    return Data(shards=[str(place) for place in places], **more)


def shows(index: Index, row: int) -> int:
    """What the first frame of a row's sample shows."""
    one = index.row(row)
    bucket = NINE if one.media == "mp4" else STILL
    found = decode.decode(one, bucket, Taste(needs_caption=False), decode.HELD_OUT)
    return numbered.numbers(found.video)[0]


def test_every_sample_of_a_profile_is_found_and_read_from_its_place(profile):
    train, val = gather(data(profile), "train"), gather(data(profile), "val")
    assert train.keys.to_pylist() == [f"{k:03d}-train" for k in range(7)]
    assert [shows(train, k) for k in range(6)] == list(range(6))
    assert [shows(val, k) for k in range(2)] == [100, 101]
    assert train.width.tolist() == [64] * 7
    assert train.frames.tolist() == [9, 9, 9, 9, 1, 1, 17]
    assert train.is_image.tolist() == [False] * 4 + [True] * 2 + [False]
    assert train.duration[0] == pytest.approx(9 / 16)
    assert (train.weight == 0.25).all()
    assert train.captioned.all()


def test_a_range_is_little_more_than_the_sample(profile):
    """What lies between its neighbours' media: its own members, and at most two small ones."""
    train = gather(data(profile), "train")
    rows = {row["key"]: row for row in curation_index(profile / "train")}
    for k in range(len(train)):
        row = train.row(k)
        others = row.stop - row.start - rows[row.key]["bytes"]
        assert 0 < others < 8_000 + tarfile.RECORDSIZE  # which a tar is filled up to
        assert {"json", "txt"} <= set(tars.sample(row))


def test_no_clip_is_too_short_for_the_length_that_its_index_says(tmp_path):
    stamps = [0.0, *np.cumsum(np.random.default_rng(1).uniform(0.02, 0.1, 40)).tolist()]
    clips = [numbered.clip(50, fps) for fps in (8, 16, 24, 25, 30000 / 1001, 60)]
    zoo.variable_rate(tmp_path / "vfr.mp4")
    clips += [numbered.clip(stamps, 25), (tmp_path / "vfr.mp4").read_bytes()]
    clips += [numbered.clip([*stamps, stamps[-1] + last], 25) for last in (0.001, 0.4)]
    (tmp_path / "whole.mp4").write_bytes(numbered.clip(64, 16, g="32"))
    cut = ["-ss", "0.5", "-i", tmp_path / "whole.mp4", "-c", "copy", tmp_path / "cut.mp4"]
    zoo.ffmpeg(*cut)  # an edit list hides what precedes it
    clips.append((tmp_path / "cut.mp4").read_bytes())
    own = numbered.curated(tmp_path / "tiny", clips)
    others = numbered.tar(tmp_path / "0.tar", {f"{k}.mp4": c for k, c in enumerate(clips)})
    for place in (own, others):
        for split in ("train", "val"):
            index = gather(data(place), split) if split == "train" or place == others else []
            for k in range(len(index)):
                frames = int(np.ceil(float(index.duration[k]) * 16 - 1e-3))
                for at in (0.0, 1.0):
                    bucket = Bucket(64, 64, 4 * ((frames - 1) // 4) + 1)
                    taste = Taste(needs_caption=False)
                    found = decode.decode(index.row(k), bucket, taste, 0, at)
                    assert found.video.shape[1] == bucket.frames


def test_a_folder_of_one_split_is_split_by_hash(profile):
    whole = profile / "train"
    train, val = gather(data(whole), "train"), gather(data(whole), "val")
    both = train.keys.to_pylist() + val.keys.to_pylist()
    assert sorted(both) == [f"{k:03d}-train" for k in range(7)]


def test_weights_of_clips_and_of_sources_are_multiplied(profile):
    twice = gather(data(profile, profile, weights=[1.0, 3.0]), "train")
    assert twice.weight.tolist() == [0.25] * 7 + [0.75] * 7
    plain = gather(data(profile, weights=[2.0], sampling_weights=False), "train")
    assert plain.weight.tolist() == [2.0] * 7


def test_keys_tell_sources_apart(profile):
    twice = gather(data(profile, profile), "train")
    keys = [twice.row(k).key for k in range(14)]
    assert len(set(keys)) == 14
    assert keys[0] == "0:000-train"
    assert keys[7] == "1:000-train"
    assert gather(data(profile), "train").row(0).key == "000-train"


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0]])
def test_weights_are_one_a_source(profile, weights):
    with pytest.raises(UsageError, match=r"data.weights"):
        gather(data(profile, profile, weights=weights), "train")


@pytest.mark.parametrize("recipe", ["tiny-vae-image", "tiny-vae"])
def test_the_weights_of_a_recipe_are_cleared_as_the_refusal_says(profile, recipe):
    given = [f"recipe={recipe}", f"data.shards={profile}"]
    one = load(Fit, given)
    one = chain.first(one) if one.chain else one
    line = r"data.weights=1,1000: wants one number, .* for each place that is read; (\S+=) \(no num"
    with pytest.raises(UsageError, match=line) as refused:
        gather(one.data, "train")
    words = re.search(line, str(refused.value))[1]
    one = load(Fit, [*given, words])
    one = chain.first(one) if one.chain else one
    assert len(gather(one.data, "train")) == 7


def test_a_subset_keeps_its_rows(profile):
    some = subset(gather(data(profile), "train"), np.array([5, 1]))
    assert [shows(some, k) for k in range(2)] == [5, 1]


# --- what is missing -----------------------------------------------------------------------------


def test_missing_shards_name_the_command_that_makes_them(tmp_path):
    line = r"no shards there; `python curation/run.py profile=480p`"
    with pytest.raises(UsageError, match=line):
        gather(data(tmp_path / "480p"), "train")
    with pytest.raises(UsageError, match=r"data/curated/shards/nowhere"):
        gather(Data(profile="nowhere"), "train")


def test_shards_that_are_not_finished_are_refused(profile, tmp_path):
    shutil.copytree(profile, tmp_path / "tiny")
    (tmp_path / "tiny" / "train" / "manifest.json").unlink()
    with pytest.raises(UsageError, match="no finished shards"):
        gather(data(tmp_path / "tiny"), "train")


def test_a_profile_that_keeps_nothing_says_so(profile, tmp_path):
    place = tmp_path / "tiny" / "train"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(json.dumps({"shards": []}))
    with pytest.raises(UsageError, match="no sample to train on; loosen `select`"):
        gather(data(tmp_path / "tiny"), "train")


def test_a_broken_index_is_told(profile, tmp_path):
    shutil.copytree(profile, tmp_path / "tiny")
    (tmp_path / "tiny" / "train" / "00001.parquet").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"00001.parquet: no index of a shard"):
        gather(data(tmp_path / "tiny"), "train")


def test_where_nothing_was_held_out_there_is_nothing_to_validate_with(profile, tmp_path):
    shutil.copytree(profile / "train", tmp_path / "tiny" / "train")
    assert len(gather(data(tmp_path / "tiny"), "val")) == 0
    assert len(gather(data(tmp_path / "tiny"), "train")) == 7


def test_samples_that_could_not_be_cut_are_left_out(profile, tmp_path):
    shutil.copytree(profile, tmp_path / "tiny")
    path = tmp_path / "tiny" / "train" / "00000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1] |= dict.fromkeys(("media", "offset", "bytes", "width")) | {"status": "failed"}
    schema = table.schema
    pq.write_table(type(table).from_pylist(rows, schema), path)
    train = gather(data(tmp_path / "tiny"), "train")
    assert train.keys.to_pylist() == [f"{k:03d}-train" for k in (0, 2, 3, 4, 5, 6)]
    assert [shows(train, k) for k in range(3)] == [0, 2, 3]


# --- others' tars --------------------------------------------------------------------------------


def test_tars_far_away_are_read_like_those_here(profile):
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(profile), "/bucket/", recursive=True)
    for place in ("memory://bucket/tiny", "memory://bucket/tiny/"):
        far, near = gather(data(place), "train"), gather(data(profile), "train")
        assert far.keys.to_pylist() == near.keys.to_pylist()
        assert [shows(far, k) for k in range(6)] == list(range(6))
    with pytest.raises(UsageError, match=r"memory://bucket/none: no shards there"):
        gather(data("memory://bucket/none"), "train")
    with pytest.raises(UsageError, match="nosuch"):
        gather(data("nosuch://bucket/none"), "train")


def test_a_tar_s_own_path_and_braces_name_tars(profile):
    one = profile / "train" / "00000.tar"
    found = gather(data(one), "train")
    more = gather(data(one), "val")
    assert len(found) + len(more) == 4
    both = profile / "train" / "{00000..00001}.tar"
    assert len(gather(data(both), "train")) + len(gather(data(both), "val")) == 7
    with pytest.raises(UsageError, match=r"00002.tar: can't be read"):
        gather(data(profile / "train" / "{00000..00002}.tar"), "train")


def test_rows_and_index_are_the_same_however_a_tar_is_read(profile):
    """The index file and a walk over the tar say the same of each sample."""
    own = gather(data(profile), "train")
    walked = gather(data(profile / "train" / "{00000..00001}.tar"), "train")
    rest = gather(data(profile / "train" / "{00000..00001}.tar"), "val")
    by_key = {own.keys[k].as_py(): k for k in range(len(own))}
    for some in (walked, rest):
        for k in range(len(some)):
            at = by_key[some.keys[k].as_py()]
            for name in ("media", "width", "height", "frames", "weight", "captioned"):
                assert getattr(some, name)[k] == getattr(own, name)[at], name
            assert some.duration[k] == pytest.approx(own.duration[at], abs=1e-4)
            assert shows(some, k) == shows(own, at)


def test_a_row_says_where_the_rest_of_it_lies(profile):
    train = gather(data(profile), "train")
    assert train.row(0).beside is None
    place = len(train.places)
    train = replace(train, places=[*train.places, "other"])
    train.beside = np.array([[place, 5, 9], *[[-1, 0, 0]] * 6])
    assert train.row(0).beside == ("other", 5, 9)
    assert train.row(1).beside is None
