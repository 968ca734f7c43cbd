"""Reading video: probe a file, and walk through it once.

Everything downstream sees frames that are upright (rotation applied), have square pixels (sample
aspect ratio applied), are deinterlaced and of full range; "source pixels" means these. The walk is
sequential and single-threaded, a core a file: two such readers, scaling included, give 606 frames/s
where bare ffmpeg with two threads decodes 551 (`tests/benchmarks/reading.py`, 720p). PyAV scaling
before it converts is the fastest reader in the process: 294 frames/s a thread against decord's 288,
OpenCV's 208, and 234 where full-size RGB is converted first.
Random access into short clips, for training, is decord's: `clip_frames`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

av.logging.set_level(av.logging.PANIC)  # a broken file is told once, by its row

SMALL = 180  # short side of the frames that splitter and motion see
DETAIL = 640  # long side of the sampled RGB frames
NATIVE = (1080, 1920)  # largest part of a frame that is looked at in source pixels
MAX_PIXELS = 7680 * 4320
STILL_SUFFIXES = {".avif", ".heic", ".heif"}  # images in a video container
STEP_BACK = 0.1  # of a frame: how far after the last one a frame is whose stamp goes back
BROKEN_PACKETS = 200  # in a row, without a frame between them: the rest is not video


class VideoError(Exception):
    """One line that says what is wrong with a file."""


@dataclass(frozen=True)
class Probe:
    """What a file says of itself, and its first frame. Width and height: upright, square pixels."""

    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    fps: float  # mean
    frames: int  # 0: the container does not say
    duration_s: float  # 0: the container does not say
    rotation: int  # degrees clockwise, already applied
    sar: str  # sample aspect ratio, already applied
    interlaced: bool
    bit_depth: int
    has_alpha: bool
    has_audio: bool
    is_image: bool


def opened(path: Path | str, max_pixels: int = MAX_PIXELS):
    """The file's container and its first real video stream (cover art passed over).

    Raises:
        VideoError: the file can't be opened, has no video, or its frames are too large.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise VideoError("the file is empty (0 bytes)")
        container = av.open(str(path), metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"cannot be opened: {_reason(error)}") from None
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not streams:
        sound = bool(container.streams.audio)
        container.close()
        raise VideoError("has sound but no video" if sound else "has no video stream")
    stream = streams[0]
    pixels = stream.codec_context.width * stream.codec_context.height
    if pixels > max_pixels:
        size = f"{stream.codec_context.width}×{stream.codec_context.height}"
        container.close()
        raise VideoError(f"frames of {size} exceed max_pixels={max_pixels}")
    stream.codec_context.options = {"max_pixels": str(max_pixels)}
    stream.thread_count = 1
    return container, stream


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


def probe(path: Path | str, max_pixels: int = MAX_PIXELS) -> Probe:
    """Opens a file and decodes its first frame.

    Raises:
        VideoError: it holds no decodable video.
    """
    container, stream = opened(path, max_pixels)
    with container:
        frame = next(decoded(container, stream), None)
        if frame is None:
            raise VideoError("no frame of its video can be decoded")
        frame = frame.raw
        sar = _sar(stream)
        rotation = _clockwise(frame)
        width, height = _upright(frame.width * sar, frame.height, rotation)
        fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        duration = _duration(container, stream)
        # average_rate counts frames over the whole stream; where it is nonsense the count tells
        if not 0.1 <= fps <= 1000:
            fps = stream.frames / duration if stream.frames and duration else 25.0
        still = _is_still(container, path)
        return Probe(
            container=container.format.name,
            codec=stream.codec_context.name,
            pix_fmt=frame.format.name,
            width=width,
            height=height,
            fps=fps,
            frames=1 if still else stream.frames,
            duration_s=0.0 if still else duration,
            rotation=rotation,
            sar=f"{sar.numerator}:{sar.denominator}",
            # 0 unknown, 1 progressive; the frame knows where the stream does not
            interlaced=not still
            and (stream.codec_context.field_order > 1 or frame.interlaced_frame),
            bit_depth=max(c.bits for c in frame.format.components),
            has_alpha=any(c.is_alpha for c in frame.format.components),
            has_audio=bool(container.streams.audio),
            is_image=still,
        )


def _is_still(container, path: Path | str) -> bool:
    name = container.format.name
    return name == "image2" or name.endswith("_pipe") or Path(path).suffix.lower() in STILL_SUFFIXES


def _duration(container, stream) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def _sar(stream) -> Fraction:
    sar = stream.sample_aspect_ratio or Fraction(1)
    return sar if Fraction(1, 10) <= sar <= 10 else Fraction(1)


def _clockwise(frame) -> int:
    """Degrees, a multiple of 90, by which a decoded frame must be turned clockwise to stand."""
    return round(-frame.rotation / 90) * 90 % 360


def _upright(width: float, height: float, rotation: int) -> tuple[int, int]:
    size = max(1, round(width)), max(1, round(height))
    return size[::-1] if rotation in (90, 270) else size


@dataclass
class _Decoded:
    raw: av.VideoFrame
    time_s: float | None  # None: the container has no time stamps
    bytes: int


def decoded(container, stream, errors: list[str] | None = None) -> Iterator[_Decoded]:
    """All frames that can be decoded, in order of presentation, broken packets left out.

    Args:
        errors: gets one line a broken packet.
    """
    errors = [] if errors is None else errors
    sizes: dict[int, int] = {}
    broken = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.error.FFmpegError, OSError, ValueError) as error:
            errors.append(_reason(error))  # truncated: what was decoded stands
            return
        if packet.pts is not None:
            sizes[packet.pts] = sizes.get(packet.pts, 0) + packet.size
        try:
            frames = packet.decode()
        except (av.error.FFmpegError, ValueError) as error:
            errors.append(_reason(error))
            broken += 1
            if broken > BROKEN_PACKETS:
                return
            continue
        for frame in frames:
            broken = 0
            if frame.is_corrupt:
                errors.append("corrupt frame")
            size = sizes.pop(frame.pts, 0) if frame.pts is not None else packet.size
            yield _Decoded(frame, None if frame.pts is None else frame.time, size)


def deinterlaced(frames: Iterator[_Decoded], stream) -> Iterator[_Decoded]:
    """Interlaced frames become whole ones (bwdif), one for one; progressive ones pass."""
    graph = av.filter.Graph()
    source = graph.add_buffer(template=stream)
    bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    sink = graph.add("buffersink")
    source.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()
    waiting: list[_Decoded] = []  # bwdif looks one frame ahead

    def pull() -> Iterator[_Decoded]:
        while waiting:
            try:
                out = graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            was = waiting.pop(0)
            yield _Decoded(out, was.time_s, was.bytes)

    for frame in frames:
        waiting.append(frame)
        graph.push(frame.raw)
        yield from pull()
    graph.push(None)
    yield from pull()


class Picture:
    """How raw frames of one file become arrays: scaled, then converted, then turned upright.

    swscale keeps one context a target, so each target has its own.
    """

    def __init__(self, probe: Probe):
        self.rotation = probe.rotation
        short = min(probe.width, probe.height)
        self.small_size = self._raw_size(probe, min(1.0, SMALL / short))
        self.detail_size = self._raw_size(probe, min(1.0, DETAIL / max(probe.width, probe.height)))
        self.native_size = self._raw_size(probe, 1.0)
        self._scalers = {name: VideoReformatter() for name in ("small", "detail", "native")}

    def _raw_size(self, probe: Probe, scale: float) -> tuple[int, int]:
        """Size before turning, so that the result is `scale` times the upright frame."""
        size = (max(1, round(probe.width * scale)), max(1, round(probe.height * scale)))
        return size[::-1] if self.rotation in (90, 270) else size

    def _array(self, raw, name: str, size: tuple[int, int], pixels: str) -> np.ndarray:
        scaled = self._scalers[name].reformat(
            raw,
            width=size[0],
            height=size[1],
            format=pixels,
            interpolation=Interpolation.AREA,
            dst_color_range=ColorRange.JPEG,
        )
        array = scaled.to_ndarray()
        return np.rot90(array, -self.rotation // 90) if self.rotation else array

    def small(self, raw) -> np.ndarray:
        """BGR uint8 [h, w, 3], short side 180, never enlarged."""
        return np.ascontiguousarray(self._array(raw, "small", self.small_size, "bgr24"))

    def detail(self, raw) -> np.ndarray:
        """RGB uint8 [H, W, 3], long side 640, never enlarged."""
        return np.ascontiguousarray(self._array(raw, "detail", self.detail_size, "rgb24"))

    def native(self, raw) -> np.ndarray:
        """Luma uint8, source pixels, the centre of at most 1920×1080."""
        luma = self._array(raw, "native", self.native_size, "gray")
        top = max(0, (luma.shape[0] - NATIVE[0]) // 2) // 8 * 8  # keeps the codec's block grid
        left = max(0, (luma.shape[1] - NATIVE[1]) // 2) // 8 * 8
        return np.ascontiguousarray(luma[top : top + NATIVE[0], left : left + NATIVE[1]])


@dataclass
class Frame:
    """One frame of the walk. `raw` lives only until the next frame is asked for."""

    index: int
    time_s: float  # since the file's first frame
    bytes: int  # of the stream that it takes
    small: np.ndarray  # BGR uint8 [h, w, 3]
    raw: av.VideoFrame
    picture: Picture


def frames(
    path: Path | str,
    probe: Probe,
    *,
    max_pixels: int = MAX_PIXELS,
    errors: list[str] | None = None,
) -> Iterator[Frame]:
    """One sequential pass over a file.

    Yields every frame that can be decoded; time stamps rise strictly, whatever the file says.

    Args:
        errors: gets one line for each packet that could not be decoded.
    """
    container, stream = opened(path, max_pixels)
    with container:
        walk = decoded(container, stream, errors)
        if probe.interlaced:
            walk = deinterlaced(walk, stream)
        picture = Picture(probe)
        first = last = None
        for index, frame in enumerate(walk):
            stamp = frame.time_s
            if stamp is None:
                stamp = index / probe.fps
            if first is None:
                first = stamp
            time_s = stamp - first
            if last is not None and (time_s <= last or not math.isfinite(time_s)):
                time_s = last + STEP_BACK / probe.fps
            last = time_s
            yield Frame(index, time_s, frame.bytes, picture.small(frame.raw), frame.raw, picture)
            if probe.is_image:
                return


def clip_frames(path: Path | str, indices: list[int] | None = None) -> np.ndarray:
    """Random access into a short clip, through decord.

    Args:
        path: a clip as the shards hold it.
        indices: which frames, in any order; None means all.

    Returns:
        RGB uint8 [n, height, width, 3].

    Raises:
        VideoError: decord can't open it.
    """
    import decord

    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        return reader.get_batch(list(range(len(reader))) if indices is None else indices).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(f"cannot be read: {_reason(error)}") from None
