"""What an image-to-video model is told: which frames are given, and what they show.

Its condition goes into the network behind the noisy latents: 4 channels of mask, then the latents
of a video that shows the given frames and mid-grey (0) elsewhere. Which frames are given is the
task: the first (image to video), the first and the last, the first few (continuation), or any
(report, arXiv 2503.20314, section 5.1; the layout is that of the public weights).

B batch, T frames = 4k + 1, L latent frames = k + 1, H × W pixels.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from model.vae import WanVAE

MASK_CHANNELS = 4  # one for each frame of a latent frame


def condition(vae: WanVAE, video: Tensor, given: Tensor, tile: int | None = None) -> Tensor:
    """The condition of a batch.

    Args:
        video: [B, 3, T, H, W] in -1..1; what stands where no frame is given has no effect.
        given: [T] bool, which frames are given.
        tile: as in `WanVAE.encode_stream`.

    Returns:
        [B, 4 + C, L, H/8, W/8], mask then normalised latents, in the type and on the device of the
        VAE's weights. No gradient.

    Raises:
        ValueError: T or a size that the VAE does not take, or a mask of another length.
    """
    if given.shape != video.shape[2:3]:
        raise ValueError(f"given has shape {tuple(given.shape)}, the video {video.shape[2]} frames")
    shown = given.to(video.device)[:, None, None]
    latents = encode(vae, torch.where(shown, video, torch.zeros_like(video)), tile)
    mask = fold(given.to(latents)).expand(len(latents), -1, -1)
    return torch.cat(
        [mask[..., None, None].expand(*mask.shape, *latents.shape[3:]), latents], dim=1
    )


def fold(given: Tensor) -> Tensor:
    """A mask over frames [T] as the mask channels [4, L] of its latent frames.

    The first latent frame stands for one frame, which is repeated four times; each other stands for
    four, one a channel.
    """
    first = given[:1].expand(MASK_CHANNELS)
    return torch.cat([first, given[1:]]).view(-1, MASK_CHANNELS).T


def encode(vae: WanVAE, video: Tensor | Iterable[Tensor], tile: int | None = None) -> Tensor:
    """A video [B, 3, T, H, W] in -1..1, whole or in pieces, as latents [B, C, L, H/8, W/8].

    The posterior's mean, normalised; besides the video's own, memory does not grow with its length.
    """
    parts = pieces(video) if isinstance(video, Tensor) else video
    # as exactly as the latents that the network was trained on, also amid training in bfloat16
    with torch.autocast(next(vae.parameters()).device.type, enabled=False):
        found = [vae.normalize(one.mean) for one in vae.encode_stream(parts, tile=tile)]
    return torch.cat(found, dim=2)


def pieces(video: Tensor, frames: int = 16) -> Iterator[Tensor]:
    """The video cut along time, so that only a part of it is converted and moved at once."""
    yield from video.split(frames, dim=2)
