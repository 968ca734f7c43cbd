"""How many things stand out of a pale or grey ground: regions of its frames that have color.

Frames are uint8 [T, H, W, 3], RGB.
"""

import cv2
import numpy as np

from eval.measures.thing import FAINT, RADII, chroma, shrunk

LEAST = 0.6  # of the smallest thing's area: smaller regions are none
VIVID = 0.45  # of the strongest chroma; the four colors' lie within a fifth of one another


def count(frames: np.ndarray) -> int:
    """The median over frames; 0 where nothing has color, or nearly everything has."""
    times = np.linspace(0, len(frames) - 1, min(len(frames), 9)).round().astype(int)
    video, _ = shrunk(frames[np.unique(times)])
    short = min(video.shape[1:3])
    blurred = np.stack([cv2.GaussianBlur(one, (0, 0), short / 64) for one in chroma(video)])
    far = np.linalg.norm(blurred, axis=-1)
    peak = float(np.percentile(far, 99.5))
    if peak < FAINT:
        return 0
    vivid = far > VIVID * peak
    if vivid.mean() > 0.5:
        return 0
    return int(np.median([_regions(one, np.pi * (RADII[0] * short) ** 2) for one in vivid]))


def _regions(mask: np.ndarray, smallest: float) -> int:
    """Connected regions at least as large as the smallest thing."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    return int((stats[1:, cv2.CC_STAT_AREA] >= LEAST * smallest).sum())
