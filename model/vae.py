"""Wan-VAE: video to latents, 4 × 8 × 8 times fewer (time × height × width), and back.

    vae = load_vae("Wan2.1_VAE.pth")                 # model.checkpoint
    latents = vae.normalize(vae.encode(video).mean)  # [1, 3, 81, 480, 832] → [1, 16, 21, 60, 104]
    for frames in vae.decode_stream([vae.denormalize(latents)], tile=256):  # constant memory
        ...

Wan report (arXiv 2503.20314) §3.1; names and numbers are those of the public weights. `encode` and
`decode` work in one shot, differentiable and without state; `encode_stream` and `decode_stream`
give the same numbers chunk by chunk.

Shapes: B batch, C channels, T frames, H height, W width. 1 + 4k frames have 1 + k latent frames:
the first stands alone, so that an image is a video of length one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.causal import CausalConv3d
from model.coder import Decoder, Encoder
from model.tiling import Tile, blend, lay

# Of the public weights, one a latent channel (wan.modules.vae)
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents, not normalised.

    Attributes:
        mean: [B, C, T, H, W].
        logvar: the same shape, within −30 … 20.
    """

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + std · noise; the noise is drawn on the generator's device."""
        noise = torch.randn(
            self.mean.shape,
            generator=generator,
            device=self.mean.device if generator is None else generator.device,
            dtype=self.mean.dtype,
        )
        return self.mean + self.std * noise.to(self.mean.device)

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats, summed over a sample's latents: [B]."""
        nats = 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)
        return nats.flatten(1).sum(1)


class WanVAE(nn.Module):
    """The video autoencoder of Wan 2.1 at any size; the default is the published one, 126.89 M.

    Args:
        width: channels of the first level.
        latent_channels: channels of a latent.
        multipliers: channels of each level, in widths; between two levels height and width halve.
        blocks: residual blocks a level in the encoder; the decoder has one more.
        temporal: whether the frames halve too, one a change of level.
        taps: reach of the convolutions over time; 1 makes an image VAE, which takes every frame for
            itself (`model.inflation` turns it into a video VAE).
        dropout: in the residual blocks.
        latent_mean, latent_std: one a latent channel, for `normalize`; by default the published
            ones if there are 16 channels, else 0 and 1.

    Attributes:
        config: the arguments, so that `WanVAE(**vae.config)` has the same shape.
        compression: (time, height, width).
    """

    def __init__(
        self,
        width: int = 96,
        latent_channels: int = 16,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        blocks: int = 2,
        temporal: Sequence[bool] = (False, True, True),
        taps: int = 3,
        dropout: float = 0.0,
        latent_mean: Sequence[float] | None = None,
        latent_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        published = latent_channels == len(LATENT_MEAN)
        latent_mean = latent_mean or (LATENT_MEAN if published else [0.0] * latent_channels)
        latent_std = latent_std or (LATENT_STD if published else [1.0] * latent_channels)
        if len(temporal) != len(multipliers) - 1:
            raise ValueError(
                f"{len(multipliers)} levels have {len(multipliers) - 1} changes of level; temporal "
                f"names {len(temporal)}"
            )
        if taps == 1 and any(temporal):
            raise ValueError("an image VAE (taps=1) can't halve time: temporal must be all False")
        for name, values in (("latent_mean", latent_mean), ("latent_std", latent_std)):
            if len(values) != latent_channels:
                raise ValueError(f"{name} has {len(values)} values for {latent_channels} channels")
        self.config = {
            "width": width,
            "latent_channels": latent_channels,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "temporal": list(temporal),
            "taps": taps,
            "dropout": dropout,
            "latent_mean": list(latent_mean),
            "latent_std": list(latent_std),
        }
        shrink = 2 ** len(temporal)
        self.compression = (2 ** sum(temporal), shrink, shrink)
        sizes = (multipliers, blocks, temporal, taps, dropout)
        self.encoder = Encoder(width, 2 * latent_channels, *sizes)
        self.conv1 = CausalConv3d(2 * latent_channels, 2 * latent_channels, (1, 1, 1))
        self.conv2 = CausalConv3d(latent_channels, latent_channels, (1, 1, 1))
        self.decoder = Decoder(width, latent_channels, *sizes)
        for name, values in (("latent_mean", latent_mean), ("latent_std", latent_std)):
            statistic = torch.tensor(list(values)).view(1, -1, 1, 1, 1)
            self.register_buffer(name, statistic, persistent=False)

    def encode(self, video: Tensor, *, pad: bool = False) -> Posterior:
        """In one shot, differentiable.

        Args:
            video: [B, 3, 1 + 4k, 8h, 8w] in −1 … 1.
            pad: repeat the last frame up to the next length of that form.

        Returns:
            The posterior over latents [B, C, 1 + k, h, w], not normalised.

        Raises:
            ValueError: a video of another shape.
        """
        return self._posterior(self.encoder(self._frames(video, ahead=1, pad=pad)))

    def decode(self, latents: Tensor, *, clamp: bool = True) -> Tensor:
        """In one shot, differentiable.

        Args:
            latents: [B, C, 1 + k, h, w], not normalised.
            clamp: False for training: a pixel beyond the range must be able to find back.

        Returns:
            The video [B, 3, 1 + 4k, 8h, 8w], in −1 … 1 if clamped.
        """
        video = self.decoder(self._latents(latents))
        return video.clamp(-1, 1) if clamp else video

    @torch.no_grad()
    def encode_stream(
        self,
        frames: Iterable[Tensor],
        *,
        chunk: int = 4,
        tile: int | None = None,
        overlap: int = 64,
        pad: bool = False,
    ) -> Iterator[Posterior]:
        """The numbers of `encode`, in memory that does not grow with the length.

        Args:
            frames: the video cut along time anywhere, [B, 3, any, 8h, 8w] each.
            chunk: frames encoded at once, after the first, which goes alone; a multiple of 4.
            tile: side of the squares, in pixels, that are encoded one by one and blended; a
                multiple of 8. None takes pictures whole.
            overlap: of neighbouring tiles, in pixels, at most half a tile.
            pad: repeat the last frame where the length is not 1 + 4k.

        Yields:
            Posteriors over the first frame's latent frame, then over chunk / 4 each.

        Raises:
            ValueError: a video of another shape (its length is known only at its end).
        """
        time, cell, _ = self.compression
        if chunk < 1 or chunk % time:
            raise ValueError(f"chunk must be a multiple of {time} frames, not {chunk}")
        chunks = (
            self._frames(part, ahead=int(first), pad=pad)
            for first, part in rechunked(frames, chunk)
        )
        for coded in stream(self.encoder, chunks, cell, 1, tile, overlap):
            yield self._posterior(coded)

    @torch.no_grad()
    def decode_stream(
        self,
        latents: Iterable[Tensor],
        *,
        chunk: int = 1,
        tile: int | None = None,
        overlap: int = 64,
    ) -> Iterator[Tensor]:
        """The numbers of `decode`, in memory that does not grow with the length.

        Args:
            latents: cut along time anywhere, [B, C, any, h, w] each, not normalised.
            chunk: latent frames decoded at once, after the first, which goes alone.
            tile, overlap: as in `encode_stream`, in pixels.

        Yields:
            Frames [B, 3, 1, 8h, 8w] in −1 … 1, then 4 · chunk each.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least one latent frame, not {chunk}")
        chunks = (self._latents(part) for _, part in rechunked(latents, chunk))
        for frames in stream(self.decoder, chunks, 1, self.compression[1], tile, overlap):
            yield frames.clamp(-1, 1)

    def normalize(self, latents: Tensor) -> Tensor:
        """(latents − mean) / std, channel by channel: what the DiT is trained on."""
        return (latents - self.latent_mean.to(latents)) / self.latent_std.to(latents)

    def denormalize(self, latents: Tensor) -> Tensor:
        return latents * self.latent_std.to(latents) + self.latent_mean.to(latents)

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute layers in the backward pass of `encode` and `decode`, to save memory."""
        for chain in (
            self.encoder.downsamples,
            self.encoder.middle,
            self.decoder.middle,
            self.decoder.upsamples,
        ):
            chain.checkpointing = on

    def _frames(self, video: Tensor, ahead: int, pad: bool) -> Tensor:
        """Checks a video of `ahead` + 4k frames (or makes it one) and lays it out."""
        time, cell, _ = self.compression
        if video.ndim != 5 or video.shape[1] != 3 or 0 in video.shape:
            raise ValueError(f"a video is [B, 3, T, H, W], not {list(video.shape)}")
        missing = -(video.shape[2] - ahead) % time
        if missing and not pad:
            raise ValueError(
                f"{video.shape[2]} frames{'' if ahead else ' at the end'} are not {ahead} + "
                f"{time}k: cut {time - missing}, or say pad=True to repeat the last {missing} times"
            )
        if video.shape[3] % cell or video.shape[4] % cell:
            height, width = video.shape[3:]
            raise ValueError(f"width {width} and height {height} must be multiples of {cell}")
        if missing:
            video = torch.cat([video, video[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
        return self._laid_out(video)

    def _latents(self, latents: Tensor) -> Tensor:
        channels = self.config["latent_channels"]
        if latents.ndim != 5 or latents.shape[1] != channels or 0 in latents.shape:
            raise ValueError(f"latents are [B, {channels}, T, H, W], not {list(latents.shape)}")
        return self.conv2(self._laid_out(latents))

    def _laid_out(self, x: Tensor) -> Tensor:
        weight = self.conv1.weight
        return x.to(weight.device, weight.dtype).contiguous(memory_format=torch.channels_last_3d)

    def _posterior(self, coded: Tensor) -> Posterior:
        mean, logvar = self.conv1(coded).contiguous().chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30, 20))


def stream(
    network: Encoder | Decoder,
    chunks: Iterable[Tensor],
    cell: int,
    pixels: int,
    tile: int | None,
    overlap: int,
) -> Iterator[Tensor]:
    """Runs a coder chunk by chunk, and tile by tile within a chunk.

    Args:
        cell, pixels: side of a latent in the input and in the output.
        tile, overlap: in pixels of the video.
    """
    side = max(cell, pixels)
    if tile is not None and (tile % side or overlap % side):
        raise ValueError(f"tile {tile} and overlap {overlap} must be multiples of {side} pixels")
    size = None if tile is None else tile // side
    tiles: list[Tile] = []
    for x in chunks:
        height, width = x.shape[3] // cell, x.shape[4] // cell
        if not tiles:
            tiles = lay(height, width, size, overlap // side if size else 0, pixels)
        yield blend(network, x, tiles, cell)
        for one in tiles:
            one.cache.first = False


def rechunked(parts: Iterable[Tensor], size: int) -> Iterator[tuple[bool, Tensor]]:
    """Cuts a stream along time: one frame, then pieces of `size`; the last may be shorter.

    Yields:
        (whether it is the first, the piece).
    """
    first, held = True, None
    for part in parts:
        held = part if held is None else torch.cat([held, part], dim=2)
        while held.shape[2] >= (wanted := 1 if first else size):
            yield first, held[:, :, :wanted]
            held = held[:, :, wanted:]
            first = False
    if held is not None and held.shape[2]:
        yield first, held
