"""Do subject and background stay the same: VBench's two, to the letter.

For each frame after the first, the mean of its likeness to the frame before and to the first one;
negative likeness counts as none. A frozen video is perfectly consistent.
"""

import numpy as np
import torch
from torch import Tensor

from eval.measures.encoders import Encoder
from eval.measures.measure import Measure, Video


def consistency(features: Tensor) -> float:
    """Of features [T, D] of unit length; NaN of one frame (VBench, subject_consistency.py)."""
    if len(features) < 2:
        return np.nan
    before = (features[1:] * features[:-1]).sum(-1).clamp(min=0)
    first = (features[1:] * features[:1]).sum(-1).clamp(min=0)
    return float(torch.stack([before, first]).mean(0).mean())


def subject_consistency(dino: Encoder) -> Measure:
    return Measure(
        "subject_consistency",
        lambda video: consistency(dino(video.frames)),
        "0–1",
        True,
        "how alike frames are to DINO",
        (dino.name, dino.sha256),
    )


def background_consistency(clip: Encoder) -> Measure:
    return Measure(
        "background_consistency",
        lambda video: consistency(seen_by(clip, video)),
        "0–1",
        True,
        "how alike frames are to CLIP",
        (clip.name, clip.sha256),
    )


def seen_by(encoder: Encoder, video: Video) -> Tensor:
    """Features of all frames, computed once for all measures that look through it."""
    return video.once(encoder.name, lambda: encoder(video.frames))
