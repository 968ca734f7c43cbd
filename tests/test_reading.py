"""Written text is read back, in the order in which a person reads it."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from curation import drawing, reading

cv2.setNumThreads(1)
SIZE = (640, 360)


def page(*lines: tuple[int, int, int, str], ink=(245, 245, 245), ground=(30, 60, 40)) -> np.ndarray:
    """Lines, each (x, y, size in pixels, text), written on a plain ground."""
    picture = Image.new("RGB", SIZE, ground)
    draw = ImageDraw.Draw(picture)
    for x, y, size, text in lines:
        draw.text((x, y), text, font=drawing.font(size), fill=ink)
    return np.asarray(picture)


def scene() -> np.ndarray:
    """Smooth things of all sizes, without a letter among them."""
    random = np.random.default_rng(4)
    picture = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
    for cells in (3, 8, 20):
        coarse = random.random((cells, cells, 3)).astype(np.float32) / cells
        picture += cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC)
    return (picture / picture.max() * 255).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [16, 28])
def test_english_and_chinese_lines_are_read_back_from_top_to_bottom(size):
    lines = ["A red circle, moving left.", "一个红色的圆形向左移动", "Gate 42 开往上海"]
    written = [(60, 40 + 90 * i, size, line) for i, line in enumerate(lines)]
    found = reading.read(page(*written[::-1]))
    assert [line.replace(" ", "") for line in found] == [line.replace(" ", "") for line in lines]
    assert found[0] == lines[0]  # its blanks too


def test_dark_letters_on_a_textured_ground_are_read():
    picture = scene() // 3 + 160
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((120, 300), "字幕在这里", font=drawing.font(30), fill=(10, 10, 10))
    assert reading.read(np.asarray(image)) == ["字幕在这里"]


def test_a_line_that_leans_is_read():
    flat = page((130, 160, 30, "LEANING WORDS"))
    for degrees in (-12, 12):
        turn = cv2.getRotationMatrix2D((320, 180), degrees, 1)
        assert reading.read(cv2.warpAffine(flat, turn, SIZE)) == ["LEANING WORDS"]


def test_a_line_that_was_turned_by_a_quarter_is_read():
    picture = page((250, 160, 30, "TURNED"))[:, 140:500]
    assert reading.read(np.ascontiguousarray(np.rot90(picture, 3))) == ["TURNED"]


def test_lines_of_one_height_are_read_from_left_to_right():
    picture = page((420, 42, 26, "EXIT"), (60, 40, 26, "Gate 42"), (200, 250, 26, "below"))
    assert reading.read(picture) == ["Gate 42", "EXIT", "below"]


@pytest.mark.parametrize(
    "picture",
    [
        page(),
        scene(),
        np.random.default_rng(0).integers(0, 255, (360, 640, 3), dtype=np.uint8),
        np.zeros((1, 1, 3), np.uint8),
    ],
)
def test_a_frame_without_text_says_nothing(picture):
    assert reading.read(picture) == []


def test_what_the_recogniser_only_guesses_at_is_left_out(monkeypatch):
    picture = page((60, 150, 28, "Hello"))
    assert reading.read(picture) == ["Hello"]
    blurred = cv2.GaussianBlur(page((60, 150, 28, "Hello")), (0, 0), 6)
    monkeypatch.setattr(reading.text, "text_boxes", lambda _: [BOX])
    assert reading.read(picture) == ["Hello"]
    assert reading.read(blurred) == []
    monkeypatch.setattr(reading, "CONFIDENCE", 0)
    (guess,) = reading.read(blurred)  # so there was one
    assert guess != "Hello"


# around that word, in the pixels of the detector's map
BOX = np.array([[50, 150], [145, 150], [145, 192], [50, 192]], np.float32)


def test_a_line_gives_its_confidence_and_an_empty_one_none():
    words, confidence = reading.line(page((10, 5, 30, "plain words"))[:50, :190])
    assert words == "plain words"
    assert 0.9 < confidence <= 1
    assert reading.line(page()[:48, :200]) == ("", 0.0)


def test_corners_come_clockwise_from_the_upper_left_whatever_the_order():
    box = np.array([[10, 10], [110, 20], [108, 40], [8, 30]], np.float32)
    for turn in range(4):
        assert np.array_equal(reading.corners(np.roll(box, turn, axis=0)), box)
        assert np.array_equal(reading.corners(np.roll(box[::-1], turn, axis=0)), box)
