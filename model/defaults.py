"""The settings that the public weights are sampled with, for what a checkpoint does not say itself.

Sources: the Wan2.1 repository's `generate.py` (steps, shift, frames, size), `wan/configs` (frame
rate, negative prompt) and README (the 1.3B model's shift and guidance).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FPS = 16

# wan/configs/shared_config.py, `sample_neg_prompt`: garish, overexposed, still, blurred, …
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
NEGATIVE_I2V = "镜头晃动，" + NEGATIVE  # wan_i2v_14B.py: a shaking camera
NEGATIVE_FLF2V = "镜头切换，" + NEGATIVE_I2V  # wan/configs/__init__.py: a cut

KINDS = ("t2v", "i2v", "flf2v")


@dataclass(frozen=True)
class Defaults:
    """How a checkpoint is sampled where nothing else is asked for."""

    width: int
    height: int
    frames: int
    fps: float
    steps: int
    guidance: float
    shift: float
    negative: str
    solver: str = "unipc"


def kind(config: Mapping[str, Any]) -> str:
    """What a DiT's configuration says it is: t2v, i2v or flf2v (514 image tokens)."""
    if config.get("image_positions"):
        return "flf2v"
    return "i2v" if config["in_channels"] > config["out_channels"] else "t2v"


def public(config: Mapping[str, Any], size: tuple[int, int] | None = None) -> Defaults:
    """The public settings of a DiT with this configuration.

    Args:
        size: width and height that are wanted; the shift of i2v depends on them.
    """
    what = kind(config)
    small = config["width"] <= 1536  # the 1.3B model, which knows 480p only
    known = {"t2v": (1280, 720), "i2v": (832, 480), "flf2v": (1280, 720)}
    width, height = size or ((832, 480) if small else known[what])
    shift = {"t2v": 8.0 if small else 5.0, "i2v": 3.0, "flf2v": 16.0}[what]
    if what == "i2v" and width * height > 832 * 480:
        shift = 5.0
    return Defaults(
        width=width,
        height=height,
        frames=81,
        fps=FPS,
        steps=40 if what == "i2v" else 50,
        guidance=6.0 if small and what == "t2v" else 5.0,
        shift=shift,
        negative={"t2v": NEGATIVE, "i2v": NEGATIVE_I2V, "flf2v": NEGATIVE_FLF2V}[what],
    )
