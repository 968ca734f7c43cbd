"""How it looks to CLIP: beauty, and the style that was asked for; VBench's two, to the letter."""

from pathlib import Path

import numpy as np
import torch

from eval.measures.consistency import seen_by
from eval.measures.encoders import BackboneError, ClipModel, first_line
from eval.measures.measure import Measure, Video

TEN = 10  # the head's scale


def load_head(path: str) -> torch.nn.Linear:
    """LAION's linear head on CLIP ViT-L/14, `sa_0_4_vit_l_14_linear.pth`.

    Raises:
        BackboneError: it is not there, or something else.
    """
    head = torch.nn.Linear(768, 1)
    try:
        head.load_state_dict(torch.load(Path(path).expanduser(), weights_only=True))
    except Exception as error:  # whatever a file's bytes provoke
        raise BackboneError(f"{path}: no aesthetic head ({first_line(error)})") from error
    return head.eval().requires_grad_(False)


def aesthetic_quality(clip: ClipModel, head: torch.nn.Linear) -> Measure:
    """The head's mean over frames, a tenth of it (VBench, aesthetic_quality.py)."""
    return Measure(
        "aesthetic_quality",
        lambda video: float(head(seen_by(clip.images, video)).mean() / TEN),
        "0–1",
        True,
        "LAION's aesthetic head on CLIP ViT-L/14",
        (clip.images.name, clip.sha256),
    )


def appearance_style(clip: ClipModel) -> Measure:
    """CLIP's likeness of each frame to the style that is asked for, frame mean; NaN where none is
    (VBench, appearance_style.py: 100 · cosine / 100)."""

    def of(video: Video) -> float:
        style = video.asked.get("appearance_style")
        if not style:
            return np.nan
        text = clip.texts([style])[0]
        return float((seen_by(clip.images, video) @ text).mean())

    return Measure(
        "appearance_style",
        of,
        "−1–1",
        True,
        "likeness to the style that is asked for",
        (clip.images.name, clip.sha256),
    )
