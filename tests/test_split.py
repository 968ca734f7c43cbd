"""Cuts are exact to the frame, a fade is two cuts, a flash is none."""

import itertools

import cv2
import numpy as np
import pytest
from scenedetect import FrameTimecode, SceneManager, open_video
from scenedetect.detectors import AdaptiveDetector

from curation import split, transnet, video
from curation.video import Probe
from recipes.schema import Split

H, W = 90, 160


def scene(seed: int, n: int, drift: float = 1.0) -> list[np.ndarray]:
    """n frames of a textured picture that drifts, BGR uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (8, 14, 3)).astype(np.uint8)
    wide = cv2.resize(coarse, (W * 2, H), interpolation=cv2.INTER_CUBIC)
    tint = rng.integers(40, 215, 3)
    wide = (0.6 * wide + 0.4 * tint).astype(np.uint8)
    return [
        np.ascontiguousarray(wide[:, int(drift * i) % W : int(drift * i) % W + W]) for i in range(n)
    ]


class Picture:
    def detail(self, raw):
        return np.ascontiguousarray(raw[..., ::-1])

    def native(self, raw):
        return cv2.cvtColor(raw, cv2.COLOR_BGR2GRAY)


def walk(frames, options=None, fps=25.0, **more):
    """The clips of rendered frames."""
    probe = Probe("", "", "", W, H, fps, 0, 0.0, 0, "1:1", False, 8, False, False, False)
    picture = Picture()
    stream = (video.Frame(i, i / fps, 100, frame, frame, picture) for i, frame in enumerate(frames))
    found = split.clips(stream, probe, options or Split(guard_frames=0), **more)
    return [item for item in found if item is not None]


def spans(clips) -> list[tuple[int, int]]:
    return [(span.start_frame, span.end_frame) for span, _ in clips]


def test_hard_cuts_are_found_at_their_exact_frames():
    frames = scene(1, 40) + scene(2, 33) + scene(3, 51)
    assert spans(walk(frames)) == [(0, 40), (40, 73), (73, 124)]


@pytest.mark.parametrize("detector", ["content", "histogram"])
def test_the_other_detectors_find_them_too(detector):
    frames = scene(1, 40) + scene(2, 33) + scene(3, 51)
    options = Split(detector=detector, guard_frames=0)
    assert spans(walk(frames, options)) == [(0, 40), (40, 73), (73, 124)]


def test_frames_next_to_a_cut_are_left_out_but_not_at_the_file_s_ends():
    frames = scene(1, 40) + scene(2, 40)
    assert spans(walk(frames, Split(guard_frames=2))) == [(0, 38), (42, 80)]


@pytest.mark.parametrize("length", [1, 2])
def test_a_flash_is_not_a_cut(length):
    frames = scene(1, 80)
    for i in range(40, 40 + length):
        frames[i] = np.full_like(frames[i], 255)
    assert spans(walk(frames)) == [(0, 80)]


def test_without_the_flash_rule_the_same_flash_would_cut():
    frames = scene(1, 80)
    frames[40] = np.full_like(frames[40], 255)
    assert len(walk(frames, Split(guard_frames=0, flash_frames=0))) > 1


def test_a_fade_to_black_and_back_is_two_cuts_with_the_black_apart():
    out, back = scene(1, 50), scene(2, 50)
    for i in range(10):
        out[40 + i] = (out[40 + i] * (1 - (i + 1) / 10)).astype(np.uint8)
        back[i] = (back[i] * (i / 10)).astype(np.uint8)
    frames = out + [np.zeros_like(out[0])] * 20 + back
    first, black, last = walk(frames)
    assert 46 <= first[0].end_frame <= 50
    assert black[1].gray.mean() < 12
    assert 70 <= last[0].start_frame <= 74
    assert first[1].gray.mean(axis=(1, 2)).min() > 5
    assert last[1].gray.mean(axis=(1, 2)).min() > 5


def test_every_shot_of_half_a_second_gets_a_clip_and_no_shorter_one():
    frames = scene(1, 30) + scene(2, 13) + scene(3, 12) + scene(4, 30)
    assert spans(walk(frames)) == [(0, 30), (30, 43), (55, 85)]


def test_a_long_shot_is_windowed_without_a_gap_or_a_stump():
    frames = scene(1, 260, drift=0.3)
    clips = walk(frames, Split(guard_frames=0, window_s=2.0))
    found = spans(clips)
    assert found[0][0] == 0
    assert found[-1][1] == 260
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    assert all(b - a >= 13 for a, b in found)
    assert {b - a for a, b in found[:-1]} == {50}


def test_every_clip_has_samples_and_every_frame_of_its_span():
    frames = scene(1, 30) + scene(2, 14) + scene(3, 200)
    for span, clip in walk(frames, Split(window_s=3.0)):
        n = span.end_frame - span.start_frame
        assert clip.gray.shape == (n, H, W)
        assert len(clip.rgb) == len(clip.native) == len(clip.samples) >= 1
        assert clip.samples.min() >= 0
        assert clip.samples.max() < n
        assert clip.bytes == 100 * n
        expected = cv2.cvtColor(frames[span.start_frame], cv2.COLOR_BGR2GRAY)
        assert np.array_equal(clip.gray[0], expected)
        assert span.end_s == pytest.approx(span.end_frame / 25)


@pytest.mark.parametrize("fps", [1.0, 4.0, 8.0, 240.0])
def test_odd_frame_rates_give_clips_with_samples(fps):
    frames = scene(1, 30) + scene(2, 150, drift=0.1)
    assert all(len(clip.samples) >= 1 for _, clip in walk(frames, fps=fps))


def test_cuts_of_a_real_film_are_pyscenedetect_s_own(tmp_path):
    """The same detector on the same small frames, driven by its own manager."""
    path = "data/samples/sintel-attack.mp4"
    probe = video.probe(path)
    small = [f.small for f in video.frames(path, probe)]
    manager = SceneManager()
    manager.add_detector(AdaptiveDetector(min_scene_len=1))
    manager.auto_downscale = False
    manager.downscale = probe.height // 180
    manager.detect_scenes(open_video(path))
    theirs = [start.frame_num for start, _ in manager.get_scene_list()][1:]
    cuts = split.Cuts(Split(fade_threshold=0, flash_frames=0), probe.fps)
    ours = [cut for i, frame in enumerate(small) for cut in cuts.see(i, frame)] + cuts.end()
    assert ours == theirs
    assert len(ours) >= 2


def test_transnetv2_gives_the_scenes_that_its_package_gives():
    """The published network, driven frame by frame, against the package's own whole-film pass."""
    import torch

    detector = transnet.TransNetV2Detector()
    path = "data/samples/sintel-attack.mp4"
    small = [f.small for f in itertools.islice(video.frames(path, video.probe(path)), 30, 80)]
    times = [FrameTimecode(i, 24.0) for i in range(len(small))]
    cuts = [c for t, f in zip(times, small, strict=True) for c in detector.process_frame(t, f)]
    cuts += detector.post_process(times[-1])
    seen = np.stack([cv2.resize(f, (48, 27), interpolation=cv2.INTER_AREA) for f in small])
    whole = torch.from_numpy(np.ascontiguousarray(seen[..., ::-1]))
    chances, _ = detector.model.predict_frames(whole, quiet=True)
    scenes = detector.model.predictions_to_scenes(chances.numpy())
    assert [cut.frame_num for cut in cuts] == [start for start, _ in scenes[1:]]
    assert len(cuts) >= 1


def test_transnetv2_cuts_clips():
    frames = scene(1, 28) + scene(2, 22)
    options = Split(detector="transnetv2", guard_frames=0)
    assert spans(walk(frames, options)) == [(0, 28), (28, 50)]


class Late(AdaptiveDetector):
    """Tells its cuts as late as TransNetV2 may."""

    event_buffer_length = transnet.WINDOW - transnet.MARGIN

    def __init__(self):
        super().__init__(min_scene_len=1)
        self.told: list[tuple[int, FrameTimecode]] = []

    def process_frame(self, timecode, frame_img):
        now = timecode.frame_num
        late = now + self.event_buffer_length - 2
        self.told += [(late, cut) for cut in super().process_frame(timecode, frame_img)]
        due = [cut for when, cut in self.told if when <= now]
        self.told = [(when, cut) for when, cut in self.told if when > now]
        return due

    def post_process(self, timecode):
        return [cut for _, cut in self.told] + super().post_process(timecode)


def test_a_late_detector_s_cuts_are_exact_across_windows(monkeypatch):
    monkeypatch.setattr(split, "_hard_cuts", lambda options: Late())
    frames = scene(1, 90) + scene(2, 130) + scene(3, 40)
    options = Split(guard_frames=0, window_s=1.0)
    edges = [0, 25, 50, 75, 90, 115, 140, 165, 190, 220, 245, 260]
    assert spans(walk(frames, options)) == list(itertools.pairwise(edges))


def test_a_pan_and_a_moving_object_are_not_cuts():
    assert len(walk(scene(5, 120, drift=1.3))) == 1


@pytest.mark.parametrize(
    ("seconds", "frames", "length"),
    [(5.0625, 81, 81), (5.0, 80, 77), (0.5, 8, 5), (1 / 16, 1, 1), (0.01, 1, 1)],
)
def test_lengths_count_frames_at_16_a_second(seconds, frames, length):
    assert split.frames_at_16fps(1.0, 1.0 + seconds) == frames
    assert split.length_4k1(frames) == length
