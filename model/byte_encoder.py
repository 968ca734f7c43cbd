"""A small text encoder over UTF-8 bytes, for machines without umT5's 11 GB.

It is not umT5 and knows no language: a few transformer blocks that read bytes, so that any
language, Chinese included, has features of its own. Train it with the DiT, or leave it as drawn:
a fixed random encoder still gives each prompt its own features, which the DiT can learn to tell
apart. Byte-level models without a vocabulary: Xue et al., ByT5, 2021 (arXiv 2105.13626).

B batch, N tokens (bytes and the begin token), D width, heads × head_dim = D.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from model.pretrained import fill, open_model, placed, read_config
from model.prompt import TextFeatures, checked, padded, report_cut
from model.tensors import CheckpointError, entry
from model.writer import fresh, write_json, write_weights

BEGIN = 256  # the token before every prompt, so that the empty one has a feature; bytes are 0–255


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each after a layer norm and added to its input."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.ffn = nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """x [B, N, D]; inside [B, N] bool, False at padding."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, head_dim]
        attended = scaled_dot_product_attention(q, k, v, attn_mask=inside[:, None, None])
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.ffn[1](gelu(self.ffn[0](self.norm2(x))))


class ByteEncoder(nn.Module):
    """Bytes → features [B, length, width].

    Args:
        width: D of the features; even, a multiple of num_heads.
        num_layers: blocks.
        num_heads: of the attention.
        length: tokens of a prompt: the begin token and up to length − 1 bytes.
        seed: draws the weights, the same on every machine whatever was drawn before.

    Raises:
        ValueError: a width that does not divide.
    """

    name = "bytes"

    def __init__(
        self,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        length: int = 512,
        seed: int = 0,
    ):
        super().__init__()
        if width % 2 or width % num_heads:
            raise ValueError(f"width {width}: needs an even multiple of num_heads {num_heads}")
        self.config = {
            "width": width,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "length": length,
            "seed": seed,
        }
        self.width, self.length = width, length
        with torch.random.fork_rng(devices=[]):  # PyTorch's own draws, overwritten by ours
            self.embedding = nn.Embedding(BEGIN + 1, width)
            self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
            self.norm = nn.LayerNorm(width)
        self._draw(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        for name, value in self.named_parameters():
            if value.dim() == 2:
                # unit variance through each layer; embeddings of unit length a channel
                scale = 1.0 if name.startswith("embedding") else value.shape[1] ** -0.5
                value.copy_(scale * torch.randn(value.shape, generator=generator, device="cpu"))
            else:
                value.fill_(1.0 if name.endswith("weight") else 0.0)

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor, tuple[bool, ...]]:
        """Ids [B, N], lengths [B] and which prompts were cut, N the longest of these prompts.

        A prompt is cut between characters, never within the bytes of one, and that is logged.
        """
        rows, cut = [], []
        for prompt in checked(prompts):
            # a lone surrogate has no UTF-8: it is read as "?"
            whole = prompt.encode("utf-8", errors="replace")
            kept = whole[: self.length - 1].decode("utf-8", errors="ignore").encode("utf-8")
            rows.append([BEGIN, *kept])
            cut.append(len(kept) < len(whole))
            if cut[-1]:
                report_cut(prompt, len(whole), len(kept), "bytes")
        device = self.embedding.weight.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        longest = max(map(len, rows))
        ids = [row + [0] * (longest - len(row)) for row in rows]
        return torch.tensor(ids, device=device), lengths, tuple(cut)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Ids [B, N] and lengths [B] → features [B, length, D], zero beyond each length."""
        count = ids.shape[1]
        inside = torch.arange(count, device=ids.device) < lengths[:, None]
        x = self.embedding(ids) + positions(count, self.width).to(self.embedding.weight)
        for block in self.blocks:
            x = block(x, inside)
        return padded(self.norm(x), lengths, self.length)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of prompts; differentiable where gradients are on.

        Raises:
            TypeError: not a sequence of str. ValueError: no prompt at all.
        """
        ids, lengths, cut = self.tokens(prompts)
        return TextFeatures(self(ids, lengths), lengths, cut)


def positions(count: int, width: int) -> Tensor:
    """Sines and cosines [count, width] (Vaswani et al., 2017, section 3.5)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(count)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def is_byte_encoder(folder: Path) -> bool:
    """Whether a folder holds a ByteEncoder."""
    return folder.is_dir() and read_config(folder).get("class") == "ByteEncoder"


def save_byte_encoder(encoder: ByteEncoder, folder: str | Path) -> None:
    """Writes `model.safetensors` and `config.json` into a new folder, there once it is whole.

    Raises:
        CheckpointError: the folder is there already and not empty, or can't be written.
    """
    entries = {name: entry(value) for name, value in encoder.state_dict().items()}
    with fresh(folder) as partial:
        write_weights(partial, "model", entries)
        write_json(partial / "config.json", {"class": "ByteEncoder", **encoder.config})


def load_byte_encoder(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> ByteEncoder:
    """What `save_byte_encoder` wrote, trainable; dtype None keeps the file's.

    Raises:
        CheckpointError: no such folder or no weights in it, another class, or names or shapes that
            do not fit its config.
    """
    folder = Path(folder)
    if not is_byte_encoder(folder):
        raise CheckpointError(f"{folder}: no ByteEncoder there (config.json, model.safetensors)")
    config = {key: value for key, value in read_config(folder).items() if key != "class"}
    try:
        encoder = ByteEncoder(**config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from None
    weights = open_model(folder)
    tensors = {name: placed(weights.read(name), device, dtype) for name in weights.entries}
    fill(encoder, tensors, folder)
    return encoder
