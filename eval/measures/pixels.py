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
    return 1 - np.mean([cv2.norm(a, b, cv2.NORM_L1) / a.size for a, b in pairs]) / 255


def smoothness(video: Video) -> float:
    """Odd frames dropped, made anew from their neighbours along the flow, and compared: 1 − mean
    absolute difference / 255. VBench's protocol for motion_smoothness, without its AMT-S."""
    found = []
    height, width = video.small.shape[1:]
    here = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    for t in range(1, len(video) - 1, 2):
        half = video.flow(t - 1, t + 1) / 2
        before, after = (
            cv2.remap(
                video.small[t + side],
                here + side * half,
                None,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for side in (-1, 1)
        )
        middle = cv2.addWeighted(before, 0.5, after, 0.5, 0)
        found.append(cv2.norm(middle, video.small[t], cv2.NORM_L1) / middle.size)
    return 1 - np.mean(found) / 255 if found else np.nan


def speeds(video: Video) -> np.ndarray:
    """[pairs], of frames about 1/8 s apart: the mean flow of their fastest 5 % of pixels, scaled to
    pixels at a short side of 256."""
    return video.once("speeds", lambda: _speeds(video))


def _speeds(video: Video) -> np.ndarray:
    step = max(1, round(video.fps / RATE))
    found = []
    for t in range(0, len(video) - step, step):
        away = cv2.magnitude(*cv2.split(video.flow(t, t + step))).reshape(-1)
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
    edges = (cv2.Laplacian(one, cv2.CV_16S) for one in video.luma)
    return np.mean([cv2.meanStdDev(one)[1].item() ** 2 for one in edges])


def noise(video: Video) -> float:
    """Standard deviation of the grain (Immerkær 1996), frame mean; fine texture counts as grain."""
    grain = (cv2.filter2D(one, cv2.CV_16S, GRAIN)[1:-1, 1:-1] for one in video.luma)
    found = [cv2.norm(one, cv2.NORM_L1) / one.size for one in grain]
    return np.sqrt(np.pi / 2) / 6 * np.mean(found)


def clipped(video: Video) -> float:
    """Share of the pixels whose luma is at the bottom or the top."""
    low, high = CLIPPED
    inside = sum(cv2.countNonZero(cv2.inRange(one, low + 1, high - 1)) for one in video.luma)
    return 1 - inside / video.luma.size


MEASURES = (
    Measure("temporal_flickering", flickering, "0–1", True, "how alike adjacent frames are"),
    Measure(
        "smoothness_dis",
        smoothness,
        "0–1",
        True,
        "odd frames foretold from the others",
        stands_for="motion_smoothness",
    ),
    Measure(
        "dynamic_dis",
        dynamic,
        "0 or 1",
        None,
        "whether much of the video moves",
        stands_for="dynamic_degree",
    ),
    Measure("speed_dis", speed, "short sides/s", None, "how fast the fastest 5 % of the pixels go"),
    Measure("sharpness", sharpness, "grey levels²", True, "variance of the Laplacian"),
    Measure("noise", noise, "grey levels", False, "standard deviation of the grain"),
    Measure("clipped", clipped, "0–1", False, "share of black and white pixels"),
)
