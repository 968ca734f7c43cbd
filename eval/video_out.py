"""Writes sampled frames: H.264 in mp4, or PNG for a single frame, opened by players and browsers.

8-bit yuv420p of limited range, tagged BT.709, constant frame rate, the index before the data so
that a browser starts at once. The bytes are the same on every run: one thread, bit-exact scaling,
no dates, no name of an encoder. A file stands under its name only when it is whole.

t frames, H height, W width.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.bitstream import BitStreamFilterContext
from av.codec.context import Flags
from PIL import Image

CRF = 12  # on real video about 45 dB: compression is not what a measure of the samples sees
PRESET = "medium"
BT709, LIMITED = 1, 1  # ITU-T H.273; av.video.reformatter.ColorRange.MPEG
EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+bitexact"  # the same on every processor


def pixels(frames: torch.Tensor) -> np.ndarray:
    """Frames [3, t, H, W] in -1..1 as RGB uint8 [t, H, W, 3], rounded to the nearest."""
    scaled = (frames.float() * 0.5 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under; it becomes `path` at the end, or is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_image(path: Path, frame: np.ndarray) -> None:
    """One frame, RGB uint8 [H, W, 3], as PNG."""
    Image.fromarray(frame).save(path, "PNG")


def write_video(path: Path, chunks: Iterable[np.ndarray], fps: float = 16, crf: int = CRF) -> int:
    """Encodes frames as they come, so that memory does not grow with the length.

    Args:
        path: written as mp4, whatever it is called; write under `whole`.
        chunks: RGB uint8 [t, H, W, 3], any t, H and W even.
        fps: frames a second, exact: the nearest fraction with a denominator of at most 1001.
        crf: x264's constant rate factor, 1 (large) to 51.

    Returns:
        How many frames were written.

    Raises:
        ValueError: there are no frames, or their width or height is odd.
    """
    rate = Fraction(fps).limit_denominator(1001)
    movie = None
    try:
        for chunk in chunks:
            for frame in chunk:
                movie = movie or _Movie(path, frame.shape[1], frame.shape[0], rate, crf)
                movie.add(frame)
        if movie is None:
            raise ValueError(f"{path}: no frames to write")
        movie.finish()
    finally:
        if movie:
            movie.container.close()
    return movie.frames


class _Movie:
    """An mp4 file that is being written."""

    def __init__(self, path: Path, width: int, height: int, rate: Fraction, crf: int):
        if width % 2 or height % 2:
            raise ValueError(f"{width}x{height}: yuv420p wants an even width and height")
        self.frames, self.tick = 0, 1 / rate
        self.container = av.open(
            str(path),
            "w",
            format="mp4",
            options={"movflags": "+faststart", "fflags": "+bitexact"},
        )
        # The same bytes everywhere: x264 computes otherwise on other vector instructions, and its
        # macroblock tree gave two runs different bytes at 64 × 64
        options = {"crf": str(crf), "preset": PRESET, "mbtree": "0"}
        options["x264-params"] = "cpu-independent=1"
        self.stream = self.container.add_stream("libx264", rate=rate, options=options)
        self.stream.width, self.stream.height = width, height
        self.stream.pix_fmt = "yuv420p"
        self.stream.time_base = self.tick
        codec = self.stream.codec_context
        codec.time_base = self.tick
        codec.thread_count = 1
        codec.flags |= Flags.bitexact
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = LIMITED
        self.container.start_encoding()
        # the encoder's version and settings travel as SEI units
        self.plain = BitStreamFilterContext("filter_units=remove_types=6", self.stream)
        self.graph = av.filter.Graph()
        self.graph.threads = 1
        source = self.graph.add_buffer(
            width=width, height=height, format=av.VideoFormat("rgb24"), time_base=self.tick
        )
        scale = self.graph.add("scale", f"{EXACT}:out_color_matrix=bt709:out_range=tv")
        form = self.graph.add("format", "yuv420p")
        self.graph.link_nodes(source, scale, form, self.graph.add("buffersink")).configure()

    def add(self, frame: np.ndarray) -> None:
        self.graph.push(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
        converted = self.graph.pull()
        converted.pts, converted.time_base = self.frames, self.tick
        self._mux(self.stream.encode(converted))
        self.frames += 1

    def _mux(self, packets: list) -> None:
        for packet in packets:
            packet.duration = 1  # every frame is shown equally long, the last one too
            self.container.mux(self.plain.filter(packet))

    def finish(self) -> None:
        self._mux(self.stream.encode(None))
        self.container.close()
