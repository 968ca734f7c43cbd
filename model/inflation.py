"""2-D → 3-D inflation: a video VAE that starts where an image VAE stopped.

Wan report (arXiv 2503.20314) §3.1: the Wan-VAE is trained on images first, as a 2-D model of the
same structure, and its weights initialise the 3-D one. It doesn't say how the taps over time are
filled. Ours: the last tap of a causal convolution, which sees the present frame, gets the 2-D
kernel, and those that see the past start at zero; the convolutions that halve or double time hand
frames on. So on a still video the inflated model gives what the image model gives, in every frame,
those next to the zero padding included.
"""

import torch
from torch import nn

from model.coder import Downsample, Upsample
from model.vae import WanVAE


@torch.no_grad()
def inflate(image_vae: WanVAE, **shape: object) -> WanVAE:
    """A video VAE with an image VAE's weights.

    Args:
        image_vae: with taps=1.
        shape: arguments of `WanVAE` that shall differ from the default taps=3 and, of three changes
            of level, temporal=(False, True, True).

    Raises:
        ValueError: the source is no image VAE, or shape changes the picture's part of it.
    """
    if image_vae.config["taps"] != 1:
        raise ValueError(
            f"only an image VAE (taps=1) is inflated; this has {image_vae.config['taps']}"
        )
    changes = len(image_vae.config["temporal"])
    defaults = {"taps": 3, "temporal": [False] * (changes > 2) + [True] * min(changes, 2)}
    vae = WanVAE(**(image_vae.config | defaults | shape))
    vae.to(image_vae.conv1.weight.device, image_vae.conv1.weight.dtype)
    flat = image_vae.state_dict()
    for name, weight in vae.state_dict().items():
        if name not in flat:  # a convolution over time, filled below
            continue
        source = flat[name]
        if source.ndim == 5 and weight.shape[2] != source.shape[2]:
            weight.zero_()
            weight = weight[:, :, -1:]
        if weight.shape != source.shape:
            raise ValueError(
                f"{name} is {list(source.shape)} in the image VAE, not {list(weight.shape)}"
            )
        weight.copy_(source)
    for module in vae.modules():
        if isinstance(module, Downsample | Upsample) and module.temporal:
            copy_frames(module.time_conv)
    return vae.train(image_vae.training)


def copy_frames(time_conv: nn.Conv3d) -> None:
    """Makes a convolution over time hand on the present frame, once in each part of its output."""
    channels = time_conv.in_channels
    time_conv.weight.zero_()
    time_conv.bias.zero_()
    parts = time_conv.weight[:, :, -1, 0, 0].view(-1, channels, channels)
    parts.copy_(torch.eye(channels))
