"""Cuts hold exactly the frames asked for, upright, in true colours, the same bytes every time."""

import itertools
import math
import subprocess
from dataclasses import replace

import av
import decord
import numpy as np
import pytest
from PIL import Image

from curation import cut, encode, video
from curation.cut import Span
from curation.video import VideoError
from tests import zoo

FRAMES = 120
BITS = 8
WIDTH, HEIGHT = 256, 96


def painted(count: int = FRAMES) -> np.ndarray:
    """Gray uint8 [n, HEIGHT, WIDTH]: each frame's number as black and white bars, below noise."""
    bars = (np.arange(count)[:, None] >> np.arange(BITS)) & 1
    top = np.repeat(np.repeat(bars * 200 + 28, WIDTH // BITS, 1)[:, None], HEIGHT // 2, 1)
    noise = np.random.default_rng(0).integers(60, 180, (count, HEIGHT // 2, WIDTH))
    return np.concatenate([top, noise], 1).astype(np.uint8)


def numbers(gray: np.ndarray) -> list[int]:
    """The frame numbers painted into [n, height, width]."""
    height, width = gray.shape[1:]
    bars = gray[:, height // 8 : height // 3].reshape(len(gray), -1, BITS, width // BITS)
    return [int(n) for n in ((bars.mean((1, 3)) > 128) << np.arange(BITS)).sum(1)]


def encoded(path, *arguments: str, rate: str = "25", filters: str = "null") -> None:
    """Writes the painted frames with ffmpeg."""
    raw = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{WIDTH}x{HEIGHT}", "-r", rate, "-i", "-"]
    command = [zoo.FFMPEG, "-v", "error", "-y", *raw, "-vf", f"{filters},format=yuv420p"]
    command += [*arguments, str(path)]
    done = subprocess.run(command, input=painted().tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


X264 = ["-c:v", "libx264", "-preset", "veryfast", "-bf", "3", "-crf", "16"]
VFR = "settb=1/90000,setpts='(N+0.4*mod(N,3)+2*gt(N,40))*3600'"
PASS = ["-fps_mode", "passthrough", "-enc_time_base", "1:90000"]
# name → frame rate, filters, encoder's arguments
KINDS = {
    "24.mp4": ("24", "null", [*X264, "-g", "30"]),
    "ntsc.mp4": ("30000/1001", "null", [*X264, "-g", "30"]),
    "60.mkv": ("60", "null", [*X264, "-g", "30"]),
    "vfr.mp4": ("25", VFR, [*X264, *PASS, "-g", "20"]),
    "vfr.mkv": ("25", VFR, [*X264, *PASS, "-g", "20"]),
    "open-gop.mp4": ("25", "null", [*X264, "-x264-params", "open-gop=1:keyint=12:scenecut=0"]),
    "hevc.mkv": ("25", "null", ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params",
                                "open-gop=1:keyint=15:bframes=3:log-level=none"]),
    "late-start.mkv": ("25", "null", [*X264, "-g", "20", "-output_ts_offset", "7.3"]),
    "one-key-frame.mp4": ("25", "null", [*X264, "-g", "999"]),
    "mpeg2.mpg": ("25", "null", ["-c:v", "mpeg2video", "-bf", "2", "-q:v", "2"]),
    "transport.ts": ("25", "null", [*X264, "-g", "20"]),
    "old.avi": ("25", "null", ["-c:v", "mpeg4", "-bf", "2", "-q:v", "2"]),
    "raw.h264": ("25", "null", [*X264, "-g", "20"]),
}  # fmt: skip


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """All kinds, each with the frames' numbers and times as the one pass over a file finds them."""
    folder = tmp_path_factory.mktemp("films")
    found = {}
    for name, (rate, filters, arguments) in KINDS.items():
        encoded(folder / name, *arguments, rate=rate, filters=filters)
        probe = video.probe(folder / name)
        walk = list(video.frames(folder / name, probe))
        times = [frame.time_s for frame in walk]
        found[name] = (folder / name, [*times, times[-1] + 1 / probe.fps])
    return found


def read(path) -> tuple[np.ndarray, list[float]]:
    """A clip's frames, gray [n, h, w], and times, through PyAV."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return np.stack([f.to_ndarray(format="gray") for f in frames]), [f.time for f in frames]


@pytest.mark.parametrize("name", KINDS)
def test_a_cut_holds_exactly_the_frames_asked_for(films, name, tmp_path):
    path, times = films[name]
    assert len(times) == FRAMES + 1, "the pass itself lost frames"
    bounds = [(0, 9), (31, 32), (60, 79), (105, FRAMES)]
    spans = [
        Span(times[a], times[b], tmp_path / f"{a}.mp4", frames=b - a) for a, b in reversed(bounds)
    ]
    results = dict(r for r in cut.cut_many(path, spans, preset="veryfast") if r)
    for place, (start, end) in enumerate(reversed(bounds)):
        info = results[place]
        assert isinstance(info, cut.Info), info
        gray, stamps = read(info.path)
        assert numbers(gray) == list(range(start, end))
        np.testing.assert_allclose(stamps, np.array(times[start:end]) - times[start], atol=1e-4)
        assert info.frames == end - start
        assert info.duration_s == pytest.approx(times[end] - times[start], abs=1e-3)
        reader = decord.VideoReader(str(info.path), num_threads=1)
        shown = reader.get_batch(range(len(reader))).asnumpy()[..., 0]
        assert numbers(shown) == list(range(start, end)), "decord sees other frames than PyAV"


def test_the_files_that_can_be_jumped_in_are_and_the_others_walked(films, tmp_path, monkeypatch):
    jumped = set()
    jump = cut._Reader.jump

    def watched(self, start_s):
        jump(self, start_s)
        if self.jumped:
            jumped.add(self.path.name)

    monkeypatch.setattr(cut._Reader, "jump", watched)
    for path, times in films.values():
        cut.cut(path, times[100], times[103], tmp_path / "clip.mp4", preset="ultrafast")
    assert jumped >= {"24.mp4", "vfr.mp4", "vfr.mkv", "open-gop.mp4", "hevc.mkv", "late-start.mkv"}
    assert not jumped & {"one-key-frame.mp4", "mpeg2.mpg", "transport.ts", "old.avi", "raw.h264"}


@pytest.mark.parametrize("name", ["ntsc.mp4", "vfr.mkv", "open-gop.mp4", "hevc.mkv"])
def test_a_jump_and_a_walk_give_the_same_bytes(films, name, tmp_path, monkeypatch):
    path, times = films[name]
    for start in range(14, 118, 13):
        cut.cut(path, times[start], times[start + 2], tmp_path / "jump.mp4", preset="ultrafast")
        with monkeypatch.context() as patch:
            patch.setattr(cut, "SEEKABLE", set())
            cut.cut(path, times[start], times[start + 2], tmp_path / "walk.mp4", preset="ultrafast")
        assert (tmp_path / "jump.mp4").read_bytes() == (tmp_path / "walk.mp4").read_bytes()


def late(monkeypatch, times_late: int, frames_lost: int, unmarked: bool = False):
    """Plants a demuxer that lands late: the first frames after a seek are missing."""
    whole, calls = video.decoded, itertools.count()

    def decoded(*arguments):
        call = next(calls)
        walk = whole(*arguments)
        if 2 < call <= 2 + times_late:  # probe, opening, and the index come first
            if unmarked:  # it says that it has landed where it was told to
                yield next(walk)
            walk = itertools.islice(walk, frames_lost, None)
        yield from walk

    monkeypatch.setattr(video, "decoded", decoded)
    return calls


@pytest.mark.parametrize("times_late", [1, 2, 99])
def test_a_seek_that_lands_late_is_noticed(films, tmp_path, monkeypatch, times_late):
    path, times = films["24.mp4"]
    late(monkeypatch, min(times_late, cut.JUMPS), 30)
    info = cut.cut(path, times[95], times[99], tmp_path / "clip.mp4", preset="ultrafast")
    assert numbers(read(info.path)[0]) == [95, 96, 97, 98]


def test_a_jump_that_gives_too_few_frames_is_done_again_without_one(films, tmp_path, monkeypatch):
    path, times = films["24.mp4"]
    calls = late(monkeypatch, 1, 6, unmarked=True)
    span = Span(times[93], times[99], tmp_path / "clip.mp4", frames=6)
    ((_, info),) = cut.cut_many(path, [span], preset="ultrafast")
    assert next(calls) == 5, "no second pass"
    assert numbers(read(info.path)[0]) == list(range(93, 99))


def test_another_number_of_frames_than_the_catalog_counted_is_an_error(films, tmp_path):
    path, times = films["24.mp4"]
    span = Span(times[10], times[20], tmp_path / "clip.mp4", frames=11)
    ((_, found),) = cut.cut_many(path, [span], preset="ultrafast")
    assert isinstance(found, VideoError)
    assert str(found) == "has 10 frames where the catalog counted 11"
    assert not (tmp_path / "clip.mp4").exists()


def test_frames_whose_stamps_go_back_are_cut_as_the_pass_counted_them(films, tmp_path, monkeypatch):
    path, _ = films["one-key-frame.mp4"]
    whole = video.decoded

    def exchanged(*arguments):  # as FFmpeg gives some old AVIs with B-frames
        for number, frame in enumerate(whole(*arguments)):
            step = {3: 1, 4: -1}.get(number % 10, 0)
            yield replace(frame, time_s=frame.time_s + step / 25)

    monkeypatch.setattr(video, "decoded", exchanged)
    times = [frame.time_s for frame in video.frames(path, video.probe(path))]
    for a, b in [(0, 14), (14, 33), (33, 34), (34, 64)]:
        cut.cut(path, times[a], times[b], tmp_path / "clip.mp4", preset="ultrafast")
        assert numbers(read(tmp_path / "clip.mp4")[0]) == list(range(a, b))


def test_spans_may_overlap_and_lie_outside(films, tmp_path):
    path, times = films["24.mp4"]
    bounds = [(5, 30), (20, 40), (20, 25)]
    spans = [Span(times[a], times[b], tmp_path / f"{a}-{b}.mp4") for a, b in bounds]
    spans.append(Span(100.0, 101.0, tmp_path / "outside.mp4"))
    results = dict(r for r in cut.cut_many(path, spans, preset="ultrafast") if r)
    for place, (a, b) in enumerate(bounds):
        assert numbers(read(results[place].path)[0]) == list(range(a, b))
    assert str(results[3]) == "has no frame from 100.000 s to 101.000 s"
    alone = cut.cut(path, times[20], times[25], tmp_path / "alone.mp4", preset="ultrafast")
    assert alone.path.read_bytes() == (tmp_path / "20-25.mp4").read_bytes(), "neighbours matter"


def test_a_clip_is_plain_web_video_that_names_no_date_and_no_encoder(films, tmp_path):
    path, times = films["ntsc.mp4"]
    cut.cut(path, times[3], times[50], tmp_path / "clip.mp4")
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "not made for streaming"
    assert b"avc1" in data
    for name in (b"x264", b"Lavf", b"Lavc"):
        assert name not in data
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert not container.streams.audio
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == pytest.approx(30000 / 1001)
        assert "creation_time" not in {**container.metadata, **stream.metadata}
        frame = next(container.decode(stream))
        tags = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
        assert tags == (6, 6, 6, 1), "small and untagged: BT.601, as players take it"
        assert frame.time == 0.0


@pytest.fixture(scope="session")
def animals(tmp_path_factory):
    return zoo.stock(tmp_path_factory.mktemp("zoo"))


def shown(path, folder) -> np.ndarray:
    """The first frame as ffmpeg shows it: upright, square pixels, even size."""
    even = "scale=trunc(iw*sar/2)*2:trunc(ih/2)*2,setsar=1"
    zoo.ffmpeg("-i", path, "-vf", even, "-frames:v", "1", folder / "shown.png")
    return np.asarray(Image.open(folder / "shown.png").convert("RGB")).astype(int)


@pytest.mark.parametrize("name", [n for n in zoo.GOOD if not n.startswith("picture")])
def test_every_kind_of_video_comes_out_as_ffmpeg_shows_it(animals, tmp_path, name):
    probe = video.probe(animals / name)
    count = len(list(video.frames(animals / name, probe)))
    info = cut.cut(animals / name, 0.0, math.inf, tmp_path / "clip.mp4", crf=4, preset="ultrafast")
    assert info.frames == count
    assert (info.width, info.height) == (probe.width & ~1, probe.height & ~1)
    reader = decord.VideoReader(str(info.path), num_threads=1)
    assert len(reader) == count
    with av.open(str(info.path)) as container:
        frames = list(container.decode(video=0))
    assert frames[0].rotation == 0
    assert frames[0].format.name == "yuv420p"
    assert not frames[0].interlaced_frame
    if not probe.interlaced:
        ours = reader[0].asnumpy().astype(int)
        expected = shown(animals / name, tmp_path)[: info.height, : info.width]
        assert np.abs(ours - expected).mean() < 6
    else:
        assert combing(frames[8]) < 0.5 * combing(
            next(itertools.islice(raw(animals / name), 8, None))
        )


def raw(path):
    with av.open(str(path)) as container:
        yield from container.decode(video=0)


def combing(frame) -> float:
    """How much each line differs from the mean of its neighbours."""
    gray = frame.to_ndarray(format="gray").astype(float)
    return float(np.abs(gray[1:-1] - (gray[:-2] + gray[2:]) / 2).mean())


@pytest.mark.parametrize(
    ("tag", "size"),
    [("bt709", "320x180"), ("smpte170m", "320x180"), ("", "1280x720"), ("", "64x48")],
)
def test_colours_stay_what_they_are(tmp_path, tag, size):
    # untagged: BT.709 where large, else BT.601, as players take it
    matrix = tag or ("bt709" if size == "1280x720" else "smpte170m")
    how = f"scale=out_color_matrix={matrix}:out_range=tv,format=yuv420p"
    tags = f",setparams=colorspace={tag}:color_primaries={tag}:color_trc={tag}" if tag else (
        ",setparams=colorspace=unknown:color_primaries=unknown:color_trc=unknown"
    )  # fmt: skip
    color = ["-f", "lavfi", "-i", f"color=0xC8283C:size={size}:rate=25:duration=0.2,format=rgb24"]
    zoo.ffmpeg(*color, "-vf", how + tags, *zoo.X264, "-crf", "1", tmp_path / "red.mp4")
    info = cut.cut(tmp_path / "red.mp4", 0, 1, tmp_path / "clip.mp4", preset="ultrafast")
    red = decord.VideoReader(str(info.path), num_threads=1)[2].asnumpy()[20, 20]
    np.testing.assert_allclose(red.astype(int), (0xC8, 0x28, 0x3C), atol=5)
    with av.open(str(info.path)) as container:
        assert next(container.decode(video=0)).colorspace == (1 if matrix == "bt709" else 6)


def test_full_range_comes_out_limited_and_no_darker(tmp_path):
    how = "scale=out_range=pc,format=yuvj420p"
    color = ["-f", "lavfi", "-i", "color=0x101010:size=64x48:rate=25:duration=0.2,format=rgb24"]
    zoo.ffmpeg(*color, "-vf", how, *X264, "-pix_fmt", "yuvj420p", tmp_path / "full.mp4")
    info = cut.cut(tmp_path / "full.mp4", 0, 1, tmp_path / "clip.mp4", preset="ultrafast")
    gray = decord.VideoReader(str(info.path), num_threads=1)[2].asnumpy()[20, 20]
    np.testing.assert_allclose(gray.astype(int), 0x10, atol=3)


@pytest.mark.parametrize(
    "transfer", ["arib-std-b67", pytest.param("smpte2084", marks=pytest.mark.slow)]
)
def test_hdr_is_brought_to_standard_range(tmp_path, transfer):
    """Diffuse white (ITU-R BT.2408: 75 % of HLG's signal, 58 % of PQ's) comes out bright, and the
    tags no longer claim HDR."""
    signal = {"arib-std-b67": 0.75, "smpte2084": 0.58}[transfer]
    level = round(64 + signal * 876)
    tags = f"setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc={transfer}:range=tv"
    flat = f"nullsrc=s=64x48:r=25:d=0.2,format=yuv420p10le,geq=lum={level}:cb=512:cr=512,{tags}"
    zoo.ffmpeg("-f", "lavfi", "-i", flat, "-c:v", "libx264", "-crf", "1", tmp_path / "hdr.mkv")
    info = cut.cut(tmp_path / "hdr.mkv", 0, 1, tmp_path / "clip.mp4", preset="ultrafast")
    with av.open(str(info.path)) as container:
        frame = next(container.decode(video=0))
    tags = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
    assert tags == (1, 1, 1, 1)
    assert frame.to_ndarray(format="gray")[20, 20] > 150


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((32, 16, 100, 60), (32, 16, 100, 60)),
        ((33, 17, 99, 59), (34, 18, 98, 58)),  # inwards to even edges
        ((-5, 0, 1000, 1000), (0, 0, 256, 96)),
    ],
)
def test_a_crop_takes_just_that_part(films, tmp_path, box, kept):
    path, times = films["24.mp4"]
    info = cut.cut(path, times[8], times[12], tmp_path / "clip.mp4", crop=box, crf=4)
    whole = cut.cut(path, times[8], times[12], tmp_path / "whole.mp4", crf=4)
    assert info.crop == kept
    assert (info.width, info.height) == kept[2:]
    x, y, w, h = kept
    part = read(whole.path)[0][:, y : y + h, x : x + w].astype(int)
    assert np.abs(read(info.path)[0].astype(int) - part).mean() < 3


def test_a_crop_of_rotated_video_is_meant_upright(animals, tmp_path):
    box = (20, 100, 80, 120)
    info = cut.cut(animals / "rotated.mp4", 0, 0.1, tmp_path / "clip.mp4", crop=box, crf=4)
    expected = shown(animals / "rotated.mp4", tmp_path)[100:220, 20:100]
    ours = decord.VideoReader(str(info.path), num_threads=1)[0].asnumpy().astype(int)
    assert np.abs(ours - expected).mean() < 6


def test_a_crop_outside_the_picture_is_one_line(films, tmp_path):
    with pytest.raises(VideoError, match="leaves nothing of 256×96"):
        cut.cut(films["24.mp4"][0], 0, 1, tmp_path / "clip.mp4", crop=(300, 0, 10, 10))


def test_a_size_is_filled_from_the_middle_without_distortion(films, tmp_path):
    path, times = films["24.mp4"]
    info = cut.cut(path, times[5], times[9], tmp_path / "clip.mp4", size=(64, 48))
    assert (info.width, info.height) == (64, 48)
    assert info.crop == (64, 0, 128, 96), "the middle, of the same aspect"
    turned = cut.cut(path, times[5], times[9], tmp_path / "turned.mp4", size=(256, 48), crop=None)
    assert turned.crop == (0, 24, 256, 48)


@pytest.mark.parametrize("name", ["picture.jpg", "picture.png", "picture.webp"])
def test_an_image_stays_an_image(animals, tmp_path, name):
    box = (11, 7, 201, 99)  # odd is fine: nothing is subsampled by us
    info = cut.cut(animals / name, 0, 0, tmp_path / "clip.mp4", crop=box)
    assert info.path.suffix == (".png" if name.endswith("png") else ".jpg")
    assert (info.frames, info.width, info.height) == (1, 201, 99)
    ours = np.asarray(Image.open(info.path).convert("RGB")).astype(int)
    source = np.asarray(Image.open(animals / name).convert("RGB")).astype(int)[7:106, 11:212]
    assert np.abs(ours - source).mean() < (0.01 if name.endswith("png") else 3)


def test_an_image_with_alpha_keeps_it(tmp_path):
    rgba = np.random.default_rng(1).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(rgba, "RGBA").save(tmp_path / "alpha.webp", lossless=True, exact=True)
    info = cut.cut(tmp_path / "alpha.webp", 0, 0, tmp_path / "clip.mp4")
    assert info.path.suffix == ".png"
    np.testing.assert_array_equal(np.asarray(Image.open(info.path))[..., 3], rgba[..., 3])


@pytest.mark.parametrize("name", zoo.BROKEN)
def test_a_broken_file_is_one_line(animals, tmp_path, name):
    with pytest.raises(VideoError) as raised:
        cut.cut(animals / name, 0, 1, tmp_path / "clip.mp4")
    assert "\n" not in str(raised.value)


def test_a_full_disk_is_nobody_s_bad_clip(films, tmp_path):
    """A clip that fails is left out; a disk that fails must stop the run instead."""
    error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        encode._blamed(error)
    assert encode._blamed(av.error.InvalidDataError(1094995529, "Invalid data")) == "Invalid data"
