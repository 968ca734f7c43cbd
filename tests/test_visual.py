"""The classical scores and the layout descriptor, against planted faults and formulas."""

from functools import lru_cache

import cv2
import numpy as np
import pytest

from curation import visual
from curation.scorer import REGISTRY, Clip, score
from tests import planted
from tests.planted import auc, clip_of, real_clips, seconds

BLACK_BAR = 0.15  # of the height


@lru_cache
def clean_clips() -> tuple[Clip, ...]:
    return tuple(clip_of(real.frames, real.fps) for real in seconds())


def one(function, clip: Clip) -> float:
    (value,) = function(clip).values()
    return value


@lru_cache
def clean(function) -> list[float]:
    return [one(function, clip) for clip in clean_clips()]


def faulty(function, plant) -> list[float]:
    """One score of every real clip, a fault planted into its frames; only the samples matter."""
    return [one(function, clip_of(plant(real.frames[::12]), real.fps / 12)) for real in seconds()]


@lru_cache
def compressed(codec: str, level: int) -> tuple[np.ndarray, ...]:
    return tuple(planted.compress(real.frames, real.fps, codec, level) for real in seconds())


def desaturate(frames: np.ndarray, share: float) -> np.ndarray:
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])[..., None]
    return np.clip(np.rint(grey + share * (frames - grey.astype(np.float32))), 0, 255).astype("u1")


def fade(frames: np.ndarray, share: float) -> np.ndarray:
    mean = frames.mean()
    return np.rint(mean + share * (frames - mean)).astype(np.uint8)


def add_bars(frames: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The whole picture between black bars, and its box."""
    height, width = frames.shape[1:3]
    rows = round(BLACK_BAR * height) // 2 * 2
    return np.pad(frames, ((0, 0), (rows, rows), (0, 0), (0, 0))), [0, rows, width, height]


def boxed(frames: np.ndarray, fps: float, box: list[int]):
    clip = clip_of(frames, fps)
    clip.scores["border_box"] = box
    return clip


def test_colorfulness_is_the_published_formula():
    for clip in clean_clips()[::3]:
        values = []
        for image in clip.rgb.astype(np.float64):
            r, g, b = image[..., 0], image[..., 1], image[..., 2]
            rg, yb = r - g, 0.5 * (r + g) - b
            values.append(
                np.sqrt(rg.std() ** 2 + yb.std() ** 2)
                + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
            )
        assert one(visual.color, clip) == pytest.approx(np.mean(values) / 109, rel=1e-6)


def test_a_grey_picture_has_no_colour_and_a_striped_one_all_of_it():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    assert visual.color(clip_of(grey[None], 1))["colorfulness"] == 0
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, :32, 0] = stripes[:, 32:, 2] = 255
    assert visual.color(clip_of(stripes[None], 1))["colorfulness"] == 1


def test_lost_colour_is_found():
    grey = faulty(visual.color, lambda frames: desaturate(frames, 0.1))
    assert auc([-s for s in clean(visual.color)], [-s for s in grey]) >= 0.95


def test_lost_contrast_is_found():
    flat = faulty(visual.contrast, lambda frames: fade(frames, 0.3))
    assert auc([-s for s in clean(visual.contrast)], [-s for s in flat]) >= 0.95


def test_contrast_is_the_range_between_the_percentiles():
    luma = np.repeat(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    assert visual.contrast(clip_of(luma[None], 1))["contrast"] == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("sigma", [2, 5, 20])
def test_planted_noise_is_found(sigma):
    noisy = faulty(visual.noise, lambda frames: planted.noise(frames, sigma))
    assert auc(clean(visual.noise), noisy) >= 0.95


@pytest.mark.parametrize("sigma", [3, 8])
def test_noise_reads_as_its_standard_deviation_whatever_it_lies_on(sigma):
    found = faulty(visual.noise, lambda frames: planted.noise(frames, sigma))
    assert np.array(found) * visual.LOUD_NOISE == pytest.approx(sigma, rel=0.2)


def test_texture_is_hardly_taken_for_noise():
    """Where the plain estimator, over the whole picture, is taken in by fur and leaves."""
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    ours, plain = [], []
    for real in seconds():
        luma = cv2.cvtColor(real.frames[0], cv2.COLOR_RGB2GRAY)
        response = np.abs(cv2.filter2D(luma, cv2.CV_32F, mask))[1:-1, 1:-1]
        plain.append(np.sqrt(np.pi / 2) / 6 * response.mean())
        ours.append(visual.immerkaer(luma))
    assert max(plain) > 2
    assert max(ours) < 1.5


def test_immerkaers_formula_holds_on_white_noise():
    noise = np.random.default_rng(0).normal(128, 7, (480, 640)).round().astype(np.uint8)
    assert visual.immerkaer(noise) == pytest.approx(7, rel=0.02)


@pytest.mark.parametrize(("codec", "level"), [("libx264", 45), ("mpeg4", 31)])
def test_heavy_compression_is_found(codec, level):
    blocky = [
        one(visual.blocks, clip_of(frames, real.fps))
        for frames, real in zip(compressed(codec, level), seconds(), strict=True)
    ]
    assert auc(clean(visual.blocks), blocky) >= 0.95


def test_blocks_are_found_after_scaling_too():
    blocky = [
        one(visual.blocks, clip_of(planted.resize(frames[::12], 1.5), real.fps / 12))
        for frames, real in zip(compressed("mpeg4", 31), seconds(), strict=True)
    ]
    assert auc(clean(visual.blocks), blocky) >= 0.95


def test_blur_and_noise_are_not_taken_for_blocks():
    for fault in (planted.blur, planted.noise):
        assert auc(clean(visual.blocks), faulty(visual.blocks, fault)) < 0.7


def test_a_frames_long_straight_edge_is_not_a_block():
    dark = np.full((360, 640), 2, np.uint8)
    dark[100:] = 14
    assert visual.block_edges(dark) == 0
    dark[200:216, 300:316] = 40
    assert visual.block_edges(dark) > 0


def test_a_title_on_black_has_no_noise():
    frames = planted.subtitles(np.zeros((1, 360, 640, 3), np.uint8))
    assert visual.noise(clip_of(frames, 1))["noise"] == 0


@pytest.mark.parametrize(
    "function", [visual.color, visual.contrast, visual.noise, visual.blocks, visual.layout]
)
def test_black_borders_change_nothing(function):
    for real in seconds()[::4]:
        frames, box = add_bars(real.frames)
        plain = list(function(clip_of(real.frames, real.fps)).values())[-1]
        bordered = list(function(boxed(frames, real.fps, box)).values())[-1]
        if function is visual.layout:
            assert plain @ bordered > 0.99
        else:
            assert bordered == pytest.approx(plain, rel=0.05, abs=0.01)


def test_a_border_nobody_found_would_have_changed_contrast():
    real = seconds()[7]
    frames, box = add_bars(real.frames)
    plain = one(visual.contrast, clip_of(real.frames, real.fps))
    assert abs(one(visual.contrast, clip_of(frames, real.fps)) - plain) > 0.05
    assert one(visual.contrast, boxed(frames, real.fps, box)) == pytest.approx(plain)


def test_colour_and_contrast_hardly_depend_on_size():
    for real in seconds()[::3]:
        whole = clip_of(real.frames, real.fps)
        half = clip_of(planted.resize(real.frames, 0.5), real.fps)
        for function in (visual.color, visual.contrast):
            assert one(function, half) == pytest.approx(one(function, whole), rel=0.1)


def test_no_score_depends_on_the_frame_rate():
    real = seconds()[4]
    whole, half = clip_of(real.frames, real.fps), clip_of(real.frames[::2], real.fps / 2)
    for function in (visual.color, visual.contrast, visual.noise, visual.blocks):
        assert one(function, half) == pytest.approx(one(function, whole), rel=0.1, abs=0.01)
    assert visual.layout(whole)["vector"] @ visual.layout(half)["vector"] > 0.95


def vectors(frames_of) -> np.ndarray:
    """Of whole clips: some of the first seconds hardly move."""
    return np.stack([visual.layout(clip_of(*frames_of(real)))["vector"] for real in real_clips()])


@pytest.fixture(scope="module")
def originals() -> np.ndarray:
    return vectors(lambda real: (real.frames, real.fps))


COPIES = {
    "encoded at half size": lambda real: (
        planted.compress(planted.resize(real.frames, 0.5), real.fps, level=35),
        real.fps,
    ),
    "encoded badly": lambda real: (planted.compress(real.frames, real.fps, "mpeg4", 20), real.fps),
    "brighter": lambda real: (planted.expose(real.frames, 0.3), real.fps),
    "half the frame rate": lambda real: (real.frames[::2], real.fps / 2),
    "without its first 4 %": lambda real: (real.frames[round(0.04 * len(real.frames)) :], real.fps),
    "grainy": lambda real: (planted.noise(real.frames, 8), real.fps),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_told_from_other_clips(originals, copy):
    copies = vectors(COPIES[copy])
    same = (originals * copies).sum(1)
    other = (originals @ copies.T)[~np.eye(len(originals), dtype=bool)]
    assert auc(list(other), list(same)) >= 0.95
    assert same.min() >= 0.95 > 0.9 > other.max()


def test_unlike_clips_are_far_apart(originals):
    other = (originals @ originals.T)[np.triu_indices(len(originals), 1)]
    assert np.median(other) < 0.3


def test_two_takes_of_one_scene_are_not_copies():
    """A standing camera, another movement: what changes over the clip tells them apart."""
    ground = np.repeat(seconds()[7].frames[:1], 40, 0)
    takes = []
    for direction in (1, -1):
        frames = ground.copy()
        for i, frame in enumerate(frames):
            x = 300 + direction * 6 * (i - 20)
            cv2.circle(frame, (x, 180), 50, (240, 200, 40), -1)
        takes.append(visual.layout(clip_of(frames, 20))["vector"])
    assert takes[0] @ takes[1] < 0.9


def test_vectors_have_unit_length_and_black_is_like_nothing_else(originals):
    assert np.linalg.norm(originals, axis=1) == pytest.approx(1, abs=1e-5)
    black = visual.layout(clip_of(np.zeros((10, 90, 160, 3), np.uint8), 10))["vector"]
    grey = visual.layout(clip_of(np.full((10, 90, 160, 3), 90, np.uint8), 10))["vector"]
    assert originals.dtype == black.dtype == np.float32
    assert np.abs(originals @ black).max() < 0.01
    assert np.linalg.norm(black) == pytest.approx(1)
    assert np.linalg.norm(grey) == pytest.approx(1)


@pytest.mark.parametrize("size", [(480, 640), (144, 176), (33, 47), (9, 200), (1, 1)])
def test_an_image_of_any_size_gets_every_light_score(size):
    rng = np.random.default_rng(0)
    clip = clip_of(rng.integers(0, 256, (1, *size, 3), dtype=np.uint8), 1)
    light = [s for s in REGISTRY.values() if s.step in ("visual", "embeddings")]
    rows = score(clip, [s for s in light if "light" in s.sets])
    for name in ("colorfulness", "contrast", "noise", "blockiness"):
        assert 0 <= rows["visual"][name] <= 1
    assert rows["embeddings"]["model"] == "layout-1"
    assert np.isfinite(rows["embeddings"]["vector"]).all()
    assert "aesthetic" not in rows["visual"]
