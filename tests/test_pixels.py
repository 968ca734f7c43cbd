"""Weight-free measures: VBench's where they say so, known motion, and planted faults."""

import itertools

import cv2
import numpy as np
import pytest

from curation.synthetic import shapes
from eval.faults import FAULTS
from eval.measures import following, pixels
from eval.measures.measure import Video
from recipes.schema import Synthetic
from tests.planted import decode, package_video

MEASURES = {one.name: one for one in (*pixels.MEASURES, *following.MEASURES)}
FILMS = ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4")


@pytest.fixture(scope="module")
def films() -> dict[str, np.ndarray]:
    return {name: decode(package_video(name), 0, 33, long_side=480)[0] for name in FILMS}


@pytest.fixture(scope="module")
def renderings() -> list[tuple[np.ndarray, str]]:
    config = Synthetic(size=128, frames=17, seed=5)
    scenes = [shapes(number, config) for number in range(24)]
    return [(one.frames, one.captions["en"]) for one in scenes]


def of(name: str, frames: np.ndarray, prompt: str = "", fps: float = 16) -> float:
    return MEASURES[name](Video(frames, fps, prompt))


# --- VBench's ------------------------------------------------------------------------------------


def test_flickering_is_vbenchs_formula(films):
    for frames in films.values():
        # temporal_flickering.py: the mean of each pair's mean absolute difference, in float32
        pairs = [
            np.mean(cv2.absdiff(np.array(a, dtype=np.float32), np.array(b, dtype=np.float32)))
            for a, b in itertools.pairwise(frames)
        ]
        wanted = (255.0 - np.mean(pairs)) / 255.0
        assert of("temporal_flickering", frames) == pytest.approx(wanted, abs=1e-6)


# --- known motion --------------------------------------------------------------------------------


def moving(pixels_a_frame: float, frames: int = 17, size: int = 256) -> np.ndarray:
    """A texture that shifts to the right."""
    random = np.random.RandomState(0)
    texture = cv2.GaussianBlur(random.rand(size, 3 * size).astype(np.float32), (0, 0), 3)
    texture = (texture - texture.min()) / np.ptp(texture) * 255
    shifts = [size - t * pixels_a_frame for t in range(frames)]
    moves = [np.float32([[1, 0, -shift], [0, 1, 0]]) for shift in shifts]
    shifted = [cv2.warpAffine(texture, move, (size, size)) for move in moves]
    return np.repeat(np.rint(shifted).astype(np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("step", [0.5, 2.0, 4.0])
def test_speed_is_that_of_what_moves(step):
    found = of("speed_dis", moving(step))
    # of the fastest twentieth: the flow's own errors of a quarter of a pixel add to it
    wanted, error = step * 16 / 256, 0.25 / 2 * 16 / 256
    assert 0.85 * wanted < found < 1.15 * wanted + error
    halved = of("speed_dis", moving(step)[:, ::2, ::2])  # the same in short sides
    assert 0.85 * wanted < halved < 1.15 * wanted + 2 * error


def test_what_moves_by_vbenchs_threshold_is_dynamic():
    assert of("dynamic_dis", moving(2.5)) == 0  # 5 pixels in 1/8 s
    assert of("dynamic_dis", moving(4)) == 1  # 8 pixels
    frames = moving(4)
    frames[6:] = frames[6]  # moving in a fifth of the pairs only
    assert of("dynamic_dis", frames) == 1
    frames[2:] = frames[2]
    assert of("dynamic_dis", frames) == 0


def test_even_motion_is_smooth_and_a_jump_is_not():
    frames = moving(2)
    assert of("smoothness_dis", frames) > 0.99
    jumping = frames.copy()
    jumping[9] = np.roll(jumping[9], 25, axis=1)
    assert of("smoothness_dis", jumping) < of("smoothness_dis", frames) - 0.003


def test_sharpness_noise_and_clipping_are_what_they_say():
    grey = np.full((3, 64, 64, 3), 128, np.uint8)
    random = np.random.RandomState(0)
    grain = 5 * random.randn(3, 64, 64, 1)
    assert of("noise", grey) == 0
    grainy = np.rint(grey + grain).astype(np.uint8)
    assert of("noise", grainy) == pytest.approx(5, rel=0.05)
    assert of("sharpness", grey) == 0
    white = grey.copy()
    white[:, :16] = 255
    assert of("clipped", white) == 0.25
    edge = np.zeros((1, 64, 64, 3), np.uint8)
    edge[:, :, 32:] = 200
    assert of("sharpness", edge) > 10 * of("sharpness", FAULTS["blur"].plant(edge))
    assert of("noise", edge) == 0  # blind to straight edges


def test_one_frame_has_no_motion_and_says_so():
    frame = moving(1, frames=1)
    for name in ("temporal_flickering", "smoothness_dis", "speed_dis", "dynamic_dis"):
        assert np.isnan(of(name, frame)), name


# --- planted faults ------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["freeze", "shuffle", "flicker", "blur", "noise"])
def test_a_fault_in_a_film_moves_its_own_measure(films, fault):
    planted = FAULTS[fault]
    for name, frames in films.items():
        before, after = of(planted.measure, frames), of(planted.measure, planted.plant(frames))
        assert (after < before) == planted.falls, (name, before, after)


@pytest.mark.parametrize("fault", ["mirror", "recolor", "duplicate"])
def test_a_fault_in_a_rendering_moves_its_own_measure(renderings, fault):
    planted, found = FAULTS[fault], {}
    for plant in (False, True):
        values = []
        for frames, prompt in renderings:
            if fault == "mirror" and not prompt.endswith(("left", "right")):
                continue
            shown = planted.plant(frames) if plant else frames
            values.append(of(planted.measure, shown, prompt))
        found[plant] = np.mean(values)
    assert found[False] == 1
    assert found[True] < 0.35


def test_a_fault_changes_nothing_in_place_and_repeats_itself(films):
    frames = films["bikes.mp4"]
    kept = frames.copy()
    for fault in FAULTS.values():
        first = fault.plant(frames, seed=3)
        assert first.shape == frames.shape
        assert first.dtype == np.uint8
        assert (first == fault.plant(frames, seed=3)).all()
        assert (frames == kept).all()


def test_a_prompt_that_was_not_rendered_is_not_judged(films):
    video = Video(films["bikes.mp4"], 25, "people on bicycles")
    assert all(np.isnan(one(video)) for one in following.MEASURES)


def test_what_is_no_video_is_refused():
    for wrong in (np.zeros((3, 8, 8)), np.zeros((3, 8, 8, 3)), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="frames are uint8"):
            Video(wrong, 16)
