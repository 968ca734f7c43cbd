"""Shots and clips: the single pass's frames in, clips out, each as soon as it is known.

The cuts are PySceneDetect's, whose detectors are driven frame by frame on the pass's small frames.
A fade to black and back gives two cuts, so that the black between stands apart. Long shots are
windowed; the frames next to a cut are left out; a flash is not a cut.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import (
    AdaptiveDetector,
    ContentDetector,
    HistogramDetector,
    ThresholdDetector,
)

from curation.scorer import Clip
from curation.video import Frame, Probe
from recipes.schema import Split, Weights

SAME = 15.0  # mean HSV distance under which two frames show the same (AdaptiveDetector's floor)


@dataclass(frozen=True)
class Span:
    """Where a clip lies in its file: frames from start to end (exclusive), and their times."""

    start_frame: int
    end_frame: int
    start_s: float
    end_s: float


class Cuts:
    """Cut detection, frame by frame.

    `see` returns the first frames of new shots as soon as they are certain: a cut in motion two
    frames late, a fade when the picture is back.
    """

    def __init__(self, options: Split, fps: float):
        self.options, self.fps = options, fps
        self.detectors = [_hard_cuts(options)] if options.detector != "none" else []
        self.fades = None
        if options.fade_threshold > 0:
            # fade_bias −1 dates the cut at the frame where black begins; where it ends is now
            self.fades = ThresholdDetector(
                options.fade_threshold,
                min_scene_len=1,
                fade_bias=-1.0,
                add_final_scene=True,
                min_out_length=2,
            )
        self.recent: deque[tuple[int, np.ndarray]] = deque(maxlen=2 * options.flash_frames + 4)
        self.candidates: list[int] = []
        self.latency = max([2, *(d.event_buffer_length for d in self.detectors)])  # frames
        self.last = 0

    def see(self, index: int, small: np.ndarray) -> list[int]:
        """Takes the next frame, BGR uint8 [h, w, 3]; returns the cuts that are now certain."""
        time = FrameTimecode(index, self.fps)
        self.last = index
        self.recent.append((index, small))
        for detector in self.detectors:
            self.candidates += [cut.frame_num for cut in detector.process_frame(time, small)]
        cuts = self._certain(index)
        if self.fades:
            for cut in self.fades.process_frame(time, small):
                cuts += [cut.frame_num, index]
        return sorted(cuts)

    def end(self) -> list[int]:
        """After the last frame: the cuts that were still open."""
        cuts = self._certain(self.last + self.options.flash_frames)
        time = FrameTimecode(self.last, self.fps)
        for detector in self.detectors:
            cuts += [cut.frame_num for cut in detector.post_process(time)]
        if self.fades:
            cuts += [cut.frame_num for cut in self.fades.post_process(time)]
        return sorted(cuts)

    def _certain(self, index: int) -> list[int]:
        known = [c for c in self.candidates if index >= c + self.options.flash_frames]
        self.candidates = [c for c in self.candidates if c not in known]
        return [c for c in known if not self._is_flash(c)]

    def _is_flash(self, cut: int) -> bool:
        """Whether the picture from before the cut is back within `flash_frames` frames.

        A flash gives two peaks, on and off: at either, some frame before the cut equals one after
        it. Across a true cut no such pair exists.
        """
        longest = self.options.flash_frames
        before = [(i, f) for i, f in self.recent if cut - 1 - longest <= i < cut]
        after = [(i, f) for i, f in self.recent if cut <= i <= cut + longest]
        return any(
            j - i <= longest + 1 and j - i > 1 and _distance(a, b) < SAME
            for i, a in before
            for j, b in after
        )


def _hard_cuts(options: Split):
    """The chosen detector; a cut may follow the last at once, short shots fall later."""
    threshold = {} if options.threshold is None else {"threshold": options.threshold}
    if options.detector == "adaptive":
        threshold = {"adaptive_" + name: value for name, value in threshold.items()}
        return AdaptiveDetector(min_scene_len=1, **threshold)
    if options.detector == "content":
        return ContentDetector(min_scene_len=0, **threshold)
    if options.detector == "histogram":
        return HistogramDetector(min_scene_len=1, **threshold)
    from curation.transnet import TransNetV2Detector

    return TransNetV2Detector(**threshold)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute HSV difference of two BGR frames, 0–255, as ContentDetector has it."""
    a, b = (cv2.cvtColor(frame, cv2.COLOR_BGR2HSV) for frame in (a, b))
    return sum(cv2.mean(cv2.absdiff(a, b))[:3]) / 3


class _Shot:
    """Frames since the last boundary."""

    def __init__(self):
        self.first = 0
        self.gray: list[np.ndarray] = []
        self.times: list[float] = []
        self.bytes: list[int] = []
        self.samples: list[tuple[int, np.ndarray, np.ndarray]] = []  # frame, rgb, native luma

    def add(self, frame: Frame, sampled: bool) -> None:
        self.gray.append(cv2.cvtColor(frame.small, cv2.COLOR_BGR2GRAY))
        self.times.append(frame.time_s)
        self.bytes.append(frame.bytes)
        if sampled:
            picture = frame.picture
            self.samples.append((frame.index, picture.detail(frame.raw), picture.native(frame.raw)))

    @property
    def end(self) -> int:
        return self.first + len(self.gray)

    def take(self, end: int) -> "_Shot":
        """Everything before frame `end`, which this shot then begins with."""
        head, n = _Shot(), end - self.first
        head.first, self.first = self.first, end
        head.gray, self.gray = self.gray[:n], self.gray[n:]
        head.times, self.times = self.times[:n], self.times[n:]
        head.bytes, self.bytes = self.bytes[:n], self.bytes[n:]
        head.samples = [s for s in self.samples if s[0] < end]
        self.samples = [s for s in self.samples if s[0] >= end]
        return head


def clips(
    frames: Iterable[Frame],
    probe: Probe,
    options: Split,
    *,
    sample_fps: float = 2.0,
    weights: Weights | None = None,
) -> Iterator[tuple[Span, Clip] | None]:
    """Splits one pass over a file into clips.

    Memory stays bounded: at most a window and half a second of frames are held.

    Args:
        sample_fps: at least so many frames a second reach the costly scorers, and at least one of
            each clip.

    Yields:
        a clip, or None for a frame that completes none (a sign of life).
    """
    weights = weights or Weights()
    if probe.is_image:
        for frame in frames:
            shot = _Shot()
            shot.add(frame, sampled=True)
            yield Span(0, 1, 0.0, 0.0), _clip(shot, probe, weights)
        return
    shot, cuts, left_is_cut = _Shot(), Cuts(options, probe.fps), False
    # no clip, its guard frames taken off, fits between two samples
    shortest = options.min_s - (2 * options.guard_frames + 1) / probe.fps
    interval = min(1 / sample_fps, max(options.min_s / 2, shortest))
    sample_s = 0.0

    def close(end: int, end_s: float, right_is_cut: bool) -> Iterator[tuple[Span, Clip]]:
        nonlocal left_is_cut
        piece = shot.take(end)
        if end_s - piece.times[0] >= options.min_s - 1e-6:
            # a slide show at one frame a second keeps at least half of its frames
            guard = min(options.guard_frames, (len(piece.gray) - 1) // 4)
            if left_is_cut:
                piece.take(piece.first + guard)
            if right_is_cut and guard:
                end -= guard
                end_s = piece.times[end - piece.first]
                piece = piece.take(end)
            yield Span(piece.first, end, piece.times[0], end_s), _clip(piece, probe, weights)
        left_is_cut = right_is_cut

    def windows(known: int, end_s: float) -> Iterator[tuple[Span, Clip]]:
        """Closes the windows of a shot that has no cut before frame `known`, at time `end_s`."""
        while shot.gray and end_s >= shot.times[0] + options.window_s + options.min_s - 1e-6:
            edge = shot.times[0] + options.window_s - 1e-6
            cut = shot.first + int(np.searchsorted(shot.times, edge))
            if not shot.first < cut < known:
                return
            yield from close(cut, shot.times[cut - shot.first], False)

    def until(cut: int, end_s: float) -> Iterator[tuple[Span, Clip]]:
        yield from windows(cut, end_s)
        yield from close(cut, end_s, True)

    for frame in frames:
        due = frame.time_s >= sample_s - 1e-9
        if due:
            sample_s = frame.time_s + interval
        shot.add(frame, sampled=due)
        for cut in cuts.see(frame.index, frame.small):
            if shot.first < cut < shot.end:
                yield from until(cut, shot.times[cut - shot.first])
        known = max(shot.first, shot.end - cuts.latency)
        if known > shot.first:
            yield from windows(known, shot.times[known - shot.first])
        yield None
    for cut in cuts.end():
        if shot.first < cut < shot.end:
            yield from until(cut, shot.times[cut - shot.first])
    if shot.gray:
        end_s = shot.times[-1] + 1 / probe.fps
        yield from windows(shot.end, end_s)
        yield from close(shot.end, end_s, False)


def _clip(shot: _Shot, probe: Probe, weights: Weights) -> Clip:
    if not shot.samples:
        raise ValueError(f"no sample in frames {shot.first} to {shot.end}")
    return Clip(
        gray=np.stack(shot.gray),
        times=np.array(shot.times),
        rgb=np.stack([rgb for _, rgb, _ in shot.samples]),
        native=[native for _, _, native in shot.samples],
        samples=np.array([index - shot.first for index, _, _ in shot.samples]),
        width=probe.width,
        height=probe.height,
        fps=probe.fps,
        bytes=sum(shot.bytes),
        weights=weights,
    )


def frames_at_16fps(start_s: float, end_s: float) -> int:
    """How many frames 16 a second give: those k with start + k/16 before the end."""
    return max(1, math.ceil((end_s - start_s) * 16 - 1e-3))


def length_4k1(frames: int) -> int:
    """The largest 4k + 1 that is not more than `frames` (the VAE's lengths, Wan report §4.1)."""
    return 4 * ((frames - 1) // 4) + 1
