"""Encodes frames as a clip: H.264 in mp4, or, for a still image, jpg or png.

Clips come out upright, with square pixels, 8-bit 4:2:0 of limited range. They are tagged with their
colours: BT.709, or BT.601 where the source has it, since converting that costs a fifth of the
encoding and rounds every pixel; HDR is tone-mapped to BT.709. Time stamps are the source's, shifted
so that the first frame stands at 0. Bytes are the same on every run: one thread, bit-exact scaling,
no dates, no name of an encoder.
"""

import contextlib
import errno
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
from av.bitstream import BitStreamFilterContext
from av.codec.context import Flags

from curation.video import Probe, VideoError, _reason

VERSION = "1"  # changes whenever the bytes of a clip do
Box = tuple[int, int, int, int]

JPEG_QUALITY = 95
LONGEST_S = 2.0  # a last frame that would be shown longer is shown as long as the others
EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+bitexact"  # the same on every processor
TURNS = {  # degrees clockwise → filters
    0: [],
    90: [("transpose", "clock")],
    180: [("hflip", None), ("vflip", None)],
    270: [("transpose", "cclock")],
}
BT709, UNSPECIFIED, BT601, BT2020 = 1, 2, 6, 9  # ITU-T H.273, tables 2 to 4
PAL = 5  # BT.601's other primaries; its matrix is the same
HDR_TRANSFER = {16, 18}  # PQ, HLG
LIMITED, FULL = 1, 2  # av.video.reformatter.ColorRange


@dataclass(frozen=True)
class Span:
    """One clip to cut: seconds since the file's first frame, start included, end excluded."""

    start_s: float
    end_s: float
    out: Path
    crop: Box | None = None  # x, y, width, height in source pixels; None: the whole frame
    size: tuple[int, int] | None = None  # scaled to cover, then cut to the middle; None: as it is
    frames: int | None = None  # how many the clip must have; None: any number but none


@dataclass(frozen=True)
class Info:
    """One clip that was cut."""

    path: Path
    width: int
    height: int
    frames: int
    fps: float  # mean; 0 for an image
    duration_s: float  # last frame's own included; 0 for an image
    crop: Box  # what of the source it shows, source pixels, edges even


class DoubtError(VideoError):
    """Not the frames that were asked for, after a jump within the file."""


class Tone:
    """HDR frames of one file brought to standard range; others pass.

    One for all clips of a file: swscale takes seconds to make its table.
    """

    def __init__(self):
        self._key = self._graph = None

    def __call__(self, raw: av.VideoFrame) -> av.VideoFrame:
        if raw.color_trc not in HDR_TRANSFER and raw.color_primaries != BT2020:
            return raw
        key = _kind(raw)
        if key != self._key:
            to = "out_color_matrix=bt709:out_primaries=bt709:out_transfer=bt709:out_range=tv"
            chain = [("scale", f"{to}:intent=perceptual:{EXACT}"), ("format", "yuv420p")]
            self._key, self._graph = key, _graph(raw, chain)
        self._graph.push(raw)
        return self._graph.pull()


class Shape:
    """Raw frames of one file as a clip shows them."""

    def __init__(self, probe: Probe, span: Span, pixels: str, raw: av.VideoFrame):
        self.matrix = _matrix(raw) or BT709
        self.rotation = probe.rotation
        self.upright = (probe.width, probe.height)
        self.pixels = pixels
        self.box = _box(probe, span, even=pixels == "yuv420p")
        self.size = span.size or self.box[2:]
        self._key = self._graph = None

    def __call__(self, raw: av.VideoFrame) -> av.VideoFrame:
        key = _kind(raw)
        if key != self._key:
            self._key, self._graph = key, self._built(raw)
        if self._graph is None:
            return raw
        self._graph.push(raw)
        return self._graph.pull()

    def _built(self, raw) -> av.filter.Graph | None:
        x, y, width, height = self.box
        turned = self.upright[::-1] if self.rotation in (90, 270) else self.upright
        chain = []
        if (raw.width, raw.height) != turned:
            chain.append(("scale", f"{turned[0]}:{turned[1]}:{EXACT}"))
        chain += TURNS[self.rotation]
        if self.box != (0, 0, *self.upright):
            chain.append(("crop", f"{width}:{height}:{x}:{y}:exact=1"))
        color = _color(raw, self.pixels, self.matrix)
        if color or self.size != (width, height):
            chain.append(("scale", f"{self.size[0]}:{self.size[1]}:{EXACT}{color}"))
            chain.append(("format", self.pixels))
        return _graph(raw, chain) if chain else None


def _kind(raw: av.VideoFrame) -> tuple:
    """What a filter graph is made for; a stream may change it in its middle."""
    return (raw.width, raw.height, raw.format.name, raw.colorspace, raw.color_range, raw.color_trc)


def _graph(raw: av.VideoFrame, chain: list[tuple[str, str | None]]) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.threads = 1
    size = {"width": raw.width, "height": raw.height}
    source = graph.add_buffer(**size, format=raw.format, time_base=raw.time_base)
    nodes = [graph.add(name, arguments) for name, arguments in chain]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    return graph


def _box(probe: Probe, span: Span, even: bool) -> Box:
    """What of the upright frame a clip shows."""
    x, y, width, height = span.crop or (0, 0, probe.width, probe.height)
    left, top = max(0, x), max(0, y)
    right, bottom = min(probe.width, x + width), min(probe.height, y + height)
    if span.size:
        aspect = span.size[0] / span.size[1]
        width, height = right - left, bottom - top
        narrow, low = max(0, width - height * aspect), max(0, height - width / aspect)
        left, right = left + round(narrow / 2), right - round(narrow / 2)
        top, bottom = top + round(low / 2), bottom - round(low / 2)
    if even:  # inwards, so that no border comes back in
        left, top, right, bottom = left + left % 2, top + top % 2, right & ~1, bottom & ~1
    if right <= left or bottom <= top:
        raise VideoError(f"crop {span.crop} leaves nothing of {probe.width}×{probe.height}")
    return left, top, right - left, bottom - top


def _matrix(raw: av.VideoFrame) -> int | None:
    """BT709, BT601, or None for what is neither.

    Colours without a tag are BT.709 from 720 lines up, else BT.601, as players take them.
    """
    if raw.format.is_rgb:
        return None
    if raw.colorspace == UNSPECIFIED:
        return BT709 if min(raw.width, raw.height) >= 720 else BT601
    return {BT709: BT709, BT601: BT601, PAL: BT601}.get(raw.colorspace)


def _color(raw: av.VideoFrame, pixels: str, matrix: int) -> str:
    """What the scale filter must convert; empty: nothing."""
    if pixels != "yuv420p":
        return ":out_range=pc"  # an image without a tag is BT.601 (JFIF), swscale's default
    source = _matrix(raw)
    given = f":in_color_matrix={source}" if source and raw.colorspace == UNSPECIFIED else ""
    if raw.format.name == pixels and raw.color_range != FULL and source == matrix:
        return ""
    return f"{given}:out_color_matrix={matrix}:out_range=tv"


class Clip:
    """One clip that is being encoded."""

    def __init__(self, span: Span, probe: Probe, encoding: dict, clock: Fraction):
        self.span, self.probe, self.encoding, self.clock = span, probe, encoding, clock
        self.error: str | None = None
        self.frames = 0
        self.container = None
        self._held = None  # the last packet alone needs a duration

    def add(self, time_s: float, raw: av.VideoFrame) -> None:
        if self.error:
            return
        try:
            if self.container is None:
                self._open(time_s, raw)
            frame = self.shape(raw)
            self.last_s = time_s
            self.pts = max(round((time_s - self.start_s) / self.clock), self.pts + 1)
            frame.pts, frame.time_base = self.pts, self.clock
            frame.pict_type = 0  # else x264 repeats the source's choice of I, P and B
            self._mux(self.stream.encode(frame))
            self.frames += 1
        except (av.error.FFmpegError, VideoError, OSError) as error:
            self.error = _blamed(error)

    def _open(self, time_s: float, raw: av.VideoFrame) -> None:
        self.start_s, self.pts = time_s, -1
        self.shape = Shape(self.probe, self.span, "yuv420p", raw)
        self.container = av.open(
            str(self.span.out),
            "w",
            format="mp4",
            options={"movflags": "+faststart", "fflags": "+bitexact"},
        )
        rate = Fraction(self.probe.fps).limit_denominator(1001)
        self.stream = self.container.add_stream("libx264", rate=rate, options=self.encoding)
        self.stream.width, self.stream.height = self.shape.size
        self.stream.pix_fmt = "yuv420p"
        self.stream.time_base = self.clock
        codec = self.stream.codec_context
        codec.time_base = self.clock
        codec.thread_count = 1
        codec.flags |= Flags.bitexact
        codec.colorspace = codec.color_primaries = codec.color_trc = self.shape.matrix
        if self.shape.matrix == BT601 and raw.color_primaries in (BT709, PAL):
            codec.color_primaries = raw.color_primaries
        codec.color_range = LIMITED
        self.container.start_encoding()
        # the encoder's version and settings, and the source's captions, travel as SEI units
        self.plain = BitStreamFilterContext("filter_units=remove_types=6", self.stream)

    def _mux(self, packets: list) -> None:
        for packet in packets:
            if self._held is None:
                self.first_dts = packet.dts
            else:
                self.container.mux(self.plain.filter(self._held))
            self._held = packet

    def finish(self, jumped: bool) -> Info | VideoError:
        """Closes the file."""
        try:
            if self.error is None and self.container is not None:
                return self._finish(jumped)
            where = f"from {self.span.start_s:.3f} s to {self.span.end_s:.3f} s"
            kind = DoubtError if jumped and self.error is None else VideoError
            failure = kind(self.error or f"has no frame {where}")
        except (av.error.FFmpegError, VideoError, OSError) as error:
            failure = error if isinstance(error, VideoError) else VideoError(_blamed(error))
        if self.container is not None:
            with contextlib.suppress(av.error.FFmpegError, OSError):
                self.container.close()
        self.span.out.unlink(missing_ok=True)
        return failure

    def _finish(self, jumped: bool) -> Info:
        if self.span.frames not in (None, self.frames):
            kind = DoubtError if jumped else VideoError
            raise kind(f"has {self.frames} frames where the catalog counted {self.span.frames}")
        rest = self.span.end_s - self.last_s
        rest = rest if 0 < rest <= LONGEST_S else 1 / self.probe.fps
        duration = self.pts + max(1, round(rest / self.clock))
        self._mux(self.stream.encode(None))
        # a track lasts from its first to its last time of decoding, and then this long
        self._held.duration = max(1, duration - (self._held.dts - self.first_dts))
        self.container.mux(self.plain.filter(self._held))
        self.container.close()
        duration_s = float(duration * self.clock)
        size = self.shape.size
        fps = self.frames / duration_s
        return Info(self.span.out, *size, self.frames, fps, duration_s, self.shape.box)


def _blamed(error: Exception) -> str:
    """Why a clip failed; raises where it is the disk that failed, for then all the others would."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        raise OSError(error.errno, error.strerror) from None
    return _reason(error)


def image_suffix(probe: Probe) -> str:
    """What a still image is written as."""
    return ".png" if probe.has_alpha or probe.codec == "png" else ".jpg"


def write_image(raw: av.VideoFrame, probe: Probe, span: Span) -> Info | VideoError:
    try:
        shape = Shape(probe, span, "bgra" if probe.has_alpha else "bgr24", raw)
        pixels = shape(raw).to_ndarray()
    except (av.error.FFmpegError, VideoError) as error:
        return VideoError(_reason(error))
    out = span.out.with_suffix(image_suffix(probe))
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if out.suffix == ".jpg" else []
    out.write_bytes(cv2.imencode(out.suffix, pixels, quality)[1].tobytes())
    return Info(out, pixels.shape[1], pixels.shape[0], 1, 0.0, 0.0, shape.box)
