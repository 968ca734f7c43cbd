"""Anything a person might have can be read, or says in one line why not."""

import itertools

import av
import numpy as np
import pytest

from curation import video
from tests import zoo


@pytest.fixture(scope="session")
def animals(tmp_path_factory):
    return zoo.stock(tmp_path_factory.mktemp("zoo"))


def walk(path, **options):
    probe = video.probe(path)
    return probe, list(video.frames(path, probe, **options))


@pytest.mark.parametrize("name", zoo.GOOD)
def test_every_kind_of_video_can_be_read(animals, name):
    errors = []
    probe, frames = walk(animals / name, errors=errors)
    assert not errors
    assert len(frames) >= 1
    assert [f.index for f in frames] == list(range(len(frames)))
    times = [f.time_s for f in frames]
    assert times[0] == 0.0
    assert all(a < b for a, b in itertools.pairwise(times))
    assert frames[0].small.shape[2] == 3
    assert frames[0].small.std() > 5, "a picture, not a grey field"
    assert probe.is_image == name.startswith("picture")


@pytest.mark.parametrize("name", zoo.BROKEN)
def test_every_broken_file_says_in_one_line_why(animals, name):
    with pytest.raises(video.VideoError) as raised:
        walk(animals / name)
    assert str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_rotated_video_stands_upright_as_ffmpeg_shows_it(animals, tmp_path):
    probe, frames = walk(animals / "rotated.mp4")
    assert (probe.width, probe.height) == (180, 320)
    shown = tmp_path / "shown.png"
    zoo.ffmpeg("-i", animals / "rotated.mp4", "-frames:v", "1", shown)  # ffmpeg turns by itself
    with av.open(str(shown)) as container:
        reference = next(container.decode(video=0)).to_ndarray(format="bgr24")
    difference = np.abs(frames[0].small.astype(int) - reference)
    assert difference.mean() < 2


def test_non_square_pixels_are_made_square(animals):
    probe, frames = walk(animals / "anamorphic.mp4")
    assert (probe.width, probe.height) == (427, 180)
    assert frames[0].small.shape == (180, 427, 3)


def test_interlaced_frames_lose_their_combs(animals):
    """Two fields of a moving picture, woven, differ line by line; deinterlaced, they do not."""

    def combs(frames) -> float:
        luma = np.stack([f.small.mean(axis=2) for f in frames[2:20]])
        odd_against_even = np.abs(luma[:, 1:-1] - (luma[:, :-2] + luma[:, 2:]) / 2)
        return float(odd_against_even.mean())

    path = animals / "interlaced.mpg"
    probe = video.probe(path)
    assert probe.interlaced
    clean = list(video.frames(path, probe))
    container, stream = video.opened(path)
    with container:
        picture = video.Picture(probe)
        woven = [
            video.Frame(i, 0, 0, picture.small(d.raw), d.raw, picture)
            for i, d in enumerate(video.decoded(container, stream))
        ]
    assert len(clean) == len(woven), "one frame in, one frame out"
    assert combs(clean) < 0.9 * combs(woven)


def test_a_variable_frame_rate_keeps_its_time_stamps(animals):
    _, frames = walk(animals / "variable rate.mkv")
    steps = np.diff([f.time_s for f in frames])
    assert steps.min() == pytest.approx(0.04, abs=0.002)
    assert steps.max() == pytest.approx(0.08, abs=0.002)


def test_a_file_cut_short_in_a_streamable_container_gives_what_it_holds(tmp_path):
    whole, half = tmp_path / "whole.mkv", tmp_path / "half.mkv"
    zoo.ffmpeg(*zoo.moving(seconds=3), *zoo.X264, whole)
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    _, frames = walk(half)
    assert 20 < len(frames) < 60


def test_damage_in_the_middle_is_counted_and_passed_over(tmp_path):
    path = tmp_path / "scratched.mkv"
    zoo.ffmpeg(*zoo.moving(seconds=4), "-g", "10", *zoo.X264, path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(1).bytes(3000)
    path.write_bytes(data)
    errors = []
    _, frames = walk(path, errors=errors)
    assert errors
    assert len(frames) > 60
    assert frames[-1].time_s > 3.5, "the end is reached"


def test_a_frame_beyond_the_pixel_limit_is_refused_before_it_is_decoded(animals):
    with pytest.raises(video.VideoError, match="320×180 exceed max_pixels=50000"):
        video.probe(animals / "plain.mp4", max_pixels=50000)


def test_luma_in_source_pixels_has_full_range(tmp_path):
    path = tmp_path / "white.mp4"
    zoo.ffmpeg("-f", "lavfi", "-i", "color=white:s=320x180:d=0.2", *zoo.X264, path)
    _, frames = walk(path)
    frame = frames[0]
    assert frame.picture.native(frame.raw).min() >= 254
    assert frame.small.min() >= 254


def test_small_frames_equal_an_area_average_of_the_full_frame(animals):
    import cv2

    probe = video.probe(animals / "plain.mp4")
    big = next(video.frames(animals / "plain.mp4", probe))
    assert big.small.shape == (180, 320, 3), "never enlarged"
    bunny = "data/samples/bunny.mp4"
    frame = next(video.frames(bunny, video.probe(bunny)))
    full = frame.raw.to_ndarray(format="bgr24")
    height, width = frame.small.shape[:2]
    reference = cv2.resize(full, (width, height), interpolation=cv2.INTER_AREA)
    assert np.abs(frame.small.astype(int) - reference).mean() < 2


def test_decord_reads_chosen_frames_of_a_short_clip(animals):
    whole = video.clip_frames(animals / "plain.mp4")
    chosen = video.clip_frames(animals / "plain.mp4", [20, 3])
    assert whole.shape == (30, 180, 320, 3)
    assert np.array_equal(chosen, whole[[20, 3]])
    with pytest.raises(video.VideoError):
        video.clip_frames(animals / "not a video.mp4")
