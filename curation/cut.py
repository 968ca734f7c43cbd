"""Cuts clips out of a file, exact to the frame.

Frames are told by their time stamps, relative to the file's first frame, so a variable frame rate
is no special case: a clip is every frame with start ≤ t < end. `encode` says how clips come out.

It runs in this process through PyAV: as fast as an ffmpeg subprocess with the same settings
(`tests/benchmarks/shards.py`), which would start anew for every clip, would decode again what a
neighbour has decoded, and takes rounded seconds for frames.
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av

from curation import video
from curation.encode import Box, Clip, DoubtError, Info, Span, Tone, write_image
from curation.video import MAX_PIXELS, Probe, VideoError, _reason

__all__ = ["Info", "Span", "cut", "cut_many"]

SEEKABLE = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}  # whose index tells true times
JUMP_S = 0.5  # a key frame nearer than this is reached sooner by decoding on
BEAT_S = 5.0
JUMPS = 4  # tries, each a key frame earlier


def cut(
    path: Path | str,
    start_s: float,
    end_s: float,
    out: Path | str,
    *,
    crop: Box | None = None,
    size: tuple[int, int] | None = None,
    crf: int = 18,
    preset: str = "fast",
    max_pixels: int = MAX_PIXELS,
) -> Info:
    """Cuts one clip; `cut_many` cuts several at the price of one pass.

    Raises:
        VideoError: the file can't be read, or has no frame there.
    """
    spans = [Span(start_s, end_s, Path(out), crop, size)]
    results = cut_many(path, spans, crf=crf, preset=preset, max_pixels=max_pixels)
    found = next(result[1] for result in results if result)
    if isinstance(found, VideoError):
        raise found
    return found


def cut_many(
    path: Path | str,
    spans: Sequence[Span],
    *,
    crf: int = 18,
    preset: str = "fast",
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[int, Info | VideoError] | None]:
    """Cuts clips in one pass, jumping over stretches that nothing asks for where a jump is safe.

    Args:
        spans: in any order; they may overlap. A still image's are written beside `out`, with the
            suffix `.png` where the image has alpha or was one, else `.jpg`.
        crf, preset: x264's.

    Yields:
        (index of the span, what was cut or why not), as each is finished, and None every few
        seconds, so that whoever watches knows that work goes on.

    Raises:
        VideoError: the file can't be read at all.
    """
    probe = video.probe(path, max_pixels)
    # x264 gives other bytes with other vector instructions, and with AVX-512 from run to run
    encoding = {"crf": str(crf), "preset": preset, "x264-params": "cpu-independent=1"}
    if probe.is_image:
        raw = _still(path, max_pixels)
        for index, span in enumerate(spans):
            yield index, write_image(raw, probe, span)
        return
    again = []
    try:
        for result in _pass(path, probe, list(enumerate(spans)), encoding, max_pixels):
            if result and isinstance(result[1], DoubtError):
                again.append((result[0], spans[result[0]]))
            else:
                yield result
        if again:  # a jump gave other frames than expected: from the file's start, without any
            yield from _pass(path, probe, again, encoding, max_pixels, jumps=False)
    except av.error.FFmpegError as error:  # a clip's own failure is yielded
        raise VideoError(_reason(error)) from None


def _pass(path, probe, spans, encoding, max_pixels, jumps=True):
    """One pass over the file for spans [(index, Span)]; yields as `cut_many` does."""
    todo = sorted(spans, key=lambda item: (item[1].start_s, item[0]))
    active: list[tuple[int, Clip]] = []
    tone = Tone()
    # stamps survive rounding to a tenth of a millisecond, and no two frames are so near
    near = min(1e-4, video.STEP_BACK / 2 / probe.fps)
    with _Reader(path, probe, max_pixels, jumps) as reader:
        beat = time.monotonic()
        while todo or active:
            if not active:
                reader.jump(todo[0][1].start_s - near)
            item = reader.read()
            time_s, raw = item if item else (math.inf, None)
            for entry in [e for e in active if time_s >= e[1].span.end_s - near]:
                active.remove(entry)
                yield entry[0], entry[1].finish(reader.jumped)
            while todo and time_s >= todo[0][1].start_s - near:
                index, span = todo.pop(0)
                clip = Clip(span, probe, encoding, reader.clock)
                if raw is not None and time_s < span.end_s - near:
                    active.append((index, clip))
                else:
                    yield index, clip.finish(reader.jumped)
            if active:
                raw = tone(raw)
            for _, clip in active:
                clip.add(time_s, raw)
            if time.monotonic() - beat > BEAT_S:
                beat = time.monotonic()
                yield None


class _Reader:
    """A file's frames with their times, as `video.frames` has them."""

    def __init__(self, path, probe: Probe, max_pixels: int, jumps: bool):
        self.path, self.probe, self.max_pixels = path, probe, max_pixels
        self.jumped = False
        self.sought = 0.0
        self._open(jumps)

    def _open(self, jumps: bool) -> None:
        self.container, self.stream = video.opened(self.path, self.max_pixels)
        self.now = 0.0
        walk = video.decoded(self.container, self.stream)
        frame = next(walk, None)
        stamped = frame is not None and frame.time_s is not None
        self.first = frame.time_s if stamped else None
        base = self.stream.time_base if stamped else 1 / Fraction(self.probe.fps)
        base = base.limit_denominator(90000) if base.denominator >= 2**31 else base
        self.clock = base
        self.index = None
        if jumps and stamped and self.container.format.name in SEEKABLE:
            # Matroska's index is read only when a seek asks for it
            self.container.seek(frame.raw.pts, stream=self.stream)
            walk = video.decoded(self.container, self.stream)
            frame = next(walk, None)
            if frame is None or frame.time_s != self.first:
                self.container.close()
                self._open(jumps=False)
                return
            if len(self.stream.index_entries) > 1:
                self.index = self.stream.index_entries
        self._frames = self._timed(itertools.chain([frame] if frame else [], walk))

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *error) -> None:
        self.container.close()

    def read(self) -> tuple[float, av.VideoFrame] | None:
        """The next frame and its time in seconds; None at the end."""
        return next(self._frames, None)

    def _timed(self, walk) -> Iterator[tuple[float, av.VideoFrame]]:
        if self.probe.interlaced:
            walk = video.deinterlaced(walk, self.stream)
        last = None
        for count, frame in enumerate(walk):
            stamp = frame.time_s if frame.time_s is not None else count / self.probe.fps
            if self.first is None:
                self.first = stamp
            time_s = stamp - self.first
            if last is not None and (time_s <= last or not math.isfinite(time_s)):
                time_s = last + video.STEP_BACK / self.probe.fps
            self.now = last = time_s
            yield time_s, frame.raw

    def jump(self, start_s: float) -> None:
        """Goes on from the last key frame at or before `start_s`, where that saves decoding."""
        if self.index is None or start_s <= self.sought:
            return
        self.sought = start_s
        # bwdif looks at the frame before
        start_s -= 2 / self.probe.fps if self.probe.interlaced else 0
        base = self.stream.time_base
        wanted = int((start_s + self.first) / base)
        place = self.index.search_timestamp(wanted)
        if place < 0 or self.index[place].timestamp * base - self.first < self.now + JUMP_S:
            return
        self.jumped = True
        # an index may hold times of decoding, a few frames before those of presentation, so that
        # only the decoded key frame tells whether it comes early enough
        for _ in range(JUMPS):
            self.container.seek(wanted, stream=self.stream)
            walk = video.decoded(self.container, self.stream)
            # what is shown before the key frame may refer to frames that were jumped over
            key = next((f for f in walk if f.raw.key_frame), None)
            if key and key.time_s is not None and key.time_s - self.first <= start_s:
                self._frames = self._timed(itertools.chain([key], walk))
                return
            place = self.index.search_timestamp(wanted)
            if place < 0:
                break
            wanted = self.index[place].timestamp - 1
        self.container.close()
        self._open(jumps=False)


def _still(path, max_pixels: int) -> av.VideoFrame:
    container, stream = video.opened(path, max_pixels)
    with container:
        frame = next(video.decoded(container, stream), None)
    if frame is None:
        raise VideoError("no frame of its video can be decoded")
    return frame.raw
