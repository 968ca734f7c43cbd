"""The report's numbers in TensorBoard: tensorboard --logdir <out>/tensorboard

Each contender is a run of its own: a scalar a measure at the step of its checkpoint, a picture of
its videos that lost most, and its sampler's settings as hyperparameters.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from curation.video import VideoError, clip_frames
from eval.contenders import Contender

SHOWN = 8  # videos in the picture


def write(found: dict[str, Any], contenders: Sequence[Contender], out: Path) -> None:
    """Writes all of it anew, so that nothing stands there twice."""
    folder = out / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    for told, one in zip(found["contenders"], contenders, strict=True):
        step = told["about"].get("step") or 0
        means = {f"eval/{n}": v for n, v in told["means"].items() if v is not None}
        settings = {k: str(v) for k, v in told["about"].get("settings", {}).items()}
        settings |= {"suite": found["suite"]["name"], "contender": told["name"]}
        with SummaryWriter(str(folder / told["name"].replace("/", "-"))) as writer:
            # it writes the means as scalars too
            writer.add_hparams(settings, means, run_name=".", global_step=step)
            picture = middles(found, one)
            if picture is not None:
                writer.add_image("eval/largest losses first", picture, step, dataformats="HWC")


def middles(found: dict[str, Any], one: Contender) -> np.ndarray | None:
    """The middle frames of the videos that lost most, side by side, uint8 [H, W, 3]."""
    frames = []
    for row in found["prompts"][:SHOWN]:
        path = one.videos.get((row["number"], 0))
        if path is None:
            continue
        try:
            video = clip_frames(path)
        except VideoError:
            continue
        frames.append(video[len(video) // 2])
    same = [frame for frame in frames if frame.shape == frames[0].shape]
    return np.concatenate(same, axis=1) if same else None
