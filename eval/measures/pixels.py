"""Measures that need no weights: they look at pixels, and at DIS optical flow.

Only `temporal_flickering` is VBench's. The others stand where VBench has a network, and are named
for what they are: a frozen video has perfect smoothness and no flicker here as there, and only its
speed tells.

T frames of H × W pixels; uint8 values of 0–255.
"""

import cv2
import numpy as np

from eval.measures.measure import SHORT, Measure, Video

RATE = 8.0  # frames a second between which VBench measures motion
FASTEST = 0.05  # share of the pixels that a pair of frames is told by
MOVES = 6.0  # pixels at a short side of 256
PAIRS = 4 / 16  # of the frames looked at: so many pairs must move
CLIPPED = (2, 253)  # at or beyond: black, white
# differences of second differences, blind to edges (Immerkær 1996, CVIU 64:300)
GRAIN = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def flickering(video: Video) -> float:
    """1 − mean |frame t + 1 − frame t| / 255 (VBench, temporal_flickering.py)."""
    if len(video) < 2:
        return np.nan
    pairs = zip(video.frames[:-1], video.frames[1:], strict=True)
    return 1 - np.mean([cv2.absdiff(a, b).mean() for a, b in pairs]) / 255


def smoothness(video: Video) -> float:
    """Odd frames dropped, made anew from their neighbours along the flow, and compared: 1 − mean
    absolute difference / 255. VBench's protocol for motion_smoothness, without its AMT-S."""
    found = []
    for t in range(1, len(video) - 1, 2):
        flow = video.flow(t - 1, t + 1)
        height, width = flow.shape[:2]
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        halves = [
            cv2.remap(
                video.small[t + side],
                x + side * flow[..., 0] / 2,
                y + side * flow[..., 1] / 2,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for side in (-1, 1)
        ]
        middle = cv2.addWeighted(halves[0], 0.5, halves[1], 0.5, 0)
        found.append(cv2.absdiff(middle, video.small[t]).mean())
    return 1 - np.mean(found) / 255 if found else np.nan


def speeds(video: Video) -> np.ndarray:
    """[pairs], of frames about 1/8 s apart: the mean flow of their fastest 5 % of pixels, scaled to
    pixels at a short side of 256."""
    step = max(1, round(video.fps / RATE))
    found = []
    for t in range(0, len(video) - step, step):
        away = np.linalg.norm(video.flow(t, t + step), axis=-1).reshape(-1)
        count = max(1, int(FASTEST * away.size))
        found.append(np.partition(away, -count)[-count:].mean())
    return np.array(found) * SHORT / min(video.small.shape[1:])


def speed(video: Video) -> float:
    """How fast the fastest 5 % of the pixels go, in short sides a second."""
    found = speeds(video)
    step = max(1, round(video.fps / RATE))
    return found.mean() / SHORT * video.fps / step if len(found) else np.nan


def dynamic(video: Video) -> float:
    """1 where a quarter of the frames move by more than VBench's threshold, else 0 (VBench,
    dynamic_degree.py, without its RAFT)."""
    found = speeds(video)
    if not len(found):
        return np.nan
    return float((found > MOVES).sum() >= round(PAIRS * (len(found) + 1)))


def sharpness(video: Video) -> float:
    """Variance of the Laplacian of the luma, frame mean (Pech-Pacheco et al. 2000)."""
    return np.mean([cv2.Laplacian(one, cv2.CV_32F).var() for one in video.luma])


def noise(video: Video) -> float:
    """Standard deviation of the grain (Immerkær 1996), frame mean; fine texture counts as grain."""
    found = [np.abs(cv2.filter2D(one, cv2.CV_32F, GRAIN)[1:-1, 1:-1]).mean() for one in video.luma]
    return np.sqrt(np.pi / 2) / 6 * np.mean(found)


def clipped(video: Video) -> float:
    """Share of the pixels whose luma is at the bottom or the top."""
    low, high = CLIPPED
    return np.mean((video.luma <= low) | (video.luma >= high))


MEASURES = (
    Measure("temporal_flickering", flickering, "0–1", True, "how alike adjacent frames are"),
    Measure(
        "smoothness_dis",
        smoothness,
        "0–1",
        True,
        "odd frames foretold from the others",
    ),
    Measure("dynamic_dis", dynamic, "0 or 1", None, "whether much of the video moves"),
    Measure("speed_dis", speed, "short sides/s", None, "how fast the fastest 5 % of the pixels go"),
    Measure("sharpness", sharpness, "grey levels²", True, "variance of the Laplacian"),
    Measure("noise", noise, "grey levels", False, "standard deviation of the grain"),
    Measure("clipped", clipped, "0–1", False, "share of black and white pixels"),
)
