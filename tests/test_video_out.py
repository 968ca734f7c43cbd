"""Written videos open anywhere, show what was sampled, and are the same bytes on every run."""

import subprocess
import sys
from fractions import Fraction

import av
import decord
import numpy as np
import pytest
import torch
from PIL import Image

from curation.video import clip_frames
from eval.video_out import pixels, whole, write_image, write_video
from tests.running import ROOT


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Frames of a bundled clip, of a size that is no multiple of 16 macroblocks."""
    frames = clip_frames(ROOT / "data/samples/sintel-alley.mp4", list(range(17)))
    return frames[:, :144, :208]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def test_it_opens_in_av_and_decord_with_exact_times_and_the_frames_that_went_in(real, tmp_path):
    path = tmp_path / "a.mp4"
    assert write_video(path, [real[:1], real[1:5], real[5:]], 16) == 17
    with av.open(str(path)) as movie:
        stream = movie.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (16, 17)
        assert stream.duration * stream.time_base == Fraction(17, 16)
        shown = list(movie.decode(stream))
    assert [frame.pts * frame.time_base for frame in shown] == [Fraction(i, 16) for i in range(17)]
    read = np.stack([frame.to_ndarray(format="rgb24") for frame in shown])
    assert psnr(read, real) > 40
    reader = decord.VideoReader(str(path))
    assert (len(reader), reader.get_avg_fps()) == (17, 16)
    assert psnr(reader.get_batch(range(17)).asnumpy(), real) > 40


def test_a_browser_starts_at_once_and_knows_the_colours(real, tmp_path):
    write_video(tmp_path / "a.mp4", [real])
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert b"x264" not in data  # no version of an encoder, so no difference between machines
    with av.open(str(tmp_path / "a.mp4")) as movie:
        codec = next(movie.decode(video=0))
        assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (1, 1, 1)
        assert codec.color_range == 1


@pytest.mark.parametrize("size", [(64, 64), (144, 208), (64, 96)])
def test_the_bytes_are_the_same_however_the_frames_come_and_however_often(tmp_path, size):
    """Smooth frames of few macroblocks: with x264's macroblock tree they differ from run to run."""
    t, y, x = np.mgrid[:17, : size[0], : size[1]]
    waves = (np.sin(x / 20 + t / 5), np.cos(y / 15), np.sin((x + y) / 25 + t / 3))
    frames = (128 + 100 * np.stack(waves, -1)).astype(np.uint8)
    written = set()
    for i in range(10):
        cuts = [frames] if i % 2 else [frames[:1], frames[1:]]
        write_video(tmp_path / "a.mp4", cuts, 16)
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1


def test_the_bytes_are_the_same_in_another_process(real, tmp_path):
    write_video(tmp_path / "here.mp4", [real])
    np.save(tmp_path / "frames.npy", real)
    code = "import sys, numpy as np; from eval.video_out import write_video; "
    code += "write_video(sys.argv[2], [np.load(sys.argv[1])])"
    arguments = [str(tmp_path / "frames.npy"), str(tmp_path / "there.mp4")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT)
    assert (tmp_path / "there.mp4").read_bytes() == (tmp_path / "here.mp4").read_bytes()


@pytest.mark.parametrize("fps", [8, 24, 30000 / 1001])
def test_any_frame_rate_is_exact(real, tmp_path, fps):
    write_video(tmp_path / "a.mp4", [real[:5]], fps)
    with av.open(str(tmp_path / "a.mp4")) as movie:
        stream = movie.streams.video[0]
        assert stream.average_rate == Fraction(fps).limit_denominator(1001)
        assert abs(float(stream.duration * stream.time_base) - 5 / fps) < 1e-4


def test_a_lower_crf_is_closer(real, tmp_path):
    found = []
    for crf in (4, 12, 30):
        write_video(tmp_path / "a.mp4", [real], crf=crf)
        found.append(psnr(clip_frames(tmp_path / "a.mp4"), real))
    assert found == sorted(found, reverse=True)


def test_colours_come_through(tmp_path):
    """Flat areas lose nothing but rounding, so a wrong matrix or range would show."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 64, 200)]
    frames = np.empty((3, 32, 32 * len(colours), 3), dtype=np.uint8)
    for i, colour in enumerate(colours):
        frames[:, :, 32 * i : 32 * (i + 1)] = colour
    write_video(tmp_path / "a.mp4", [frames])
    read = clip_frames(tmp_path / "a.mp4")[1, 16, 16::32].astype(int)
    assert np.abs(read - np.array(colours)).max() <= 3


def test_pixels_are_rounded_to_the_nearest_and_laid_out_for_pictures():
    frames = torch.tensor([-1.0, 1.0, 0.0, 1.5, 2 * 100.4 / 255 - 1, 2 * 100.6 / 255 - 1])
    got = pixels(frames.view(1, 1, 1, 6).expand(3, 2, 4, 6))
    assert got.shape == (2, 4, 6, 3)
    assert got[0, 0, :, 0].tolist() == [0, 255, 128, 255, 100, 101]


def test_a_png_holds_the_very_pixels(real, tmp_path):
    write_image(tmp_path / "a.part", real[0])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.part")), real[0])


def test_a_file_stands_under_its_name_only_when_it_is_whole(real, tmp_path):
    path = tmp_path / "new" / "圆 'a'.mp4"

    def broken():
        yield real[:3]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"), whole(path) as part:
        write_video(part, broken())
    assert list(path.parent.iterdir()) == []
    with whole(path) as part:
        write_video(part, [real[:3]])
        assert not path.exists()
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_what_cannot_be_written_is_refused(real, tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(ValueError, match="even width"):
        write_video(tmp_path / "a.mp4", [real[:, :, :33]])
