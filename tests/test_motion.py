"""Motion: known movements are measured in their units, planted faults told from clean clips."""

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest

from curation import motion
from curation.scorer import REGISTRY, Clip, score
from tests import planted

MOTION = [one for one in REGISTRY.values() if one.step == "motion"]


def scored(clip: Clip) -> dict:
    return score(clip, MOTION)["motion"]


def clip(frames: list | np.ndarray, fps: float = 24.0, times: np.ndarray | None = None) -> Clip:
    """Grey frames as a clip; nothing but them is looked at."""
    gray = np.stack(frames)
    h, w = gray.shape[1:]
    times = np.arange(len(gray)) / fps if times is None else times
    return Clip(gray, times, gray[:1], [gray[0]], np.array([0]), w, h, fps, 1)


@cache
def still() -> np.ndarray:
    """A real picture, grey, 640×360."""
    frames = next(r.frames for r in planted.real_clips() if r.name == "bigbuckbunny-44")
    gray = cv2.cvtColor(frames[0], cv2.COLOR_RGB2GRAY)
    return cv2.resize(gray, (640, 360), interpolation=cv2.INTER_AREA)


def view(dx: float = 0, dy: float = 0, zoom: float = 1, turn: float = 0) -> np.ndarray:
    """What a camera sees of the still, 320×180: shifts in pixels, turn in degrees."""
    matrix = cv2.getRotationMatrix2D((320, 180), turn, zoom)
    matrix[:, 2] += (160 - 320 - dx, 90 - 180 - dy)
    return cv2.warpAffine(still(), matrix, (320, 180), flags=cv2.INTER_LINEAR)


def times(seconds: float = 1.5, fps: float = 24.0) -> np.ndarray:
    return np.arange(round(seconds * fps)) / fps


def passing(t: float, speed: float, ground: np.ndarray, size: int = 70) -> np.ndarray:
    """A textured square that crosses the picture, at `speed` short sides a second."""
    matrix = np.float32([[1, 0, 20 + 180 * speed * t], [0, 1, 55]])
    square = cv2.resize(still()[:200, 300:500], (size, size), interpolation=cv2.INTER_AREA)
    cover = cv2.warpAffine(np.ones((size, size), np.float32), matrix, (320, 180))
    square = cv2.warpAffine(square, matrix, (320, 180))
    return np.rint(ground * (1 - cover) + square * cover).astype(np.uint8)


FAULTS = {
    "clean": lambda f, fps: (f, fps),
    "freeze": lambda f, fps: (planted.freeze(f), fps),
    "freeze, encoded": lambda f, fps: (planted.compress(planted.freeze(f), fps, level=23), fps),
    "24 to 30": lambda f, fps: (f[np.arange(len(f) * 5 // 4) * 4 // 5], fps * 1.25),
    "flicker": lambda f, fps: (planted.flicker(f), fps),
    "faint flicker": lambda f, fps: (planted.flicker(f, amplitude=0.03), fps),
    "shake": lambda f, fps: (planted.shake(f, fps), fps),
    "pan": lambda f, fps: (planted.pan(f, fps), fps),
    "static": lambda f, fps: (planted.static(f), fps),
    "static, encoded": lambda f, fps: (planted.compress(planted.static(f), fps, level=30), fps),
    "half size": lambda f, fps: (planted.resize(f, 0.5), fps),
    "every second": lambda f, fps: (f[::2], fps / 2),
}


@cache
def measured(fault: str) -> list[dict]:
    """The scores of every real clip, 1.2 s at most, with the fault planted into it."""
    return [
        scored(planted.clip_of(*FAULTS[fault](real.frames[:30], real.fps)))
        for real in planted.real_clips()
    ]


def column(fault: str, name: str) -> list[float]:
    return [row[name] for row in measured(fault)]


@pytest.mark.parametrize(
    ("fault", "name", "sign"),
    [
        ("freeze", "freeze", 1),
        pytest.param("freeze, encoded", "freeze", 1, marks=pytest.mark.slow),
        ("24 to 30", "freeze", 1),
        ("flicker", "flicker", 1),
        ("faint flicker", "flicker", 1),
        ("shake", "shake", 1),
        ("pan", "camera_share", 1),
        ("pan", "subject_motion", -1),
        ("static", "flow_mean", -1),
        pytest.param("static, encoded", "flow_mean", -1, marks=pytest.mark.slow),
    ],
)
def test_a_planted_fault_is_told_from_the_clean_clip(fault, name, sign):
    clean, faulty = ([sign * v for v in column(which, name)] for which in ("clean", fault))
    assert planted.auc(clean, faulty) >= 0.95


@pytest.mark.parametrize(
    ("fault", "tier"),
    [
        ("pan", "camera"),
        ("static", "static"),
        pytest.param("static, encoded", "static", marks=pytest.mark.slow),
        ("shake", "shaky"),
    ],
)
def test_a_planted_motion_falls_into_its_tier(fault, tier):
    assert column(fault, "tier") == [tier] * len(planted.real_clips())


def test_few_clean_clips_fall_into_a_tier_that_is_dropped_or_nearly():
    tiers = column("clean", "tier")
    assert "static" not in tiers
    assert sum(tier in ("shaky", "low", "camera") for tier in tiers) <= len(tiers) / 3


def test_freeze_is_the_share_of_repeated_frames():
    # Big Buck Bunny repeats one frame a second itself
    assert np.array(column("freeze", "freeze")) == pytest.approx(0.5, abs=0.06)
    doubled = np.array(column("24 to 30", "freeze")) - np.array(column("clean", "freeze"))
    assert np.median(doubled) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    "fault",
    ["static", "pan", "half size", pytest.param("static, encoded", marks=pytest.mark.slow)],
)
def test_what_stands_still_or_moves_smoothly_is_not_frozen(fault):
    assert max(column(fault, "freeze")) < 0.06  # one frame a second of Big Buck Bunny does repeat


@pytest.mark.parametrize("fault", ["half size", "every second"])
@pytest.mark.parametrize("name", ["flow_mean", "subject_motion"])
def test_speeds_do_not_depend_on_frame_size_or_rate(fault, name):
    ratio = np.log(column(fault, name)) - np.log(column("clean", name))
    assert abs(np.median(ratio)) < 0.1
    assert np.quantile(abs(ratio), 0.8) < 0.35


@pytest.mark.parametrize("fault", ["half size", "every second"])
def test_tiers_hardly_depend_on_frame_size_or_rate(fault):
    pairs = zip(column(fault, "tier"), column("clean", "tier"), strict=True)
    other = [{one, two} for one, two in pairs if one != two]
    assert len(other) <= 0.3 * len(planted.real_clips())
    # Below 15 frames a second a fast tremble is not seen.
    assert sum(bool(tiers & {"static", "low", "shaky"}) for tiers in other) <= 1


@pytest.mark.parametrize("speed", [0.05, 0.3, 1.5, 3.0])
@pytest.mark.parametrize("fps", [12.0, 24.0, 60.0])
def test_a_pan_has_its_speed_in_short_sides_a_second(speed, fps):
    if speed / fps > 0.17:
        return  # 30 pixels between frames: beyond what the flow follows, as its docs say
    at = times(min(1.5, 150 / 180 / speed), fps)
    middle = at[-1] / 2
    row = scored(clip([view(dx=180 * speed * (t - middle)) for t in at], fps))
    assert row["flow_mean"] == pytest.approx(speed, rel=0.12 if speed < 0.1 else 0.04)
    assert row["flow_peak"] == pytest.approx(speed, rel=0.25 if speed < 0.1 else 0.06)
    assert row["camera_share"] > 0.9
    assert row["subject_motion"] < max(0.04, 0.15 * speed)
    assert row["tier"] == "camera"


@pytest.mark.parametrize(
    "camera",
    [
        lambda t: {"zoom": 1 + 0.3 * t},
        lambda t: {"turn": 20 * t},
        lambda t: {"zoom": 1.3 - 0.2 * t, "dx": 40 * t, "dy": -30 * t, "turn": -8 * t},
    ],
    ids=["zoom", "turn", "all"],
)
def test_any_movement_of_the_camera_alone_is_the_cameras(camera):
    row = scored(clip([view(**camera(t)) for t in times()]))
    assert row["camera_share"] > 0.9
    assert row["tier"] == "camera"


def test_a_zoom_has_the_mean_speed_of_its_field():
    row = scored(clip([view(zoom=1 + 0.3 * t) for t in times(0.5)]))
    y, x = np.indices((180, 320))
    mean = np.hypot(x - 159.5, y - 89.5).mean() / 180 * 0.3 / (1 + 0.3 * 0.25)
    assert row["flow_mean"] == pytest.approx(mean, rel=0.1)  # DIS falls short near the edge


@pytest.mark.parametrize("speed", [0.1, 0.4, 0.8])
def test_an_object_over_a_still_ground_is_subject_motion(speed):
    at = times(1.0)
    row = scored(clip([passing(t, speed, view()) for t in at]))
    assert row["subject_motion"] == pytest.approx(speed, rel=0.15)
    assert row["camera_share"] < 0.05
    assert row["flow_mean"] == pytest.approx(speed * 70 * 70 / (320 * 180), rel=0.35)
    assert row["shake"] < 0.1


def test_an_object_before_a_panning_camera_has_its_own_speed():
    row = scored(clip([passing(t, 0.6, view(dx=36 * t)) for t in times(1.0)]))
    assert row["subject_motion"] == pytest.approx(0.8, rel=0.1)  # against a ground at -0.2
    # 1 - 0.085 · 0.8² / (0.085 · 0.6² + 0.915 · 0.2²)
    assert row["camera_share"] == pytest.approx(0.19, abs=0.1)


def test_a_shape_on_a_plain_ground_is_a_subject_not_a_camera():
    frames = []
    for t in times(2.0):
        frame = np.full((180, 180), 90, np.uint8)
        at = round(16 * (40 + 180 * 0.25 * t)), 16 * 95
        frames.append(cv2.circle(frame, at, 16 * 25, 200, -1, cv2.LINE_AA, 4))
    row = scored(clip(frames))
    assert row["camera_share"] < 0.05
    assert row["subject_motion"] > 0.1
    assert row["tier"] == "optimal"


@pytest.mark.parametrize("fps", [24.0, 60.0])
def test_shake_grows_with_the_tremble_and_a_pans_start_and_stop_is_none(fps):
    at = times(2.0, fps)
    ease = 60 * (1 - np.cos(np.pi * at / 2))  # pixels: from rest to rest
    hand = np.sin(2 * np.pi * 5.3 * at) + np.sin(2 * np.pi * 3.1 * at + 1)
    shakes = [
        scored(clip([view(dx=e + a * h, dy=a * h) for e, h in zip(ease, hand, strict=True)], fps))
        for a in (0, 0.5, 1, 3)
    ]
    values = [row["shake"] for row in shakes]
    assert values == sorted(values)
    assert values[0] < 0.35
    # root of the mean square is a × √2 pixels of 180
    assert values[3] == pytest.approx(1 / (1 + motion.SHAKE * 180 / (3 * 2**0.5)), abs=0.06)
    assert [shakes[0]["tier"], shakes[3]["tier"]] == ["camera", "shaky"]


def test_a_camera_that_comes_to_rest_is_not_frozen():
    at = times(3.0)
    eased = 80 * np.sin(np.minimum(at, 1.5) / 1.5 * np.pi / 2)
    assert scored(clip([view(dx=dx) for dx in eased]))["freeze"] < 0.05
    held = np.where(at < 1.5, 80 * at, 80 * 1.5)  # as when a stream hangs
    assert scored(clip([view(dx=dx) for dx in held]))["freeze"] == pytest.approx(0.5, abs=0.05)


def test_a_static_clip_is_static_and_not_frozen_however_noisy_or_exact():
    rng = np.random.default_rng(0)
    for grain in (0.0, 1.0, 4.0):
        noise = [grain * rng.standard_normal((180, 320)) for _ in range(30)]
        row = scored(clip([np.clip(view() + n, 0, 255).astype(np.uint8) for n in noise]))
        assert row["tier"] == "static"
        assert row["flow_mean"] < 0.002
        assert row["camera_share"] < 0.05
        assert row["freeze"] == 0


def test_flicker_of_a_part_counts_and_fades_flashes_and_passers_by_do_not():
    at = times(2.0)
    rng = np.random.default_rng(0)
    screen = np.zeros((180, 320), np.float32)
    screen[40:140, 100:220] = 1
    flat = [view() * (1 + 0.1 * screen * g) for g in rng.standard_normal(len(at))]
    assert scored(clip([np.clip(f, 0, 255).astype(np.uint8) for f in flat]))["flicker"] > 0.5

    fade = [(view() * (t / 2)).astype(np.uint8) for t in at]
    flash = [np.clip(view() * (1 + (k == 20)), 0, 255).astype(np.uint8) for k in range(len(at))]
    passer = [passing(t, 0.8, view(), size=120) for t in at]
    for frames in (fade, flash, passer):
        assert scored(clip(frames))["flicker"] < 0.1


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_a_fade_moves_nothing_and_freezes_nothing(seconds):
    row = scored(clip([(view() * min(1, t / seconds)).astype(np.uint8) for t in times(2.0)]))
    assert row["tier"] == "static"
    assert row["flow_peak"] < 0.01
    assert row["freeze"] == 0
    moving = [(view(dx=54 * t) * min(1, t / seconds)).astype(np.uint8) for t in times(2.0)]
    assert scored(clip(moving))["camera_share"] > 0.95


def test_a_throng_that_runs_every_way_is_low():
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 1, (300, 2)) * [304, 164]
    way = rng.uniform(0, 2 * np.pi, 300)
    steps = 180 * np.stack([np.cos(way), np.sin(way)], 1)  # one short side a second
    frames = []
    for t in times(1.0):
        frame = view().copy()
        for k, (x, y) in enumerate(((starts + steps * t) % [304, 164]).astype(int)):
            frame[y : y + 16, x : x + 16] = still()[7 * k % 300 :, 13 * k % 600 :][:16, :16]
        frames.append(frame)
    row = scored(clip(frames))
    assert row["incoherence"] > motion.CHAOS
    assert row["tier"] == "low"
    assert scored(clip([view(dx=60 * t) for t in times()]))["incoherence"] < 0.1


def test_black_borders_do_not_count():
    frames = [passing(t, 0.5, view(dx=18 * t)) for t in times(1.0)]
    whole = scored(clip(frames))
    boxed = clip([np.pad(f, ((40, 40), (60, 60))) for f in frames])
    boxed = replace(boxed, width=880, height=520, scores={"border_box": [120, 80, 640, 360]})
    for name, value in scored(boxed).items():
        if name not in ("tier", "versions"):
            assert value == pytest.approx(whole[name], rel=0.02, abs=0.005), name


def test_a_variable_frame_rate_changes_no_speed():
    rng = np.random.default_rng(0)
    at = np.cumsum(rng.uniform(0.02, 0.08, 40))
    row = scored(clip([view(dx=54 * t - 50) for t in at], 20.0, at))
    assert row["flow_mean"] == pytest.approx(0.3, rel=0.04)
    assert row["shake"] < 0.1


@pytest.mark.parametrize("shape", [(180, 320), (180, 2000), (20, 320), (16, 16), (8, 8), (1, 1)])
@pytest.mark.parametrize("n", [2, 3, 30])
def test_every_size_and_length_gets_finite_scores(shape, n):
    rng = np.random.default_rng(0)
    for frames in (rng.integers(0, 256, (n, *shape)), np.zeros((n, *shape))):
        row = scored(clip(frames.astype(np.uint8)))
        values = [value for name, value in row.items() if name not in ("tier", "versions")]
        assert np.isfinite(values).all()
        for name in ("camera_share", "incoherence", "shake", "freeze", "flicker"):
            assert 0 <= row[name] <= 1


def test_an_image_has_no_motion():
    row = scored(clip([view()]))
    assert {value for name, value in row.items() if name != "versions"} == {None}
    assert row["versions"].keys() == {one.name for one in MOTION}


@pytest.mark.parametrize(
    ("changed", "tier"),
    [
        ({}, "optimal"),
        ({"subject_motion": 0.05}, "medium"),
        ({"incoherence": 0.45}, "medium"),
        ({"subject_motion": 0.01, "flow_mean": 0.005}, "static"),
        ({"subject_motion": 0.01, "flow_mean": 0.1, "camera_share": 0.95}, "camera"),
        ({"shake": 0.7}, "shaky"),
        ({"incoherence": 0.7}, "low"),
        ({"flow_peak": 9.0}, "low"),
    ],
)
def test_a_tier_follows_from_the_scores(changed, tier):
    good = {
        "flow_mean": 0.1,
        "flow_peak": 0.6,
        "camera_share": 0.3,
        "subject_motion": 0.4,
        "incoherence": 0.2,
        "shake": 0.1,
    }
    assert motion.tier_of(good | changed) == tier
