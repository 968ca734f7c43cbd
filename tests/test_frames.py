"""The frames that are shown, and the part of the picture that fills the bucket."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from tests import numbered, zoo
from training import frames
from training.batch import Bucket
from training.frames import BrokenError, Stamps, View, fitted, shown, video

NINE = Bucket(64, 64, 9)


def read(data: bytes, bucket: Bucket = NINE, place: float = 0.0, fps: float = 16.0, box=None):
    return video(data, bucket, fps, place, box)[0]


def by_hand(stamps: list[float], first: float, count: int, fps: float = 16.0) -> list[int]:
    """The frame that a player shows at each time."""
    times = [first + k / fps for k in range(count)]
    return [max(k for k, one in enumerate(stamps) if one <= t + 1e-5) for t in times]


@pytest.mark.parametrize("fps", [8, 12, 16, 24, 25, 30000 / 1001, 30, 50, 60])
def test_frames_are_those_shown_at_16_a_second_whatever_the_rate(fps):
    stamps = [k / fps for k in range(int(fps) + 1)]
    data = numbered.clip(stamps, fps)
    assert numbered.numbers(read(data, place=0)) == by_hand(stamps, 0, 9)
    half = numbered.numbers(read(data, place=0.5))
    first = int(0.5 * (int(np.ceil(len(stamps) / fps * 16 - 1e-3)) - 8))
    assert half == by_hand(stamps, first / 16, 9)


def test_a_variable_rate_is_no_special_case():
    draw = np.random.default_rng(3)
    stamps = [0.0, *np.cumsum(draw.uniform(0.01, 0.12, 39)).round(3).tolist()]
    found = numbered.numbers(read(numbered.clip(stamps, 25), Bucket(64, 64, 17)))
    assert found == by_hand(stamps, 0, 17)
    assert len({b - a for a, b in itertools.pairwise(found)}) > 1


@pytest.mark.parametrize(
    "options", [{}, {"g": "5"}, {"bf": "3", "g": "12"}, {"tune": "zerolatency"}]
)
def test_frames_that_refer_to_one_another_come_out_in_the_order_they_are_shown(options):
    data = numbered.clip(60, 24, **options)
    assert numbered.numbers(read(data, place=0.9)) == by_hand(
        [k / 24 for k in range(60)], 28 / 16, 9
    )


def test_frames_that_an_edit_list_hides_are_not_shown(tmp_path):
    (tmp_path / "whole.mp4").write_bytes(numbered.clip(64, 16, g="32"))
    cut = ["-ss", "0.5", "-i", tmp_path / "whole.mp4", "-c", "copy", tmp_path / "cut.mp4"]
    zoo.ffmpeg(*cut)  # the copied stream begins at the key frame before, and says so
    assert numbered.numbers(read((tmp_path / "cut.mp4").read_bytes())) == list(range(8, 17))


def test_a_window_lies_anywhere_in_a_clip_with_the_same_chance():
    data = numbered.clip(20, 16)
    first = [numbered.numbers(read(data, place=p))[0] for p in (0, 1 / 24, 0.5, 23 / 24, 1)]
    assert first == [0, 0, 6, 11, 11]
    stamps = Stamps(np.arange(20), np.arange(20) / 16, 20 / 16)
    starts = [frames._first(stamps.end_s, 9, 16, (k + 0.5) / 120) for k in range(120)]
    assert np.bincount(starts).tolist() == [10] * 12


def test_a_frame_that_ends_where_the_next_begins_is_not_shown_for_it():
    times = np.arange(48) / 48 + 1e-6  # stamps are rounded, here up
    assert shown(times, 0, 9, 16).tolist() == list(range(0, 27, 3))


def test_a_clip_that_is_too_short_says_so():
    with pytest.raises(BrokenError, match=r"8 frames at 16 a second; its bucket wants 9"):
        read(numbered.clip(8, 16))


def test_a_length_that_is_told_decides_but_for_what_is_not_there():
    data = numbered.clip(8, 16)
    found, _ = video(data, NINE, 16, 0, None, 9 / 16)  # the last frame may be shown twice as long
    assert numbered.numbers(found) == [*range(8), 7]
    with pytest.raises(BrokenError, match="9 frames at 16 a second; its bucket wants 13"):
        video(data, Bucket(64, 64, 13), 16, 0, None, 1.0)
    last, _ = video(numbered.clip(20, 16), NINE, 16, 1.0, None, 12 / 16)
    assert numbered.numbers(last)[0] == 3  # nothing after the twelfth


def test_a_clip_that_is_cut_off_is_broken_wherever_it_is_cut():
    data = numbered.clip(17, 16, movflags="")
    for length in (0, 100, len(data) // 2, len(data) - 200):
        with pytest.raises((BrokenError, OSError, ValueError)):
            read(data[:length])


def test_a_wide_picture_fills_the_bucket_and_loses_both_sides_alike():
    data = numbered.clip(9, size=(128, 64), start=0b00111100)
    found = read(data, Bucket(64, 64, 9))
    # of eight stripes, the middle four remain, each twice as wide
    assert found.shape == (3, 9, 64, 64)
    assert found[:, 0, :, 2:-2].float().mean() > 250


def test_a_stored_box_is_what_fills_the_bucket():
    data = numbered.clip(9, size=(128, 128), start=0b00001100)
    found = read(data, Bucket(32, 32, 9), box=(32, 16, 32, 32))
    assert found[:, 0, :, 1:-1].float().mean() > 250
    beside = read(data, Bucket(32, 32, 9), box=(64, 16, 32, 32))
    assert beside[:, 0, :, 2:].float().mean() < 5


def test_a_view_shows_the_part_that_it_says_and_mirrors_it():
    data = numbered.clip(9, size=(128, 64), start=0b01100000)  # the 6th and 7th of eight stripes
    bucket = Bucket(32, 32, 9)

    def bright(view: View) -> float:
        found, _ = video(data, bucket, 16, 0, view=view)
        return found[:, 0].float().mean().item() / 255

    # magnified twice, 32 pixels are two stripes; x is the share of the other 96 that is cut off
    assert bright(View(2, 80 / 96, 0.5)) > 0.97
    assert bright(View(2, 0, 0.5)) < 0.03
    left = video(data, bucket, 16, 0, view=View(2, 64 / 96, 0.5))[0]
    right = video(data, bucket, 16, 0, view=View(2, 64 / 96, 0.5, flip=True))[0]
    assert (left.flip(-1) == right).all()
    assert left[..., :14].float().mean() < 10 < 240 < left[..., 18:].float().mean()


@pytest.mark.parametrize("size", [(64, 64), (144, 81), (200, 1000), (33, 40)])
@pytest.mark.parametrize("box", [None, (3, 2, 30, 37)])
def test_a_view_never_leaves_its_box_nor_enlarges(size, box):
    plain = fitted(size, (32, 32), box)
    for zoom, x, y in itertools.product((1, 1.3, 5), (0, 0.4, 1), (0, 0.7, 1)):
        fit = fitted(size, (32, 32), box, View(zoom, x, y))
        assert max(1, plain.width / size[0]) * size[0] + 1 >= fit.width >= plain.width
        # the box, or all that there is, in the scaled picture
        left, top, across, down = np.array(box or (0, 0, *size)) * fit.width / size[0]
        assert left - 1 <= fit.left <= left + across - 32 + 1
        assert top - 1 <= fit.top <= top + down - 32 + 1


def test_an_image_shows_the_view_too():
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[:32, 32:] = 255
    data = io.BytesIO()
    Image.fromarray(rgb).save(data, "PNG")
    found = frames.image(data.getvalue(), Bucket(32, 32, 1), view=View(2, 1, 0))
    assert (found == 255).all()


@pytest.mark.parametrize("box", [(0, 0, 65, 66), (-1, 0, 9, 9), (0, 0, 0, 9)])
def test_a_box_that_is_not_within_the_picture_is_refused(box):
    with pytest.raises(BrokenError, match="crop box"):
        read(numbered.clip(9), box=box)


def checkers(side: int) -> np.ndarray:
    return (np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8)


def test_fine_patterns_turn_grey_when_they_shrink_and_do_not_alias():
    file = io.BytesIO()
    Image.fromarray(np.stack([checkers(128)] * 3, -1)).save(file, "PNG")
    still = frames.image(file.getvalue(), Bucket(64, 64, 1))
    assert (still.float() - 127.5).abs().max() <= 1
    out = io.BytesIO()
    with frames.av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width = stream.height = 128
        stream.pix_fmt, stream.options = "yuv420p", {"qp": "0"}
        for _ in range(9):
            frame = frames.av.VideoFrame.from_ndarray(np.stack([checkers(128)] * 3, -1), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert (read(out.getvalue()).float() - 127.5).abs().max() <= 3


def test_phone_video_stands_upright(tmp_path):
    zoo.rotated(tmp_path / "phone.mp4")
    zoo.ffmpeg("-i", tmp_path / "phone.mp4", "-c:v", "libx264", "-qp", "8", tmp_path / "up.mp4")
    bucket = Bucket(176, 320, 9)  # standing, as it is shown
    turned, upright = (
        read((tmp_path / name).read_bytes(), bucket).float() for name in ("phone.mp4", "up.mp4")
    )
    assert (turned - upright).abs().mean() < 3
    assert (turned.flip(2) - upright).abs().mean() > 30


def test_pixels_that_are_not_square_are_shown_as_they_are_meant(tmp_path):
    (tmp_path / "flat.mp4").write_bytes(numbered.clip(9, start=0b00111100))
    wide = tmp_path / "wide.mp4"
    zoo.ffmpeg("-i", tmp_path / "flat.mp4", "-vf", "setsar=2", *zoo.X264, "-crf", "10", wide)
    found = read(wide.read_bytes())  # shown 128 pixels wide, of which the middle 64 remain
    assert found[:, 0, :, 2:-2].float().mean() > 250


def test_colours_are_those_that_ffmpeg_shows(tmp_path):
    for rgb in ((255, 0, 0), (0, 128, 0), (30, 60, 200)):
        out = tmp_path / "plain.mp4"
        hexed = "{:02x}{:02x}{:02x}".format(*rgb)
        source = f"color=0x{hexed}:size=64x64:rate=16:duration=1"
        zoo.ffmpeg("-f", "lavfi", "-i", source, *zoo.X264, out)
        found = read(out.read_bytes())[:, 4].float().mean((1, 2))
        assert np.abs(found.numpy() - rgb).max() < 4


def test_a_transparent_picture_is_laid_on_white_and_a_turned_one_stands():
    file = io.BytesIO()
    clear = np.zeros((64, 64, 4), np.uint8)
    clear[:, 32:] = (0, 0, 255, 255)
    Image.fromarray(clear).save(file, "PNG")
    found = frames.image(file.getvalue(), Bucket(64, 64, 1))
    assert found[:, 0, 0, 0].tolist() == [255, 255, 255]
    assert found[:, 0, 0, 63].tolist() == [0, 0, 255]

    lying = Image.fromarray(numbered.picture(1, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it a quarter clockwise
    file = io.BytesIO()
    lying.save(file, "PNG", exif=exif)
    found = frames.image(file.getvalue(), Bucket(32, 64, 1))
    assert found[:, 0, :6].float().mean() > 250
    assert found[:, 0, 10:].float().mean() < 5
