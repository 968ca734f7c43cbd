"""Pictures of a bucket's size: which frames of a clip, and which part of them.

Frames are told by their time stamps, as curation tells them, so a variable rate is no special case.
PyAV reads, scaling before it converts: as fast as decord without scaling, with the same pixels
(`tests/benchmarks/loading.py`), and safe in a forked process.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import av
import cv2
import numpy as np
import torch
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from PIL import Image, ImageOps
from torch import Tensor

from curation.video import MAX_PIXELS
from training import foreign
from training.batch import Bucket

NEAR = 1e-3  # of a frame at the wanted rate: stamps are rounded
Box = tuple[float, ...]  # x, y, width, height


@dataclass(frozen=True)
class View:
    """Which part of a picture is shown."""

    zoom: float = 1.0  # 1: as much as fills the bucket
    x: float = 0.5  # 0 … 1: of what is too wide, how much is cut off on the left
    y: float = 0.5  # of what is too high, how much above
    flip: bool = False  # mirrored


MIDDLE = View()


class BrokenError(Exception):
    """One line that says why a sample can't be used."""


def line(error: Exception) -> str:
    """The first of what an error says."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def video(
    data: bytes,
    bucket: Bucket,
    fps: float,
    place: float,
    box: Box | None = None,
    length_s: float | None = None,
    view: View = MIDDLE,
) -> tuple[Tensor, tuple[int, int]]:
    """uint8 [3, T, H, W]: of a clip, as many frames as the bucket has, scaled to cover it.

    Frame k is the one that is shown k / fps after the first. Also the numbers, among the clip's own
    frames, of the first and the last of them.

    Args:
        place: 0 … 1, which of the possible first frames.
        box: x, y, width, height that remain of the picture.
        length_s: as its index has it, which decided on the bucket; containers and packets may
            differ in how long the last frame is shown.
        view: which part of the picture, or of its box.

    Raises:
        BrokenError: it is too short, or too large.
        FFmpegError: it can't be decoded.
    """
    with av.open(io.BytesIO(data), metadata_errors="replace") as container:
        if not container.streams.video:
            raise BrokenError("has no video stream")
        stream = container.streams.video[0]
        stream.thread_count = 1
        if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
            raise BrokenError("its frames are too large")
        stamps = Stamps.of(container, stream)
        end_s = stamps.end_s if length_s is None else min(length_s, stamps.end_s + 1 / fps)
        first = _first(end_s, bucket.frames, fps, place)
        numbers = shown(stamps.times_s, first, bucket.frames, fps)
        wanted = stamps.ticks[numbers]
        container.seek(int(wanted[0]), stream=stream)  # to the key frame before
        taken = _taken(container.decode(stream), wanted, foreign.pixel(stream), bucket, box, view)
        return taken, (int(numbers[0]), int(numbers[-1]))


@dataclass(frozen=True)
class Stamps:
    """When each frame of a clip is shown, in order."""

    ticks: np.ndarray  # of the container's clock
    times_s: np.ndarray  # since the first frame
    end_s: float  # of the last frame

    @classmethod
    def of(cls, container, stream) -> "Stamps":
        """From the packets alone, without decoding."""
        packets = [one for one in container.demux(stream) if one.size and not one.is_discard]
        if not packets or any(one.pts is None for one in packets):
            raise BrokenError("its frames have no time stamps")
        packets.sort(key=lambda one: one.pts)
        ticks, clock = np.array([one.pts for one in packets], np.int64), stream.time_base
        lasts = packets[-1].duration or (ticks[-1] - ticks[-2] if len(ticks) > 1 else 0)
        times = ticks - ticks[0]
        return cls(ticks, times * float(clock), float((times[-1] + lasts) * clock))


def _first(end_s: float, frames: int, fps: float, place: float) -> int:
    """The first frame of a window, counted at the wanted rate."""
    has = max(1, math.ceil(end_s * fps - NEAR))
    if has < frames:
        raise BrokenError(f"{has} frames at {fps:g} a second; its bucket wants {frames}")
    return min(has - frames, int(place * (has - frames + 1)))


def shown(times_s: np.ndarray, first: int, frames: int, fps: float) -> np.ndarray:
    """Which frame is shown at each of the wanted times: the last one that has begun."""
    times = (first + np.arange(frames) + NEAR) / fps
    return np.maximum(np.searchsorted(times_s, times, side="right") - 1, 0)


def _taken(
    walk: Iterator[av.VideoFrame],
    wanted: np.ndarray,
    ratio: float,
    bucket: Bucket,
    box: Box | None,
    view: View,
) -> Tensor:
    """The wanted frames of a walk, each scaled and cut; one that is wanted twice is copied."""
    out = np.empty((3, len(wanted), bucket.height, bucket.width), np.uint8)
    scaler, at = VideoReformatter(), 0
    for frame in walk:
        if frame.pts != wanted[at]:
            continue
        _scaled(frame, scaler, ratio, bucket, box, view, out[:, at])
        at += 1
        while at < len(wanted) and wanted[at] == wanted[at - 1]:
            out[:, at] = out[:, at - 1]
            at += 1
        if at == len(wanted):
            return torch.from_numpy(out)
    raise BrokenError(f"only {at} of {len(wanted)} frames can be decoded")


def _scaled(
    frame: av.VideoFrame,
    scaler: VideoReformatter,
    ratio: float,
    bucket: Bucket,
    box: Box | None,
    view: View,
    out: np.ndarray,
) -> None:
    """Into `out`, RGB [3, H, W]; `ratio`: of a pixel's width to its height."""
    turn = foreign.quarters(frame)
    fit = fitted(foreign.upright(frame, ratio), (bucket.width, bucket.height), box, view)
    width, height = (fit.height, fit.width) if turn % 2 else (fit.width, fit.height)
    scaled = scaler.reformat(
        frame,
        width=width,
        height=height,
        format="gbrp",  # plane by plane as networks want it: half the time of interleaved pixels
        interpolation=Interpolation.AREA,
        dst_color_range=ColorRange.JPEG,
        threads=1,  # readers are processes already; swscale's own threads only wait
    )
    for channel, plane in zip((1, 2, 0), scaled.planes, strict=True):
        pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :width]
        out[channel] = fit.cut(np.rot90(pixels, -turn) if turn else pixels)


@dataclass(frozen=True)
class Fit:
    """A whole picture's new size, and the part of it that fills the bucket."""

    width: int
    height: int
    left: int
    top: int
    size: tuple[int, int]  # the bucket's
    flip: bool

    def cut(self, picture: np.ndarray) -> np.ndarray:
        width, height = self.size
        part = picture[self.top : self.top + height, self.left : self.left + width]
        return part[:, ::-1] if self.flip else part


@lru_cache(256)
def fitted(
    size: tuple[float, float], target: tuple[int, int], box: Box | None, view: View = MIDDLE
) -> Fit:
    """A picture scaled so that its box covers the target, at least; the view says what is cut off.

    Raises:
        BrokenError: the box is not within the picture.
    """
    x, y, across, down = box or (0, 0, *size)
    outside = x < 0 or y < 0 or x + across > size[0] + 1 or y + down > size[1] + 1
    if outside or across <= 0 or down <= 0:
        raise BrokenError(f"its crop box {box} is not within {size[0]:g}x{size[1]:g}")
    scale = max(target[0] / across, target[1] / down)
    scale = max(scale, min(scale * view.zoom, 1))  # a zoom never enlarges
    width = max(target[0], round(size[0] * scale))
    height = max(target[1], round(size[1] * scale))
    left = round(x * scale + view.x * (across * scale - target[0]))
    top = round(y * scale + view.y * (down * scale - target[1]))
    left = min(max(left, 0), width - target[0])
    return Fit(width, height, left, min(max(top, 0), height - target[1]), target, view.flip)


def image(data: bytes, bucket: Bucket, box: Box | None = None, view: View = MIDDLE) -> Tensor:
    """uint8 [3, 1, H, W]; what shines through is white."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BrokenError("it is too large")
            picture = ImageOps.exif_transpose(opened)
            if "A" in picture.getbands() or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                ground = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(ground, picture)
            rgb = np.asarray(picture.convert("RGB"))
    except (Image.DecompressionBombError, SyntaxError) as error:
        raise BrokenError(line(error)) from None
    fit = fitted((rgb.shape[1], rgb.shape[0]), (bucket.width, bucket.height), box, view)
    if (fit.width, fit.height) != (rgb.shape[1], rgb.shape[0]):
        shrinks = fit.width < rgb.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        rgb = cv2.resize(rgb, (fit.width, fit.height), interpolation=how)
    return torch.from_numpy(np.array(fit.cut(rgb))).permute(2, 0, 1)[:, None]
