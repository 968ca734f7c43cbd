"""How far two videos are apart, in numbers that others publish too.

Videos are [B, C, T, H, W] in -1..1 (T = 1 for images); latents of that shape work with a peak of
their own. Every function returns one value a video, [B], in float64, frames weighing the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SPREAD = 11, 1.5  # SSIM's Gaussian window, in pixels (Wang et al. 2004)


def psnr(a: Tensor, b: Tensor, peak: float = 2.0) -> Tensor:
    """10 · log10(peak² / MSE) in dB, the mean square over the whole video; inf for equal videos.

    `peak` is the range of the values: 2 for -1..1. Mind that others average PSNR over frames
    (`psnr_frames`), which is never lower.
    """
    a, b = _pair(a, b)
    return _decibels((a - b).square().mean(dim=(1, 2, 3, 4)), peak)


def psnr_frames(a: Tensor, b: Tensor, peak: float = 2.0) -> Tensor:
    """PSNR of each frame, [B, T] in dB."""
    a, b = _pair(a, b)
    return _decibels((a - b).square().mean(dim=(1, 3, 4)), peak)


def ssim(a: Tensor, b: Tensor, peak: float = 2.0) -> Tensor:
    """Structural similarity, at most 1 (Wang et al. 2004, IEEE TIP 13(4), equation 13).

    Gaussian window of 11 × 11 and sigma 1.5, K1 = 0.01, K2 = 0.03, population covariances, windows
    wholly inside the frame, each channel on its own, the mean over all. Frames of 11×11 at least.
    """
    a, b = _pair(a, b)
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs frames of {WINDOW}×{WINDOW} at least, not {tuple(a.shape)}")
    batch = len(a)
    a, b = (one.transpose(1, 2).reshape(-1, 1, *one.shape[-2:]) for one in (a, b))
    at = torch.arange(WINDOW, dtype=torch.float64, device=a.device) - WINDOW // 2
    weight = torch.exp(-at.square() / (2 * SPREAD**2))
    weight = weight / weight.sum()

    def blurred(x: Tensor) -> Tensor:
        x = F.conv2d(x, weight.reshape(1, 1, -1, 1))
        return F.conv2d(x, weight.reshape(1, 1, 1, -1))

    mean_a, mean_b = blurred(a), blurred(b)
    var_a = blurred(a * a) - mean_a.square()
    var_b = blurred(b * b) - mean_b.square()
    both = blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    light = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    shape = (2 * both + c2) / (var_a + var_b + c2)
    return (light * shape).reshape(batch, -1).mean(1)


def _decibels(error: Tensor, peak: float) -> Tensor:
    return 10 * torch.log10(peak**2 / error)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim != 5:
        raise ValueError(
            f"two videos [B, C, T, H, W] of one shape, not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return a.double(), b.double()
