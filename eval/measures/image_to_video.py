"""Is it the picture that it was to begin with, and does the camera do as it is told: VBench-I2V.

    subject = i2v_subject(load_dino("facebook/dino-vitb16"))
    subject(Video(frames, 16, image=picture))

`i2v_subject` is VBench's, to the letter. Its `i2v_background` looks through DreamSim and its
`camera_motion` through CoTracker; here CLIP and DIS flow stand in, and the names say so. What was
made of no picture says nothing of one: NaN.
"""

from dataclasses import replace

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from eval.measures.consistency import seen_by
from eval.measures.encoders import IMAGENET, SIDE, Encoder, scaled
from eval.measures.measure import Measure, Video

WEIGHTS = 0.4, 0.3, 0.3  # of the best likeness to the picture, the mean and the least in a row
LARGER = Resize(256, interpolation=InterpolationMode.BICUBIC, antialias=True)
# torchvision has smoothed tensors by default since 0.17, pictures of Pillow always
prepare_frames = Compose([LARGER, CenterCrop(SIDE), scaled, Normalize(*IMAGENET)])
_prepare_picture = Compose([LARGER, CenterCrop(SIDE), ToTensor(), Normalize(*IMAGENET)])

STILL = 0.005  # of the short side, from the first frame to the last: less is no move
CELL = 16  # pixels, of which the best corner is looked at
WEAKEST = 0.002  # of the best of all: weaker ones are none
MOST = 0.3  # of the corners
BACK = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
OUTLIER = 1.0  # pixels from where the camera alone would put a corner
PHRASES = {
    "camera pans left": "pan_left",
    "camera pans right": "pan_right",
    "camera tilts up": "tilt_up",
    "camera tilts down": "tilt_down",
    "camera zooms in": "zoom_in",
    "camera zooms out": "zoom_out",
    "camera static": "static",
}
MOVES = tuple(PHRASES.values())


def prepare_picture(pixels: Tensor) -> Tensor:
    """float [1, 3, H, W] of 0–255 → [1, 3, 224, 224], through Pillow, as VBench reads a picture."""
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).byte().numpy())
    return _prepare_picture(picture)[None]


def conformity(picture: Tensor, features: Tensor) -> float:
    """Of features of unit length, [D] and [T, D]; NaN of one frame (VBench, i2v_subject.py)."""
    if len(features) < 2:
        return np.nan
    alike = (features @ picture).clamp(min=0)
    in_a_row = (features[1:] * features[:-1]).sum(-1).clamp(min=0)
    parts = torch.stack([alike.max(), in_a_row.mean(), in_a_row.min()])
    return float(parts @ torch.tensor(WEIGHTS))


def i2v_subject(dino: Encoder) -> Measure:
    frames, picture = replace(dino, prepare=prepare_frames), replace(dino, prepare=prepare_picture)

    def of(video: Video) -> float:
        if video.image is None:
            return np.nan
        return conformity(picture(video.image[None])[0], frames(video.frames))

    return Measure(
        "i2v_subject",
        of,
        "0–1",
        True,
        "how alike the picture and each other frames are to DINO",
        (dino.name, dino.sha256),
    )


def i2v_background_clip(clip: Encoder) -> Measure:
    """VBench's i2v_background, without its DreamSim."""

    def of(video: Video) -> float:
        if video.image is None:
            return np.nan
        return conformity(clip(video.image[None])[0], seen_by(clip, video))

    return Measure(
        "i2v_background_clip",
        of,
        "0–1",
        True,
        "how alike the picture and each other frames are to CLIP",
        (clip.name, clip.sha256),
        stands_for="i2v_background",
    )


def camera_motion(video: Video) -> float:
    """1 where what is asked for is among the camera's moves; a slanting one is two (VBench-I2V,
    camera_motion.py, without its CoTracker)."""
    move = asked_move(video)
    if move is None or len(video) < 2:
        return np.nan
    return float(move in video.once("camera moves", lambda: moves(video)))


def asked_move(video: Video) -> str | None:
    """One of MOVES: by its name where one is asked for, else as VBench's prompts say it."""
    said = str(video.asked.get("camera_motion") or video.prompt)
    if said in MOVES:
        return said
    return next((move for phrase, move in PHRASES.items() if phrase in said.lower()), None)


def moves(video: Video) -> set[str]:
    """What the camera does from the first frame to the last: some of MOVES, none where it does
    something else (VBench-I2V's rule on where the middles of the four edges go)."""
    height, width = video.small.shape[1:]
    x, y = (width - 1) / 2, (height - 1) / 2
    edges = {"top": (x, 0), "bottom": (x, 2 * y), "left": (0, y), "right": (2 * x, y)}
    whole = course(video)
    least = STILL * min(height, width)
    # of each edge's middle, which way it goes, right and down: −1, 0 or 1
    way = {}
    for name, middle in edges.items():
        off = whole @ [*middle, 1] - [*middle, 1]
        way[name] = np.sign(off[:2]) * (np.abs(off[:2]) > least)
    found = set()
    for first, second, axis in (("top", "bottom", 1), ("left", "right", 0)):
        a, b = way[first], way[second]
        if a[0] == b[0] != 0:  # a camera pans against the way that the picture goes
            found.add("pan_left" if a[0] > 0 else "pan_right")
        if a[1] == b[1] != 0:
            found.add("tilt_up" if a[1] > 0 else "tilt_down")
        if a[axis] == -b[axis] != 0:
            found.add("zoom_in" if a[axis] < 0 else "zoom_out")
        if not (a.any() or b.any()):
            found.add("static")
    return found - {"static"} if len(found) > 1 else found


def course(video: Video) -> np.ndarray:
    """float64 [3, 3], where the camera puts a pixel (x, y, 1) of the first of the `small` frames in
    the last: affine maps fitted to the flow from frame to frame, one after the other. Their errors
    add up, so that where the first frame, moved so, resembles the last, the rest is fitted too."""
    small, whole = video.small, np.eye(3)
    for t in range(len(video) - 1):
        step = fitted(small[t], video.flow(t, t + 1))
        if step is not None:
            whole = step @ whole
    there = cv2.warpAffine(small[-1], whole[:2], small.shape[:0:-1], flags=BACK)
    engine = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    rest = fitted(small[0], engine.calc(small[0], there, None))
    return whole if rest is None else whole @ rest


def fitted(luma: np.ndarray, flow: np.ndarray) -> np.ndarray | None:
    """float64 [3, 3], the affine map that most of a flow [h, w, 2] follows; None where none is, or
    nothing to go by. Flow is believed at corners, of which each cell has one at most: a thing that
    is full of them is no more than it covers."""
    height, width = (side // CELL for side in luma.shape)
    if not height or not width:
        return None
    strength = cv2.cornerMinEigenVal(luma, 5)[: height * CELL, : width * CELL]
    cells = strength.reshape(height, CELL, width, CELL).swapaxes(1, 2).reshape(height, width, -1)
    best = cells.argmax(-1)
    keep = cells.max(-1) > WEAKEST * cells.max()
    row, column = np.nonzero(keep)
    rows, columns = row * CELL + best[keep] // CELL, column * CELL + best[keep] % CELL
    start = np.stack([columns, rows], 1).astype(np.float32)
    if len(start) < 3:
        return None
    end = start + flow[rows, columns]
    step, inside = cv2.estimateAffine2D(start, end, ransacReprojThreshold=OUTLIER)
    if step is None or inside.mean() < MOST:
        return None
    return np.vstack([step, [0, 0, 1]])


CAMERA = Measure(
    "camera_motion_dis",
    camera_motion,
    "0 or 1",
    True,
    "whether the camera moves as it is told",
    stands_for="camera_motion",
)
