"""Which perceptual distance a recipe asks for, and on how many frames of a clip.

`loss.backbone=effnet-lite0`: LPIPS' formula on an image network whose weights come in a package,
without learned weights (`model.efficientnet`). Anything else names LPIPS weights (`model.lpips`).
"""

import torch
from torch import Tensor, nn

from model.efficientnet import EfficientNetDistance, load_efficientnet
from model.lpips import load_lpips
from model.tensors import CheckpointError
from recipes.keys import UsageError

PACKAGED = "effnet-lite0"


class Perceptual:
    """A frozen distance; no module, so that it is neither trained nor saved.

    Args:
        backbone: effnet-lite0; or a file, a folder or owner/name on the hub, of LPIPS.
        frames: of a clip that are looked at, drawn for each clip; 0: all of them.

    Raises:
        UsageError: no such weights.

    Attributes:
        name: lpips, or effnet-lite0 for what is not LPIPS.
    """

    def __init__(self, backbone: str, frames: int = 0) -> None:
        self.backbone, self.frames = backbone, frames
        self.name = PACKAGED if backbone == PACKAGED else "lpips"
        try:
            self.distance: nn.Module = (
                EfficientNetDistance(load_efficientnet())
                if backbone == PACKAGED
                else load_lpips(backbone)
            )
        except CheckpointError as error:
            raise UsageError(f"loss.backbone={backbone}: {error}") from error

    def to(self, device: torch.device) -> "Perceptual":
        self.distance.to(device)
        return self

    def __call__(self, video: Tensor, rebuilt: Tensor, generator: torch.Generator) -> Tensor:
        """[B, 3, T, H, W] in −1 … 1, twice → [B], float32.

        Args:
            generator: draws the frames, on the CPU.

        Raises:
            UsageError: the frames are too small for the backbone.
        """
        height, width = video.shape[-2:]
        smallest = self.distance.smallest
        if min(height, width) < smallest:
            raise UsageError(
                f"loss.backbone={self.backbone} wants frames of {smallest}×{smallest} at least, "
                f"and buckets.sizes has {width}×{height}: choose larger ones or loss.perceptual=0"
            )
        if 0 < self.frames < video.shape[2]:
            order = torch.rand(len(video), video.shape[2], generator=generator).argsort(1)
            chosen = order[:, : self.frames].to(video.device)
            video, rebuilt = (taken(one, chosen) for one in (video, rebuilt))
        return self.distance(video, rebuilt)


def taken(video: Tensor, chosen: Tensor) -> Tensor:
    """Frames of each clip: [B, C, T, H, W] and [B, N] → [B, C, N, H, W]."""
    clips = torch.arange(len(video), device=video.device)[:, None]
    return video.transpose(1, 2)[clips, chosen].transpose(1, 2)
