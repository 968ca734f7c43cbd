"""The encoder and the decoder of Wan-VAE, and what they are built of.

Shapes: B batch, C channels, T frames, H height, W width; `taps` is the reach of a convolution over
time, 3, or 1 in an image VAE. Wan report (arXiv 2503.20314) §3.1; the attributes' names and their
places in lists are the names of the public weights.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.causal import CausalConv3d, Chain, StreamCache, Streams, convolve, convolve_pictures


class RMSNorm(nn.Module):
    """Divides by the root mean square over channels: unlike group norm, it keeps time causal."""

    def __init__(self, channels: int, *, of_pictures: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * (2 if of_pictures else 3)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] → the same; float32 arithmetic on half precision too."""
        gain = self.gamma.flatten() * len(self.gamma) ** 0.5
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return _scaled(x, gain, _inverse_length(x))
        return _Normalised.apply(x, gain)


def _inverse_length(x: Tensor) -> Tensor:
    """[B, C, T, H, W] → 1 / the length of each pixel's channels, [B, 1, T, H, W]."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(1e-12).reciprocal()


def _scaled(x: Tensor, gain: Tensor, inverse: Tensor) -> Tensor:
    return (x * inverse).to(x.dtype) * gain.view(-1, 1, 1, 1)


class _Normalised(torch.autograd.Function):
    """x · gain / |x|, whose gradient takes half the passes over memory of PyTorch's own."""

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor) -> Tensor:
        inverse = _inverse_length(x)
        ctx.save_for_backward(x, gain, inverse)
        return _scaled(x, gain, inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, gain, inverse = ctx.saved_tensors
        product = (grad * x).permute(0, 2, 3, 4, 1).flatten(0, 3).to(inverse.dtype)  # [pixels, C]
        pixels = inverse.permute(0, 2, 3, 4, 1).flatten()
        along = (product @ gain.to(product.dtype)).view_as(inverse) * inverse**3
        grad_gain = (pixels @ product).to(gain.dtype)
        grad_x = grad * gain.view(-1, 1, 1, 1) * inverse
        return grad_x.addcmul_(x, along, value=-1).to(x.dtype), grad_gain


class ResidualBlock(nn.Module, Streams):
    """Norm, SiLU and convolution, twice, around a shortcut."""

    def __init__(self, channels: int, out: int, taps: int, dropout: float) -> None:
        super().__init__()
        self.residual = Chain(
            RMSNorm(channels),
            nn.SiLU(),
            CausalConv3d(channels, out, (taps, 3, 3)),
            RMSNorm(out),
            nn.SiLU(),
            nn.Dropout(dropout),
            CausalConv3d(out, out, (taps, 3, 3)),
        )
        self.shortcut = CausalConv3d(channels, out, (1, 1, 1)) if channels != out else nn.Identity()

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        return self.residual(x, cache) + self.shortcut(x)


class FrameAttention(nn.Module):
    """Self-attention of one head among the pixels of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, of_pictures=True)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 4, 1).reshape(b * t, 1, h * w, c)
        qkv = F.linear(pixels, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        y = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        y = F.linear(y, self.proj.weight.flatten(1), self.proj.bias)
        return x + y.view(b, t, h, w, c).permute(0, 4, 1, 2, 3)


class Downsample(nn.Module, Streams):
    """Halves height and width and, where `temporal`, the frames that follow the first."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        # the convolution's place in the list is part of its public name
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
        )
        if temporal:
            self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1))
        self.temporal = temporal

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        pad, conv = self.resample
        x = convolve_pictures(pad(x), conv.weight, conv.bias, stride=2)
        if not self.temporal:
            return x
        seen = x if cache is None else cache.join(self, x, 1)
        if cache is not None and not cache.first:
            return self._halve(seen)
        return x if x.shape[2] == 1 else torch.cat([x[:, :, :1], self._halve(seen)], dim=2)

    def _halve(self, x: Tensor) -> Tensor:
        """[B, C, 1 + 2k, H, W] → [B, C, k, H, W]."""
        return convolve(x, self.time_conv.weight, self.time_conv.bias, stride=2)


class Upsample(nn.Module, Streams):
    """Doubles height and width, halves the channels; where `temporal`, two frames for each but the
    first."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact"),
            nn.Conv2d(channels, channels // 2, 3, padding=1),
        )
        if temporal:
            self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1))
        self.temporal = temporal

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        if self.temporal and cache is not None and not cache.first:
            x = self._double(x, cache)
        elif self.temporal and x.shape[2] > 1:
            # the public model never shows frame 0 to this convolution
            x = torch.cat([x[:, :, :1], self._double(x[:, :, 1:], cache)], dim=2)
        return self._enlarge(x)

    def _enlarge(self, x: Tensor) -> Tensor:
        """`resample`: [B, C, T, H, W] → [B, C / 2, T, 2H, 2W], without the enlarged input.

        After doubling by nearest neighbour, each of a picture's four phases (even or odd row,
        even or odd column) sees only 2 × 2 different pixels through the 3 × 3 kernel: its taps add
        up to a 2 × 2 kernel, which takes 4/9 of the arithmetic.
        """
        conv = self.resample[1]
        b, _, t, h, w = x.shape
        fold = x.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float32)
        kernels = torch.einsum("pak,qbl,oikl->pqoiab", fold, fold, conv.weight.float())
        kernels = kernels.flatten(0, 2).to(x.dtype)
        y = convolve_pictures(x, kernels, conv.bias.repeat(4), padding=(1, 1))
        y = y.permute(0, 2, 3, 4, 1).unflatten(-1, (2, 2, -1))  # [B, T, H + 1, W + 1, 2, 2, C / 2]
        rows = [
            torch.stack([y[:, :, p : p + h, q : q + w, p, q] for q in (0, 1)], dim=4)
            for p in (0, 1)
        ]
        y = torch.stack(rows, dim=3).reshape(b, t, 2 * h, 2 * w, -1)
        return y.permute(0, 4, 1, 2, 3)

    def _double(self, x: Tensor, cache: StreamCache | None) -> Tensor:
        """[B, C, T, H, W] → [B, C, 2T, H, W]: half the convolution's channels for each frame."""
        b, c, t, h, w = x.shape
        halves = self.time_conv(x, cache).view(b, 2, c, t, h, w)
        return halves.permute(0, 2, 3, 1, 4, 5).reshape(b, c, 2 * t, h, w)


class Encoder(nn.Module, Streams):
    """[B, 3, 1 + 4k, H, W] → [B, out, 1 + k, H / 8, W / 8]."""

    def __init__(
        self,
        width: int,
        out: int,
        multipliers: Sequence[int],
        blocks: int,
        temporal: Sequence[bool],
        taps: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(3, width, (taps, 3, 3))
        levels: list[nn.Module] = []
        channels = width
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                levels.append(ResidualBlock(channels, width * multiplier, taps, dropout))
                channels = width * multiplier
            if level < len(multipliers) - 1:
                levels.append(Downsample(channels, temporal[level]))
        self.downsamples = Chain(*levels)
        self.middle = middle(channels, taps, dropout)
        self.head = head(channels, out, taps)

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        x = self.conv1(x, cache)
        x = self.downsamples(x, cache)
        x = self.middle(x, cache)
        return self.head(x, cache)


class Decoder(nn.Module, Streams):
    """[B, C, 1 + k, H, W] → [B, 3, 1 + 4k, 8 H, 8 W]."""

    def __init__(
        self,
        width: int,
        latent_channels: int,
        multipliers: Sequence[int],
        blocks: int,
        temporal: Sequence[bool],
        taps: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels = width * multipliers[-1]
        self.conv1 = CausalConv3d(latent_channels, channels, (taps, 3, 3))
        self.middle = middle(channels, taps, dropout)
        levels: list[nn.Module] = []
        for level in reversed(range(len(multipliers))):
            for _ in range(blocks + 1):
                levels.append(ResidualBlock(channels, width * multipliers[level], taps, dropout))
                channels = width * multipliers[level]
            if level > 0:
                levels.append(Upsample(channels, temporal[level - 1]))
                channels //= 2
        self.upsamples = Chain(*levels)
        self.head = head(channels, 3, taps)

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        x = self.conv1(x, cache)
        x = self.middle(x, cache)
        x = self.upsamples(x, cache)
        return self.head(x, cache)


def middle(channels: int, taps: int, dropout: float) -> Chain:
    return Chain(
        ResidualBlock(channels, channels, taps, dropout),
        FrameAttention(channels),
        ResidualBlock(channels, channels, taps, dropout),
    )


def head(channels: int, out: int, taps: int) -> Chain:
    return Chain(RMSNorm(channels), nn.SiLU(), CausalConv3d(channels, out, (taps, 3, 3)))
