"""Pictures and videos reach the model upright, covering its size, at its frame rate."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from eval import inputs
from eval.video_out import write_video
from recipes.keys import UsageError
from tests import zoo
from tests.running import ROOT


def write(path: Path, array: np.ndarray, **more) -> str:
    Image.fromarray(array).save(path, **more)
    return str(path)


def test_a_picture_of_the_size_is_left_as_it_is(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    got = inputs.image(write(tmp_path / "a.png", array), 32, 16)
    assert got.shape == (3, 16, 32)
    assert torch.equal(((got + 1) * 127.5).round().byte().permute(1, 2, 0), torch.tensor(array))


@pytest.mark.parametrize("size", [(96, 32), (32, 96), (100, 41)])
def test_a_picture_is_scaled_to_cover_and_its_middle_is_kept(tmp_path, size):
    """A picture whose colour is its place: what is at the corners tells what was cut."""
    width, height = size
    y, x = np.mgrid[:height, :width] + 0.5
    array = np.stack([x / width, y / height, 0 * x], -1) * 255
    got = inputs.image(write(tmp_path / "a.png", array.round().astype(np.uint8)), 16, 16) / 2 + 0.5
    side = min(size)
    for place, of in ((got[0, 8], width), (got[1, :, 8], height)):
        wanted = 0.5 + (torch.arange(16) + 0.5 - 8) / 16 * side / of
        assert (place - wanted).abs().max() < 0.02
    assert abs(float(got[0].mean()) - 0.5) < 0.01


def test_exif_alpha_palettes_grey_and_sixteen_bits_are_understood(tmp_path):
    turned = np.zeros((16, 32, 3), dtype=np.uint8)
    turned[:, :16] = 255  # white on the left; turned clockwise it is above
    exif = Image.Exif()
    exif[0x0112] = 6
    got = inputs.image(write(tmp_path / "a.png", turned, exif=exif), 16, 32)
    assert got[:, :16].min() == 1
    assert got[:, 16:].max() == -1
    clear = np.zeros((16, 16, 4), dtype=np.uint8)
    assert inputs.image(write(tmp_path / "b.png", clear), 16, 16).min() == 1  # on white
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "c.png")
    assert inputs.image(str(tmp_path / "c.png"), 16, 16)[:, 0, 0].tolist() == [1, -1, -1]
    deep = np.full((16, 16), 128 * 257, dtype=np.uint16)
    assert abs(float(inputs.image(write(tmp_path / "d.png", deep), 16, 16)[0, 0, 0])) < 0.01


def test_unreadable_pictures_are_told_in_one_line(tmp_path):
    whole = write(tmp_path / "a.png", np.zeros((64, 64, 3), dtype=np.uint8))
    (tmp_path / "b.png").write_bytes(Path(whole).read_bytes()[:60])
    (tmp_path / "c.png").write_text("no picture")
    for name, says in (
        ("b.png", "cannot be read"),
        ("c.png", "no image that can be read"),
        ("d.png", "No such file"),
    ):
        with pytest.raises(UsageError, match=says) as caught:
            inputs.image(str(tmp_path / name), 16, 16)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> str:
    """24 frames at 24 a second, each as bright as its number."""
    path = tmp_path_factory.mktemp("videos") / "counted.mp4"
    frames = np.stack([np.full((32, 64, 3), 10 * i, dtype=np.uint8) for i in range(24)])
    write_video(path, [frames], 24, crf=1)
    return str(path)


def numbers(video: torch.Tensor) -> list[int]:
    return [round(float(frame.mean() + 1) * 127.5 / 10) for frame in video.transpose(0, 1)]


@pytest.mark.parametrize("fps", [8, 16, 24, 48])
def test_a_video_is_read_at_the_wanted_rate_as_a_player_shows_it(counted, fps):
    got = inputs.video(counted, 16, 16, fps, first=fps)
    assert got.shape == (3, fps, 16, 16)
    assert numbers(got) == [int(i / fps * 24 + 1e-6) for i in range(fps)]


def test_the_last_frames_are_those_at_the_end(counted):
    assert numbers(inputs.video(counted, 16, 16, 24, last=5)) == [19, 20, 21, 22, 23]
    assert numbers(inputs.video(counted, 16, 16, 12, last=2)) == [20, 22]


def test_a_video_that_is_too_short_is_told_with_its_length(counted):
    with pytest.raises(UsageError, match="has 16 frames at 16 a second; 17 are asked for"):
        inputs.video(counted, 16, 16, 16, first=17)
    assert inputs.length(counted, 16, 81) == 13
    assert inputs.length(counted, 16, 9) == 9


def test_gaps_are_filled_with_the_frame_that_is_still_shown(tmp_path):
    with av.open(str(tmp_path / "gap.mp4"), "w") as movie:
        stream = movie.add_stream("libx264", rate=16, options={"crf": "1"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number, at in enumerate((0, 1, 6, 7)):
            array = np.full((32, 32, 3), 10 * number, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = at
            movie.mux(stream.encode(frame))
        movie.mux(stream.encode(None))
    got = inputs.video(str(tmp_path / "gap.mp4"), 16, 16, 16, first=8)
    assert numbers(got) == [0, 1, 1, 1, 1, 1, 2, 3]


def test_a_phones_video_is_upright(tmp_path):
    """Against ffmpeg's own turning and scaling of it to the same size."""
    zoo.rotated(tmp_path / "phone.mp4")
    zoo.ffmpeg("-i", tmp_path / "phone.mp4", "-frames:v", "1", tmp_path / "shown.png")
    shown = inputs.image(str(tmp_path / "shown.png"), 96, 160)
    got = inputs.video(str(tmp_path / "phone.mp4"), 96, 160, 16, first=1)[:, 0]
    assert (got - shown).abs().mean() < 0.02


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    wide = ["-f", "lavfi", "-i", "testsrc2=size=160x180:rate=25:duration=0.2"]
    zoo.ffmpeg(*wide, "-vf", "setsar=2", *zoo.X264, tmp_path / "wide.mp4")
    got = inputs.video(str(tmp_path / "wide.mp4"), 160, 96, 16, first=1)[:, 0]
    for scale, differs in (("320:180", False), ("160:180", True)):
        shown = ("-vf", f"scale={scale}", "-frames:v", "1", tmp_path / "a.png")
        zoo.ffmpeg("-i", tmp_path / "wide.mp4", *shown)
        apart = (got - inputs.image(str(tmp_path / "a.png"), 160, 96)).abs().mean()
        assert (apart > 0.1) == differs
        assert (apart < 0.04) != differs


def test_colours_without_a_tag_are_read_as_players_read_them():
    """BT.709 from 720 lines up; decord, which takes BT.601 for all, is 2.5 grey levels away."""
    path = str(ROOT / "data/samples/bunny.mp4")
    with av.open(path) as movie:
        frame = next(movie.decode(video=0))
        assert (frame.colorspace, frame.height) == (2, 720)  # no tag
        wanted = frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
    got = (inputs.video(path, 1280, 720, 1.0, first=1)[:, 0] + 1) * 127.5
    assert np.abs(got.permute(1, 2, 0).numpy() - wanted).mean() < 0.01


def test_what_is_no_video_is_told_in_one_line(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(UsageError, match="cannot be opened"):
        inputs.video(str(tmp_path / "a.mp4"), 16, 16, 16, first=1)
    with pytest.raises(UsageError):
        inputs.length(str(tmp_path / "none.mp4"), 16, 9)
