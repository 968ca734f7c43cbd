"""A sample is read as it was meant: its captions, its scores, what is drawn of it."""

import numpy as np
import pytest
import torch

from tests import numbered
from training import decode, foreign
from training.batch import Bucket
from training.decode import BrokenError, Taste, caption
from training.frames import View
from training.tars import Row

NINE = Bucket(64, 64, 9)


def test_a_box_is_read_from_the_json_and_only_if_it_is_one():
    assert foreign.box({"crop_box": [1, 2, 3, 4]}) == (1, 2, 3, 4)
    assert foreign.box({"crop": [1, 2, 3, 4]}) is None  # curation's says what was cut already
    for wrong in ([1, 2, 3], "all", [1, 2, 3, None], [1, 2, 3, float("nan")]):
        with pytest.raises(ValueError, match="crop_box"):
            foreign.box({"crop_box": wrong})


def test_draws_are_even_and_independent():
    found = np.array([decode.draws(3, k // 100, f"key{k % 100}") for k in range(4000)])
    assert abs(found.mean(0) - 0.5).max() < 0.02
    assert abs(np.corrcoef(found.T) - np.eye(found.shape[1])).max() < 0.06
    assert found.min() >= 0
    assert found.max() < 1


# --- what is said of it --------------------------------------------------------------------------

TWO = {
    "captions": [{"text": "red", "language": "en"}, {"text": "红", "language": "zh-CN"}],
    "scores": {"a": 1, "b": None, "c": [1], "d": True, "tier": "x"},
    "tier": "static",
}


def said(told: dict, captions: str = "any", text: bytes | None = None, draw: int = 0) -> str:
    which = decode.draws(0, draw, "key")[1]
    return caption(told, text, (0, 8), Taste(captions=captions), which)


def test_any_caption_is_drawn_and_a_language_is_preferred_where_there_is_one():
    assert {said(TWO, draw=k) for k in range(20)} == {"red", "红"}
    assert {said(TWO, "zh", draw=k) for k in range(9)} == {"红"}
    assert {said(TWO, "en", draw=k) for k in range(9)} == {"red"}
    assert said({"caption": "only this"}, "zh") == "only this"


def test_what_is_not_a_caption_is_none():
    assert said({}, text=b"beside it ") == "beside it"
    assert said({"captions": [{"text": " "}, 3, None, {"text": 4}], "caption": 5}) == ""
    assert said({"windows": [{"qwen_caption": "w", "start_frame": 0, "other": "no"}, 7]}) == "w"


def test_a_caption_of_a_window_is_that_of_the_frames_shown():
    windows = [
        {"start_frame": 0, "end_frame": 255, "qwen_caption": "first"},
        {"start_frame": 256, "end_frame": 511, "qwen_caption": "second"},
    ]
    some = foreign.captions({"windows": windows})
    assert [one["text"] for one in foreign.of_span(some, 0, 120)] == ["first"]
    assert [one["text"] for one in foreign.of_span(some, 200, 350)] == ["second"]
    assert [one["text"] for one in foreign.of_span(some, 600, 700)] == ["first", "second"]


def test_scores_are_the_numbers_among_them():
    assert decode.scores(TWO) == {"a": 1.0}
    assert decode.tier(TWO) == "static"
    assert decode.scores({"scores": 3}) == {}
    assert decode.tier({"tier": 3}) is None


# --- one row -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    place = tmp_path_factory.mktemp("one") / "a.tar"
    media = numbered.clip(20)
    numbered.tar(place, {"k.json": TWO, "k.mp4": media})
    return Row("k", "k", str(place), 0, place.stat().st_size, "mp4", 0)


def test_what_is_drawn_follows_from_seed_epoch_and_key_alone(row):
    def drawn(seed: int, epoch: int):
        found = decode.decode(row, NINE, Taste(seed=seed), epoch)
        return numbered.numbers(found.video)[0], found.prompt

    assert drawn(1, 4) == drawn(1, 4)
    epochs = [drawn(1, epoch) for epoch in range(30)]
    assert len({start for start, _ in epochs}) > 6
    assert len({text for _, text in epochs}) == 2
    assert epochs != [drawn(2, epoch) for epoch in range(30)]


def test_parts_of_a_picture_are_drawn_evenly_and_half_are_mirrored():
    taste = Taste(zoom=2, flip=True)
    views = [taste.view(*decode.draws(0, k, "key")[2:]) for k in range(2000)]
    zooms, xs, ys = np.array([(one.zoom, one.x, one.y) for one in views]).T
    assert zooms.min() >= 1
    assert zooms.max() <= 2
    assert abs(np.log2(zooms).mean() - 0.5) < 0.03
    assert abs(xs.mean() - 0.5) < 0.03
    assert abs(ys.mean() - 0.5) < 0.03
    assert 0.45 < np.mean([one.flip for one in views]) < 0.55
    assert {Taste().view(*decode.draws(0, k, "key")[2:]) for k in range(50)} == {View()}


def test_held_out_clips_are_whole_and_never_mirrored(row):
    plain = decode.decode(row, NINE, Taste(), decode.HELD_OUT).video
    for epoch, alike in ((decode.HELD_OUT, True), (0, False), (1, False)):
        small = decode.decode(row, Bucket(32, 32, 9), Taste(zoom=2), epoch).video
        whole = decode.decode(row, Bucket(32, 32, 9), Taste(), epoch).video
        assert torch.equal(small, whole) == alike
    mirrored = decode.decode(row, NINE, Taste(flip=True), decode.HELD_OUT).video
    assert torch.equal(mirrored, plain)


def test_held_out_clips_are_the_same_whatever_the_seed(row):
    found = [decode.decode(row, NINE, Taste(seed=seed), decode.HELD_OUT) for seed in range(5)]
    assert {numbered.numbers(one.video)[0] for one in found} == {6}  # of 12 windows, the middle
    assert len({one.prompt for one in found}) == 1


def test_a_bit_that_flipped_is_noticed(tmp_path):
    numbered.curated(tmp_path / "tiny", [numbered.clip(9)])
    tar = tmp_path / "tiny" / "train" / "00000.tar"
    row = Row("000-train", "000-train", str(tar), 0, tar.stat().st_size, "mp4", 0)
    assert numbered.numbers(decode.decode(row, NINE, Taste(), 0).video) == list(range(9))
    data = bytearray(tar.read_bytes())
    at = data.index(b"mdat") + 60
    data[at] ^= 1
    tar.write_bytes(data)
    with pytest.raises(BrokenError, match="checksum"):
        decode.decode(row, NINE, Taste(), 0)


def test_a_sample_without_a_caption_is_broken_for_a_dit_alone(tmp_path):
    place = numbered.tar(tmp_path / "a.tar", {"k.mp4": numbered.clip(9)})
    row = Row("k", "k", str(place), 0, place.stat().st_size, "mp4", 0)
    with pytest.raises(BrokenError, match="no caption"):
        decode.decode(row, NINE, Taste(), 0)
    assert decode.decode(row, NINE, Taste(needs_caption=False), 0).prompt == ""


@pytest.mark.parametrize("kind", ["mp4", "png", "jpg"])
def test_whatever_is_wrong_with_its_bytes_a_sample_is_read_or_broken(kind, tmp_path):
    whole = numbered.clip(9) if kind == "mp4" else numbered.image(1, kind)
    draw = np.random.default_rng(0)
    bucket = NINE if kind == "mp4" else Bucket(64, 64, 1)
    outcomes = set()
    for _ in range(120):
        data = bytearray(whole)
        for at in draw.integers(0, len(data), draw.choice([1, 4, 40])):
            data[at] = draw.integers(256)
        data = bytes(data[: draw.choice([len(data), draw.integers(len(data))])])
        place = numbered.tar(tmp_path / "a.tar", {f"k.{kind}": data, "k.txt": "x"})
        row = Row("k", "k", str(place), 0, place.stat().st_size, kind, 0)
        try:
            found = decode.decode(row, bucket, Taste(), 0)
            assert found.video.shape == (3, bucket.frames, 64, 64)
            outcomes.add("read")
        except BrokenError:
            outcomes.add("broken")
    assert outcomes == {"read", "broken"}


@pytest.mark.parametrize(
    "told", [b"{", b"[]", b"null", b'{"crop_box": 3}', b'{"captions": 3, "scores": [], "tier": 4}']
)
def test_whatever_its_json_says_a_sample_is_read_or_broken(told, tmp_path):
    place = numbered.tar(
        tmp_path / "a.tar", {"k.mp4": numbered.clip(9), "k.json": told, "k.txt": "x"}
    )
    row = Row("k", "k", str(place), 0, place.stat().st_size, "mp4", 0)
    if b"captions" in told:
        assert decode.decode(row, NINE, Taste(), 0).prompt == "x"
    else:
        with pytest.raises(BrokenError):
            decode.decode(row, NINE, Taste(), 0)
