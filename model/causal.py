"""Convolution over time that never looks ahead, in one shot or as a stream.

Shapes: B batch, C channels, T frames, H height, W width. A video is [B, C, T, H, W], stored frame
by frame with channels last (`torch.channels_last_3d`), so that a run of frames is also a batch of
pictures, without a copy.

In one shot a layer sees all frames, and what lies before the first is zero. As a stream it sees
chunks, and a `StreamCache` holds the last input frames of every layer (Wan report §3.1, "feature
cache"); the numbers are the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class StreamCache:
    """What the causal layers of one stream remember between two chunks.

    Attributes:
        first: the chunk under way is the stream's first. Whoever feeds the chunks sets it to False
            after that one.
    """

    def __init__(self) -> None:
        self.first = True
        self._past: dict[nn.Module, Tensor] = {}

    def join(self, layer: nn.Module, x: Tensor, keep: int) -> Tensor:
        """The layer's past frames before x; the last `keep` of them all are its past from now on.

        Returns:
            [B, C, T + up to keep, H, W]; x itself in the layer's first chunk.
        """
        past = self._past.get(layer)
        if past is not None:
            x = torch.cat([past, x], dim=2)
        self._past[layer] = x[:, :, -keep:].clone()  # a slice would keep all of x alive
        return x


class Streams:
    """A layer whose forward takes (x, cache): it needs frames that have passed."""


class Chain(nn.Sequential, Streams):
    """Layers one after the other; those that stream are given the cache.

    Attributes:
        checkpointing: in one shot, keep only the layers' inputs for the backward pass and compute
            the rest again.
    """

    checkpointing = False

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        saving = self.checkpointing and cache is None and torch.is_grad_enabled()
        for layer in self:
            if saving:
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x, cache) if isinstance(layer, Streams) else layer(x)
        return x


class CausalConv3d(nn.Conv3d, Streams):
    """A 3-D convolution whose output frame t depends on input frames t − taps + 1 … t.

    Frames before the first are zero; pictures are zero-padded to keep their size.

    Args:
        kernel: (taps, height, width), odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(in_channels, out_channels, kernel, padding=padding)

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        """[B, C, T, H, W] → [B, C', T, H, W]."""
        past = self.kernel_size[0] - 1
        seen = x if cache is None or past == 0 else cache.join(self, x, past)
        zeros = past - (seen.shape[2] - x.shape[2])
        return convolve(seen, self.weight, self.bias, zeros=zeros, padding=self.padding[1:])


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    zeros: int = 0,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """A 3-D convolution after `zeros` frames of zero, with a stride over time only.

    Args:
        x: [B, C, T, H, W].
        weight: [C', C, taps, height, width].
        zeros: less than taps.
        padding: of height and width.

    Returns:
        [B, C', (T + zeros − taps) // stride + 1, …].
    """
    if x.device.type != "cpu" or torch.is_grad_enabled():
        x = F.pad(x, (0, 0, 0, 0, zeros, 0)) if zeros else x
        return F.conv3d(x, weight, bias, stride=(stride, 1, 1), padding=(0, *padding))
    # To sample on a CPU a sum of 2-D convolutions, one a tap, is faster: nothing is multiplied by
    # the zeros, and few or small frames do not fall onto PyTorch's slow 3-D path.
    taps = weight.shape[2]
    frames = (x.shape[2] + zeros - taps) // stride + 1
    y = convolve_pictures(
        x[:, :, taps - 1 - zeros :: stride], weight[:, :, -1], bias, padding=padding
    )
    for tap in range(taps - 1):
        skipped = max(0, -(-(zeros - tap) // stride))  # output frames to which the tap gives zero
        if skipped < frames:
            start = skipped * stride + tap - zeros
            pictures = x[:, :, start : start + stride * (frames - skipped) : stride]
            part = convolve_pictures(pictures, weight[:, :, tap], None, padding=padding)
            y[:, :, skipped:] += part
    return y


def convolve_pictures(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """A 2-D convolution of every frame: [B, C, T, H, W] → [B, C', T, H', W']."""
    # not transpose and flatten: of a single picture they lose the layout
    pictures = x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)
    y = F.conv2d(pictures, weight, bias, stride=stride, padding=padding)
    return y.permute(0, 2, 3, 1).unflatten(0, (x.shape[0], -1)).permute(0, 4, 1, 2, 3)
