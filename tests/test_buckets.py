"""Buckets: the largest that a clip fills, in sizes that hold whole patches."""

import math

import pytest

from curation import shards


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


@pytest.mark.parametrize("name", ["0p-1f-16x9", "480p", "480p-81f-2x1", "481p-81f-1x1", ""])
def test_a_name_that_is_no_bucket_s_is_refused(name):
    with pytest.raises(ValueError, match="no bucket"):
        shards.bucket_size(name)


def test_the_published_sizes_are_met():
    assert shards.bucket_size("480p-81f-16x9") == (832, 480)
    assert shards.bucket_size("480p-1f-9x16") == (480, 832)
    assert shards.bucket_size("720p-81f-16x9") == (1280, 720)
