"""The bundled clips are what data/samples says of them: span by span, measured from the pixels."""

import json
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

cv2.setNumThreads(1)
SAMPLES = Path(__file__).parents[1] / "data" / "samples"
NAMES = sorted(path.stem for path in SAMPLES.glob("*.mp4"))
SINTEL = [name for name in NAMES if name.startswith("sintel")]


@cache
def gray(name: str) -> np.ndarray:
    """uint8 [n, 180, 320]."""
    with av.open(str(SAMPLES / f"{name}.mp4")) as file:
        return np.stack(
            [frame.reformat(320, 180, "gray").to_ndarray() for frame in file.decode(video=0)]
        )


@cache
def flow(name: str, first: int = 0, last: int | None = None) -> np.ndarray:
    """Every fourth frame's optical flow to its next, inside the letterbox: [k, h, w, 2] pixels."""
    frames = gray(name)[first:last, 24:156]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return np.stack(
        [dis.calc(a, b, None) for a, b in zip(frames[:-1:4], frames[1::4], strict=False)]
    )


def captions(name: str) -> list[dict]:
    if (SAMPLES / f"{name}.json").exists():
        return json.loads((SAMPLES / f"{name}.json").read_text("utf-8"))["captions"]
    texts = {"en": f"{name}.txt", "zh": f"{name}.zh.txt"}
    return [
        {"text": (SAMPLES / file).read_text("utf-8").strip(), "language": language}
        for language, file in texts.items()
    ]


def test_there_are_four_to_six_clips_of_at_most_8_mb():
    sizes = [(SAMPLES / f"{name}.mp4").stat().st_size for name in NAMES]
    assert 4 <= len(NAMES) <= 6
    assert sum(sizes) < 8e6
    assert max(sizes) < 2.9e6


@pytest.mark.parametrize("name", NAMES)
def test_each_clip_is_720p_h264_without_sound_and_of_the_length_its_header_says(name):
    with av.open(str(SAMPLES / f"{name}.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec.name, stream.width, stream.height) == ("h264", 1280, 720)
        assert stream.average_rate in (24, 25)
        assert not file.streams.audio
        assert stream.frames == len(gray(name)) > 2.5 * stream.average_rate
        assert "Blender Foundation" in file.metadata["copyright"]


@pytest.mark.parametrize("name", NAMES)
def test_each_clip_has_its_licence_line(name):
    table = (SAMPLES / "LICENSES.md").read_text("utf-8")
    [row] = [line for line in table.splitlines() if line.startswith(f"| `{name}.mp4`")]
    assert "CC BY 3.0" in row
    assert "Blender Foundation" in row
    if name in SINTEL:
        sidecar = json.loads((SAMPLES / f"{name}.json").read_text("utf-8"))
        assert sidecar["license"].startswith("CC BY 3.0")
        assert sidecar["attribution"] in row.replace("\\|", "|")


def test_nothing_lies_there_without_a_row_in_the_licences():
    kinds = {path.suffix for path in SAMPLES.iterdir()}
    assert kinds == {".mp4", ".json", ".txt", ".md"}
    assert {path.name.split(".")[0] for path in SAMPLES.iterdir()} == {*NAMES, "LICENSES"}


@pytest.mark.parametrize("name", NAMES)
def test_each_span_is_captioned_in_english_and_chinese(name):
    spans = {}
    for caption in captions(name):
        span = (caption.get("start_s"), caption.get("end_s"))
        spans.setdefault(span, {})[caption["language"]] = caption["text"]
    for texts in spans.values():
        assert texts.keys() == {"en", "zh"}
        assert texts["en"].isascii()
        assert sum("一" <= letter <= "鿿" for letter in texts["zh"]) > 10
    if (None, None) not in spans:  # shot by shot, in order, inside the clip
        ends = [end for _, end in spans]
        starts = [start for start, _ in spans]
        assert starts[0] == 0
        assert all(0 <= b - a < 0.1 for a, b in zip(ends, starts[1:], strict=False))
        assert 0 <= len(gray(name)) / 24 - ends[-1] < 0.1


def test_the_attack_has_five_shots_that_change_where_its_captions_do():
    frames = gray("sintel-attack").astype(np.int16)
    change = np.abs(np.diff(frames, axis=0)).mean((1, 2))
    starts = sorted({caption["start_s"] for caption in captions("sintel-attack")})
    assert len(starts) == 5
    for start in starts[1:4]:  # hard cuts, exact to the frame
        cut = round(start * 24)
        assert change[cut - 1] > 3 * np.delete(change[cut - 6 : cut + 5], 5).max()
    assert frames[round(starts[4] * 24)].mean() < 1  # the last shot rises from black


def test_the_snow_fades_in_from_black_through_white_and_out_to_black():
    level = gray("sintel-snow")[:, 30:150].mean((1, 2))
    assert level[0] < 2
    assert level[-1] < 20
    assert np.all(np.diff(level[:96:8]) > 0)
    between = gray("sintel-snow")[100:116, 30:150]
    white = between[between.std((1, 2)).argmin()]  # one flat field between the shots
    assert white.std() < 0.5
    assert white.mean() > 170


@pytest.mark.parametrize("name", SINTEL)
def test_the_sintel_clips_are_letterboxed(name):
    brightest = gray(name).max(0)
    assert brightest[:21].max() < 20
    assert brightest[-21:].max() < 20
    assert brightest[30:150].mean() > 25
    assert gray("bunny").max(0)[:21].mean() > 100  # this one is not


def test_the_title_appears_and_then_stands_still():
    frames = gray("sintel-title")
    held = frames[55:115].astype(np.int16)
    assert np.abs(np.diff(held, axis=0)).mean() < 0.2
    assert (held[0] > 200).mean() > 0.002  # white letters
    assert (frames[0] > 200).mean() < 0.001


def test_the_desert_moves_as_a_whole_and_the_alley_stands():
    moving, still = (
        np.linalg.norm(flow(name), axis=-1) for name in ("sintel-desert", "sintel-alley")
    )
    assert np.median(moving) > 0.5  # pixels a frame, of 180
    assert np.median(still) < 0.2


def test_the_bunny_moves_before_an_almost_still_camera():
    size = np.linalg.norm(flow("bunny", 0, 60), axis=-1)
    left, right = size[..., :200].mean(), size[..., 250:].mean()
    assert left > 0.3  # the bunny
    assert right < 0.4 * left  # trees, sky and stones
