"""Which size and length a sample is trained at, and the table that says why others are not."""

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from curation.buckets import ASPECTS as CURATED
from curation.buckets import FRAMES, bucket_size
from recipes.load import UsageError, load
from recipes.training import Buckets, Fit
from tests.rows_of import index
from training import allotment, buckets
from training.buckets import REASONS, assign
from training.index import subset
from training.stream import pool


def settings(*arguments: str) -> Buckets:
    return load(Buckets, list(arguments))


def names(found) -> list[str]:
    """Of each row its bucket, or why it has none."""
    return [
        found.buckets[number].name if number >= 0 else REASONS[reason].partition(" (")[0]
        for number, reason in zip(found.number.tolist(), found.reason.tolist(), strict=True)
    ]


def assigned(config: Buckets, captions: bool = True, longest=None, as_images=False, **columns):
    some = buckets.buckets(config)
    rows = index(**columns)
    return names(
        assign(rows, some, config, captions=captions, longest=longest, as_images=as_images)
    )


def test_480p_has_curation_s_sizes_and_lengths_and_one_clip_fills_the_tokens():
    config = settings()
    some = buckets.buckets(config)
    assert {(one.width, one.height) for one in some} == {
        bucket_size(f"480p-1f-{aspect}") for aspect in CURATED
    }
    assert {one.frames for one in some} == set(FRAMES)
    assert max(one.tokens for one in some) == config.tokens == 32_760  # the report's, §4.2
    assert buckets.ASPECTS == CURATED


def test_a_whole_480p_table_has_every_size_and_every_length():
    aspects = [(2560, 1080), (1920, 1080), (1440, 1080), (1080, 1080)]
    aspects += [(h, w) for w, h in aspects[:3]]
    lengths = (17, 33, 49, 65, 81)
    clips = [(size, frames) for size in aspects for frames in (*lengths, 200)]
    config = settings()
    some = buckets.buckets(config)
    rows = index(sizes=[size for size, _ in clips], frames=[frames for _, frames in clips])
    found = assign(rows, some, config, captions=True)
    assert (found.reason == 0).all()
    videos = {n for n, one in enumerate(some) if not one.is_image}
    assert set(found.number.tolist()) == videos
    for (size, frames), number in zip(clips, found.number.tolist(), strict=True):
        one = some[number]
        assert one.frames == max(length for length in lengths if length <= frames)
        near = min(some, key=lambda b, s=size: abs(np.log(b.width / b.height / (s[0] / s[1]))))
        assert (one.width, one.height) == (near.width, near.height)
    phase = allotment.Phase(
        0,
        pool("image", rows, found, True, config.tokens),
        pool("video", rows, found, False, config.tokens),
    )
    text = shown(allotment.table(rows, found, [phase], 1, 0.2, 64))
    assert all(some[number].name in text for number in videos)
    assert "0 of 42 samples are dropped" in text
    assert "832x480x81" in text
    assert "32,760" in text


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ((1920, 1080), "832x480x81"),
        ((854, 480), "832x480x81"),
        ((3840, 1600), "960x416x81"),
        ((1280, 546), "960x416x81"),
        ((1080, 1920), "480x832x81"),
        ((640, 640), "624x624x81"),
        ((640, 480), "smaller than every size"),
        ((640, 360), "smaller than every size"),
        ((4000, 480), "of another shape than every size"),
    ],
)
def test_a_clip_goes_to_the_aspect_nearest_to_its_own(size, name):
    assert assigned(settings("frames=81"), sizes=[size], frames=[81]) == [name]


def test_the_largest_size_that_a_clip_fills_is_taken():
    config = settings("sizes=480p,720p", "frames=17", "tokens=75600")
    sizes = [(1920, 1080), (1280, 720), (1279, 719), (1000, 600), (700, 400)]
    found = assigned(config, sizes=sizes, frames=[17])
    assert found == ["1280x720x17"] * 3 + ["832x480x17", "smaller than every size"]


@pytest.mark.parametrize("enlarge", [1.0, 1.3, 2.0])
def test_a_clip_is_enlarged_no_more_than_allowed(enlarge):
    config = settings("sizes=128x128", "frames=9", f"enlarge={enlarge}")
    sizes = [(side, side) for side in range(60, 140)]
    found = assigned(config, sizes=sizes, frames=[9])
    for (side, _), name in zip(sizes, found, strict=True):
        assert (name == "128x128x9") == (128 / side <= enlarge * buckets.ROUNDING)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.8])
def test_a_clip_loses_no_more_of_its_picture_than_allowed(cut):
    config = settings("sizes=64x64", "frames=9", f"cut={cut}")
    sizes = [(64, height) for height in range(64, 640, 7)]
    found = assigned(config, sizes=sizes, frames=[9])
    for (_, height), name in zip(sizes, found, strict=True):
        assert (name == "64x64x9") == (64 / height >= 1 - cut)


def test_a_length_is_the_greatest_that_a_clip_has_at_16_a_second():
    config = settings("sizes=64x64", "frames=1,9,17,81")
    found = assigned(config, frames=(8, 9, 16.5, 17, 80, 81, 4000))
    short = "shorter than every length"
    assert found == [short, *(f"64x64x{n}" for n in (9, 17, 17, 17, 81, 81))]


def test_growth_lets_in_longer_clips_and_drops_none():
    config = settings("sizes=64x64", "frames=1,9,17", "growth.0=9")
    clips = {"frames": (9, 17, 1), "media": ("mp4", "mp4", "jpg")}
    assert assigned(config, longest=9, **clips) == ["64x64x9", "64x64x9", "64x64x1"]
    assert assigned(config, longest=17, **clips) == ["64x64x9", "64x64x17", "64x64x1"]
    assert buckets.phases(config) == [(0, 9)]
    assert buckets.phases(settings("frames=1,9")) == [(0, 9)]
    with pytest.raises(UsageError, match="first step"):
        buckets.phases(settings("growth.5=9"))
    with pytest.raises(UsageError, match="as names"):
        buckets.phases(settings("growth.now=9"))


@pytest.mark.parametrize(
    ("recipe", "frames", "expected", "largest"),
    [
        (
            "vae-finetune",
            33,
            [f"{size}x{n}" for size in ("256x256", "448x256", "832x480") for n in (5, 9, 17, 33)],
            "832x480x33",
        ),
        ("sft", 81, ["832x480x81", "1280x720x81"], "1280x720x81"),
    ],
)
def test_mixed_clips_go_to_all_that_they_fill_in_equal_shares(recipe, frames, expected, largest):
    config = load(Fit, [f"recipe={recipe}"]).buckets
    clips = {"count": 6000, "sizes": [(1280, 720)], "frames": (frames,)}
    found = Counter(assigned(config, captions=False, **clips))
    assert found.keys() == {*expected}
    mean = 6000 / len(expected)
    assert all(abs(count - mean) < 5 * mean**0.5 for count in found.values()), found
    config.mixed = []
    assert {*assigned(config, captions=False, **clips)} == {largest}


def test_mixed_clips_go_to_nothing_that_they_do_not_fill():
    config = settings("sizes=64x64,256p,480p", "frames=1,5,9,17", "mixed=sizes,frames")
    sizes = [(1280, 720), (500, 280), (60, 60), (2000, 70)]
    given = {"sizes": sizes, "frames": (30, 30, 30, 30, 9, 9, 9, 9)}
    found = np.array(assigned(config, count=4000, **given)).reshape(-1, 8).T
    small, other = "smaller than every size", "of another shape than every size"
    assert [{*one} for one in found[2:4]] == [{small}, {other}]
    videos = {f"{size}x{n}" for size in ("64x64", "448x256", "832x480") for n in (5, 9, 17)}
    assert {*found[0]} == videos
    assert {*found[1]} == {one for one in videos if not one.startswith("832")}
    assert {*found[4]} == {one for one in videos if not one.endswith("17")}


def test_mixed_sizes_leave_lengths_and_mixed_lengths_leave_sizes():
    given = {"count": 200, "sizes": [(1280, 720)], "frames": (30,)}
    keys = ("sizes=256p,480p", "frames=5,9")
    found = {*assigned(settings(*keys, "mixed=sizes"), **given)}
    assert found == {"448x256x9", "832x480x9"}
    found = {*assigned(settings(*keys, "mixed=frames"), **given)}
    assert found == {"832x480x5", "832x480x9"}


def test_mixed_images_and_frames_of_videos_go_to_all_sizes():
    config = settings("sizes=64x64", "image_sizes=64x64,256p", "frames=1,9", "mixed=sizes,frames")
    given = {"count": 1000, "sizes": [(1280, 720)], "frames": (9,)}
    for more in ({"media": ("jpg",)}, {"as_images": True}):
        found = Counter(assigned(config, **given | more))
        assert found.keys() == {"64x64x1", "448x256x1"}
        assert min(found.values()) > 400


def test_growth_lets_mixed_clips_in_length_by_length():
    config = settings("sizes=64x64,256p", "frames=5,9,17", "mixed=sizes,frames")
    given = {"count": 3000, "sizes": [(1280, 720)], "frames": (17,)}
    sizes = []
    for longest, lengths in ((5, {"5"}), (9, {"5", "9"}), (17, {"5", "9", "17"})):
        found = assigned(config, longest=longest, **given)
        both = [one.rpartition("x") for one in found]
        sizes.append([size for size, _, _ in both])
        counts = Counter(length for _, _, length in both)
        assert counts.keys() == lengths
        assert max(counts.values()) < 1.15 * min(counts.values())
    assert sizes[0] == sizes[1] == sizes[2]


def test_what_is_cached_stays_at_its_size_and_length_where_others_are_mixed():
    config = settings("sizes=64x64,128x64", "frames=1,9,17", "mixed=sizes,frames")
    columns = {"count": 300, "media": ("safetensors",), "sizes": [(64, 64), (128, 64)]}
    assert {*assigned(config, frames=(17,), **columns)} == {"64x64x17", "128x64x17"}
    assert assigned(config, frames=(17, 9), **columns)[:2] == ["64x64x17", "128x64x9"]


def test_a_clip_is_drawn_by_its_key_in_every_process_and_beside_whatever_others():
    config = settings("sizes=64x64,256p", "frames=5,9,17", "mixed=sizes,frames")
    some = buckets.buckets(config)
    rows = index(200, sizes=[(1280, 720)], frames=(17,))
    here = assign(rows, some, config, captions=True).number
    part = np.arange(199, 0, -3)
    moved = assign(subset(rows, part), some, config, captions=True).number
    assert moved.tolist() == here[part].tolist()
    code = """
from recipes.load import load
from recipes.training import Buckets
from tests.rows_of import index
from training.buckets import assign, buckets
config = load(Buckets, ["sizes=64x64,256p", "frames=5,9,17", "mixed=sizes,frames"])
rows = index(200, sizes=[(1280, 720)], frames=(17,))
print(assign(rows, buckets(config), config, captions=True).number.tolist())
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == str(here.tolist()), done.stderr


def test_every_reason_is_told():
    config = settings("sizes=64x64", "frames=9")
    columns = {
        "sizes": [(64, 64), (0, 0), (64, 64), (40, 64), (64, 900), (64, 64), (64, 64), (64, 64)],
        "frames": (9, 9, 9, 9, 9, 3, 1, 9),
        "captioned": (True, True, False, *[True] * 5),
        "media": (*["mp4"] * 6, "jpg", "mp4"),
        "weight": (*[1.0] * 7, 0.0),
    }
    found = assigned(config, **columns)
    assert found == [
        "64x64x9",
        "can't be opened",
        "has no caption",
        "smaller than every size",
        "of another shape than every size",
        "shorter than every length",
        "an image, and no length is 1",
        "its sampling weight is 0",
    ]
    assert assigned(config, captions=False, **columns)[2] == "64x64x9"


def test_videos_stand_in_for_images_only_if_they_are_told_to():
    config = settings("sizes=64x64", "frames=1")
    assert assigned(config, frames=(9,)) == ["a video, and every length is 1"]
    assert assigned(config, frames=(9, 3), as_images=True) == ["64x64x1"] * 2


def test_images_may_have_sizes_of_their_own():
    config = settings("sizes=192p", "image_sizes=256p", "frames=1,17", "tokens=8000")
    found = assigned(
        config,
        sizes=[(1920, 1080), (1920, 1080), (336, 192), (336, 192)],
        frames=(17, 1, 17, 1),
        media=("mp4", "jpg", "mp4", "jpg"),
    )
    assert found == ["336x192x17", "448x256x1", "336x192x17", "smaller than every size"]
    names = {one.name for one in buckets.buckets(config) if one.is_image}
    assert "448x256x1" in names
    assert "336x192x1" not in names
    with pytest.raises(UsageError, match=r"buckets.image_sizes=9p"):
        buckets.buckets(settings("image_sizes=9p"))


def test_cached_latents_keep_their_size_and_are_cut_to_any_shorter_length():
    config = settings("sizes=64x64,128x64", "frames=1,9,17")
    columns = {
        "media": ("safetensors",),
        "sizes": [(64, 64), (128, 64), (80, 64), (64, 64)],
        "frames": (17, 9, 9, 1),
    }
    other = "cached at a size that is none of these"
    assert assigned(config, **columns) == ["64x64x17", "128x64x9", other, "64x64x1"]
    assert assigned(config, longest=9, **columns)[0] == "64x64x9"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sizes=100x64"], "multiples of 16"),
        (["sizes=333p"], "192p, 256p, 480p, 720p"),
        (["sizes=wide"], "width x height"),
        (["frames=8"], "4k[+]1"),
        (["frames="], "at least one"),
        (["tokens=32759"], "has 32760"),
    ],
)
def test_a_mistake_in_the_buckets_is_told(arguments, line):
    with pytest.raises(UsageError, match=line):
        buckets.buckets(settings(*arguments))


def shown(table) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(table)
    return out.getvalue()


def test_the_table_says_what_is_dropped_and_why():
    config = settings("sizes=64x64", "frames=1,9,17", "growth.0=9", "growth.500=17", "tokens=480")
    rows = index(
        100,
        sizes=[(64, 64), (64, 64), (32, 32), (64, 64), (64, 64)],
        frames=(9, 17, 9, 3, 1),
        media=("mp4", "mp4", "mp4", "mp4", "jpg"),
        weight=(0.5,),
    )
    some = buckets.buckets(config)
    phases = []
    for step, longest in buckets.phases(config):
        found = assign(rows, some, config, captions=True, longest=longest)
        both = (pool(n, rows, found, n == "image", config.tokens) for n in ("image", "video"))
        phases.append(allotment.Phase(step, *both))
    text = shown(allotment.table(rows, found, phases, 2, 0.2, 0))
    line = {row.split()[0]: row.split()[1:] for row in text.splitlines() if row.startswith(" 64x")}
    assert line["64x64x9"] == ["10", "480", "40", "20", "20", "10"]
    assert line["64x64x17"] == ["6", "480", "–", "–", "20", "10"]
    assert line["64x64x1"] == ["30", "480", "20", "10", "20", "10"]
    assert "from step 500" in text
    assert "40 of 100 samples are dropped (40.0%)" in text
    assert "smaller than every size (buckets.enlarge)" in text
    assert "k2" in text
    assert "shorter than every length (buckets.frames)" in text
    assert "k3" in text
    assert "no held-out clips" in text
    # 10 videos of 17 frames and 10 of 9 an epoch: two batches and one
    assert "an epoch of videos: 3 batches, 2 steps" in text


def test_the_table_says_that_clips_are_mixed_and_which_tars_are_cut_off():
    config = settings("sizes=64x64", "frames=9", "mixed=sizes,frames")
    rows = index()
    found = assign(rows, buckets.buckets(config), config, captions=True)
    phase = allotment.Phase(0, *(pool(n, rows, found, n == "image", 480) for n in ("image", "v")))
    asked = (rows, found, [phase], 1, 0.2, 0)
    text = shown(allotment.table(*asked, config.mixed, ["a.tar: cut off at byte 7"]))
    assert "each clip is drawn by its key among all sizes and frames that it fills" in text
    assert "1 tar can't be read to the end, what precedes it is used: a.tar: cut off" in text
    text = shown(allotment.table(*asked))
    assert "drawn" not in text
    assert "tar" not in text


def test_mean_tokens_are_those_of_the_batches_that_come():
    config = load(Fit, ["buckets.sizes=64x64", "buckets.frames=1,9", "buckets.tokens=480"])
    config.data.image_share = 0.25
    rows = index(40, frames=(9, 1), media=("mp4", "jpg"))
    found = assign(rows, buckets.buckets(config.buckets), config.buckets, captions=True)
    phase = allotment.Phase(
        0, *(pool(n, rows, found, n == "image", 480) for n in ("image", "video"))
    )
    # 20 videos of 48 tokens in two batches, 20 images of 16 in one
    assert allotment.tokens(phase, config) == pytest.approx(0.75 * 480 + 0.25 * 320)
