"""GIFs and mp4 files show what they were made of."""

import io

import av
import numpy as np
import pytest
import torch
from PIL import Image

from training.movie import GAP, SIDE, beside, frames, picture, write


def moving(length=9, height=32, width=48) -> np.ndarray:
    """A bright square that moves right over a gradient."""
    row = np.linspace(40, 120, width).astype(np.uint8)
    video = np.broadcast_to(row[None, None, :, None], (length, height, width, 3)).copy()
    for number in range(length):
        video[number, 8:24, 3 * number : 3 * number + 16] = (220, 60, 40)
    return video


def decoded(data: bytes) -> list[np.ndarray]:
    image = Image.open(io.BytesIO(data))
    found = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        found.append(np.asarray(image.convert("RGB")))
    return found


def test_minus_one_is_black_and_one_is_white_and_nan_is_black():
    video = torch.tensor([-1.0, -0.002, 0.002, 1.0, 5.0, float("nan")]).reshape(1, 1, 2, 3)
    assert frames(video.expand(3, 1, 2, 3))[0, ..., 0].tolist() == [[0, 127, 128], [255, 255, 0]]


def test_a_gif_decodes_to_its_frames_in_order():
    video = moving()
    shown = np.stack(decoded(picture(video, 16.0))).astype(float)
    assert shown.shape == video.shape
    assert np.abs(shown - video).mean() < 2


def test_a_gif_has_the_colours_of_a_frame_unlike_all_others():
    video = np.zeros((33, 64, 64, 3), np.uint8)
    video[:, ::2] = 60
    video[17] = (10, 250, 30)
    assert np.abs(decoded(picture(video, 16.0))[1].astype(int) - (10, 250, 30)).max() <= 8


@pytest.mark.parametrize("fps", [8, 16, 24, 30])
def test_a_gif_lasts_as_long_as_the_video(fps):
    image = Image.open(io.BytesIO(picture(moving(length=33, width=128), fps)))
    total = 0
    for number in range(image.n_frames):
        image.seek(number)
        total += image.info["duration"]
    assert (image.n_frames, total) == (33, pytest.approx(33_000 / fps, abs=10))


def test_a_large_video_is_shown_smaller_and_in_shape():
    (shown, *_) = decoded(picture(np.zeros((2, 480, 832, 3), np.uint8), 16.0))
    assert shown.shape == (round(480 * SIDE / 832), SIDE, 3)


def test_one_frame_is_a_png_with_every_colour():
    video = moving(length=1)
    assert picture(video, 16.0).startswith(b"\x89PNG")
    assert np.array_equal(decoded(picture(video, 16.0))[0], video[0])


def test_two_videos_stand_side_by_side():
    left, right = moving(), 255 - moving()
    both = beside(left, right)
    assert np.array_equal(both[:, :, :48], left)
    assert np.array_equal(both[:, :, 48 + GAP :], right)
    assert both.shape[2] % 2 == 0


def test_an_mp4_plays_the_frames_at_their_rate(tmp_path):
    video = moving(height=64, width=96)
    path = write(tmp_path / "new" / "1-a-square", video, 16.0)
    assert path == tmp_path / "new" / "1-a-square.mp4"
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (float(stream.average_rate), stream.pix_fmt) == (16.0, "yuv420p")
        shown = np.stack([one.to_ndarray(format="rgb24") for one in file.decode(stream)])
    assert shown.shape == video.shape
    assert np.abs(shown.astype(float) - video).mean() < 5
    assert list(path.parent.iterdir()) == [path]


def test_a_single_frame_is_written_as_png(tmp_path):
    video = moving(length=1)
    path = write(tmp_path / "1.5x", video, 16.0)
    assert path.name == "1.5x.png"
    assert np.array_equal(np.asarray(Image.open(path)), video[0])
