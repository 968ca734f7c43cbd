"""Wan 2.1's diffusion transformer: text-to-video, image-to-video, first-and-last-frame.

Parameter names are those of the public checkpoints. Numbers are those of diffusers'
`WanTransformer3DModel`: parameters in any dtype; time embedding, modulation and norms computed in
float32; the residual stream in the dtype of the parameters (of autocast, where that is on).

Shapes: B batch, T, H, W of the latents, N tokens = T·H/2·W/2 (W varies fastest), L text tokens,
I image tokens, C width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Context, CrossAttention, SelfAttention
from model.norm import HeadNorm, layer_norm, modulated, no_autocast
from model.presets import PRESETS
from model.recompute import Recompute
from model.rope import POSITIONS, rope_table

__all__ = ["PRESETS", "WanDiT"]


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; the time modulates the first and the last."""

    def __init__(
        self,
        width: int,
        ffn_width: int,
        num_heads: int,
        eps: float,
        text_length: int,
        has_image: bool,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.modulation = nn.Parameter(torch.empty(1, 6, width))
        self.self_attn = SelfAttention(width, num_heads, eps)
        self.norm3 = nn.LayerNorm(width, eps)
        self.cross_attn = CrossAttention(width, num_heads, eps, text_length, has_image)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn_width), nn.GELU("tanh"), nn.Linear(ffn_width, width)
        )

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        text: Tensor,
        image: Tensor | None,
        rope: Tensor,
        context: Context,
    ) -> Tensor:
        """x [B, N, C], modulation [B, 6, C], text [B, L, C], image [B, I, C] → as x."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (
            self.modulation.float() + modulation
        ).chunk(6, dim=1)
        y = self.self_attn(modulated(x, shift, scale, self.eps), rope, context)
        x = torch.addcmul(x, y, gate).to(x.dtype)
        x = x + self.cross_attn(layer_norm(x, self.norm3), text, image, context)
        y = self.ffn(modulated(x, ffn_shift, ffn_scale, self.eps))
        return torch.addcmul(x, y, ffn_gate).to(x.dtype)


class Head(nn.Module):
    """The last norm, modulated by the time, and the projection to patches."""

    def __init__(self, width: int, patch_width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.modulation = nn.Parameter(torch.empty(1, 2, width))
        self.head = nn.Linear(width, patch_width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, N, C], time [B, C] float32 → [B, N, patch_width]."""
        shift, scale = (self.modulation.float() + time.unsqueeze(1)).chunk(2, dim=1)
        return self.head(modulated(x, shift, scale, self.eps))


class ImageEmbedding(nn.Module):
    """CLIP's tokens to the model's width; first and last frame are told apart by their position."""

    def __init__(self, image_width: int, width: int, positions: int | None) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(image_width),
            nn.Linear(image_width, image_width),
            nn.GELU(),
            nn.Linear(image_width, width),
            nn.LayerNorm(width),
        )
        if positions is not None:
            self.emb_pos = nn.Parameter(torch.empty(1, positions, image_width))

    def forward(self, image: Tensor) -> Tensor:
        """[B, I, image_width] → [B, I, C]."""
        if hasattr(self, "emb_pos"):
            image = image + self.emb_pos
        first_norm, *middle, last_norm = self.proj
        x = layer_norm(image, first_norm)
        for layer in middle:
            x = layer(x)
        return layer_norm(x, last_norm)


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, done as the matrix product that it is."""

    def __init__(self, in_channels: int, width: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, in_channels, *patch))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, T, H, W] → [B, N, C]."""
        batch, channels, *sizes = x.shape
        patch = self.weight.shape[2:]
        (t, h, w), (p, q, r) = (s // p for s, p in zip(sizes, patch, strict=True)), patch
        x = x.reshape(batch, channels, t, p, h, q, w, r).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return F.linear(x.reshape(batch, t * h * w, -1), self.weight.flatten(1), self.bias)


class WanDiT(nn.Module):
    """The transformer. Its keywords, all JSON, are kept in `config`.

    width = num_heads · head dim (128 in all public models). image_width: width of the CLIP tokens,
    None without an image branch. image_positions: 514 for first-and-last-frame. in_channels counts
    the condition's channels too (36 = 16 + 20).

    How it runs is set on the instance and never stored: `context` (the attention kernel, and where
    the sequence lies: `model.attention.Context`) and `recompute` (activation checkpointing:
    `model.recompute.Recompute`).
    """

    def __init__(
        self,
        width: int = 1536,
        ffn_width: int = 8960,
        num_heads: int = 12,
        num_layers: int = 30,
        in_channels: int = 16,
        out_channels: int = 16,
        text_width: int = 4096,
        text_length: int = 512,
        image_width: int | None = None,
        image_positions: int | None = None,
        time_width: int = 256,
        patch: tuple[int, int, int] = (1, 2, 2),
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if width % num_heads or width // num_heads % 2:
            raise ValueError(f"width {width} does not split into {num_heads} heads of even width")
        self.config: dict[str, Any] = {
            "width": width,
            "ffn_width": ffn_width,
            "num_heads": num_heads,
            "num_layers": num_layers,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "text_width": text_width,
            "text_length": text_length,
            "image_width": image_width,
            "image_positions": image_positions,
            "time_width": time_width,
            "patch": list(patch),
            "eps": eps,
        }
        self.context = Context()
        self.recompute = Recompute()
        has_image = image_width is not None
        self.patch_embedding = PatchEmbedding(in_channels, width, tuple(patch))
        self.text_embedding = nn.Sequential(
            nn.Linear(text_width, width), nn.GELU("tanh"), nn.Linear(width, width)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(time_width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(
            Block(width, ffn_width, num_heads, eps, text_length, has_image)
            for _ in range(num_layers)
        )
        self.head = Head(width, out_channels * math.prod(patch), eps)
        if has_image:
            self.img_emb = ImageEmbedding(image_width, width, image_positions)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew as Wan does; after `to_empty` too."""
        if self.patch_embedding.weight.is_meta:
            return  # nothing to draw; PyTorch would import its compiler for it, which takes seconds
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, Block | Head):
                nn.init.normal_(module.modulation, std=self.config["width"] ** -0.5)
            elif isinstance(module, HeadNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, ImageEmbedding) and hasattr(module, "emb_pos"):
                nn.init.zeros_(module.emb_pos)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        nn.init.zeros_(self.patch_embedding.bias)
        for embedding in (self.text_embedding, self.time_embedding):
            for layer in (embedding[0], embedding[2]):
                nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The velocity noise − data at `latents`, in their shape and dtype.

        latents [B, channels, T, H, W], normalised; timestep [B] = 1000·sigma, 0..1000; text
        [B, L, text_width], zero beyond each prompt's tokens, not masked; image [B, 257 or 514,
        image_width] from CLIP; condition [B, 20, T, H, W]: 4 mask channels, then 16 of the
        conditioning latents. ValueError names what does not fit.

        L is text_length, or less: then the last token stands for itself and all that are left out,
        which is the same where they are equal, as zeros are, and saves their keys and values.
        """
        self._check(latents, timestep, text, image, condition)
        dtype = self.patch_embedding.weight.dtype
        x = latents if condition is None else torch.cat((latents, condition.to(latents)), dim=1)
        grid = self._grid(x)
        x = self.patch_embedding(x.to(dtype))
        time, modulation = self.embed_time(timestep)
        text = self.text_embedding(text.to(dtype))
        image = None if image is None else self.img_emb(image.to(dtype))
        head_dim = self.config["width"] // self.config["num_heads"]
        rope = self.context.shard(rope_table(grid, head_dim, like=x))
        x = self.context.shard(x)
        for index, block in enumerate(self.blocks):
            x = self.recompute(index, block, x, modulation, text, image, rope, self.context)
        x = self.context.gather(self.head(x, time))
        return self._unpatch(x, grid).to(latents.dtype)

    def embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """timestep [B] → its embedding [B, C] and every block's modulation [B, 6, C], float32."""
        half = self.config["time_width"] // 2
        # sines of up to 1000 radians: float64, as the public code has it
        powers = torch.arange(half, dtype=torch.float64, device=timestep.device) / -half
        angles = torch.outer(timestep.double(), 10_000.0**powers)
        waves = torch.cat((angles.cos(), angles.sin()), dim=1).float()
        with no_autocast(timestep.device):
            x = F.silu(_linear32(waves, self.time_embedding[0]))
            time = _linear32(x, self.time_embedding[2])
            modulation = _linear32(F.silu(time), self.time_projection[1])
        return time, modulation.unflatten(1, (6, -1))

    def _grid(self, x: Tensor) -> tuple[int, int, int]:
        t, h, w = (s // p for s, p in zip(x.shape[2:], self.config["patch"], strict=True))
        return t, h, w

    def _unpatch(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[B, N, patch · channels] → [B, channels, T, H, W]."""
        (t, h, w), (p, q, r) = grid, self.config["patch"]
        x = x.view(x.shape[0], t, h, w, p, q, r, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(x.shape[0], -1, t * p, h * q, w * r)

    def _check(self, latents, timestep, text, image, condition) -> None:
        config = self.config
        if latents.ndim != 5:
            raise ValueError(f"latents {list(latents.shape)}: five axes wanted, [B, C, T, H, W]")
        batch, channels, *sizes = latents.shape
        if condition is not None:
            extra = condition.shape[1] if condition.ndim == 5 else 0
            if list(condition.shape) != [batch, extra, *sizes]:
                raise ValueError(
                    f"condition {list(condition.shape)} does not fit latents {list(latents.shape)}"
                )
            channels += extra
        if channels != config["in_channels"]:
            without = " (no condition was given)" if condition is None else " with the condition's"
            raise ValueError(
                f"{channels} channels{without}, but the model takes {config['in_channels']}"
            )
        for axis, size, patch in zip("THW", sizes, config["patch"], strict=True):
            if size % patch or not 0 < size // patch <= POSITIONS:
                raise ValueError(
                    f"latents {list(latents.shape)}: {axis} = {size} is no multiple of {patch} "
                    f"between {patch} and {POSITIONS * patch}"
                )
        if list(timestep.shape) != [batch]:
            raise ValueError(f"timestep {list(timestep.shape)}: one a sample wanted, [{batch}]")
        if timestep.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(f"timestep is {timestep.dtype}, too coarse for 0..1000: give float32")
        wanted = [batch, config["text_length"], config["text_width"]]
        if [*text.shape[::2]] != wanted[::2] or not 0 < text.shape[1] <= wanted[1]:
            raise ValueError(f"text {list(text.shape)}: the model takes {wanted}, or fewer tokens")
        if (image is None) != (config["image_width"] is None):
            state = (
                "has no image branch" if image is not None else "needs image tokens: give image="
            )
            raise ValueError(f"the model {state}")
        if image is not None:
            tokens = config["image_positions"] or image.shape[1]
            if list(image.shape) != [batch, tokens, config["image_width"]]:
                wanted = [batch, config["image_positions"] or 257, config["image_width"]]
                raise ValueError(f"image {list(image.shape)}: the model takes {wanted}")


def _linear32(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight.float(), layer.bias.float())
