"""Text encoders: prompts in, features for the DiT's cross-attention out.

Two kinds: umT5-XXL (model/umt5.py), which the public weights were trained with, and a small
byte-level encoder of ours (model/byte_encoder.py) for machines without those weights.
`load_text_encoder` tells them apart by what lies there.

B batch, N tokens, D width of the features.
"""

import html
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ftfy
import torch
from torch import Tensor

from model.tensors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextFeatures:
    """Prompts as the DiT takes them."""

    features: Tensor  # [B, length, D], zero beyond each prompt's tokens
    lengths: Tensor  # [B] int64, on the features' device: tokens of each prompt, never 0
    truncated: tuple[bool, ...]  # which prompts were cut


class TextEncoder(Protocol):
    """Anything that makes features of prompts."""

    name: str
    width: int  # D
    length: int  # tokens that a prompt may have, 512

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of prompts in any language, one row each, whatever their neighbours.

        Raises:
            TypeError: not a sequence of str. ValueError: no prompt at all.
        """
        ...


def clean(prompt: str) -> str:
    """A prompt as the public pipeline hands it to its tokenizer.

    Broken Unicode is mended (ftfy), HTML entities are resolved twice (captions from the web are
    often escaped twice), and every run of white space becomes one space.
    Source: Wan 2.1 `wan/modules/tokenizers.py`; diffusers' `prompt_clean`.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


def checked(prompts: Sequence[str]) -> list[str]:
    """The prompts, cleaned.

    Raises:
        TypeError: not a sequence of str. ValueError: no prompt at all.
    """
    if isinstance(prompts, str) or not all(isinstance(one, str) for one in prompts):
        raise TypeError("encode() takes a list of prompts, e.g. ['a cat']")
    if not prompts:
        raise ValueError("encode() was given no prompt; the empty prompt is ['']")
    return [clean(one) for one in prompts]


def report_cut(prompt: str, tokens: int, limit: int, unit: str = "tokens") -> None:
    """Warns that a prompt's end was cut off."""
    logger.warning(
        "prompt cut from %d to %d %s (the last %d are lost): “%s…”",
        *(tokens, limit, unit, tokens - limit, prompt[:60]),
    )


def padded(hidden: Tensor, lengths: Tensor, length: int) -> Tensor:
    """[B, N, D] → [B, length, D], zero from each row's own length on.

    The DiT does not mask its text: it was trained with zeros here, so whatever an
    encoder computes at a padded place must not reach it.
    """
    inside = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    hidden = torch.where(inside[..., None], hidden, hidden.new_zeros(()))
    return torch.nn.functional.pad(hidden, (0, 0, 0, length - hidden.shape[1]))


def load_text_encoder(
    spec: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
) -> TextEncoder:
    """The text encoder that lies at a path or on the hub, frozen and in eval mode.

    Args:
        spec: a ByteEncoder's folder; or umT5: a folder of transformers or a diffusers pipeline
            (`text_encoder/` + `tokenizer/`), an official Wan folder or its
            `models_t5_umt5-xxl-enc-bf16.pth`, a single file in either naming, or `owner/name`
            on the hub of any of these.
        dtype: of the weights and features; None keeps the file's.
        tokenizer: umT5's, where it isn't beside the weights: a folder or `owner/name`.

    Raises:
        CheckpointError: weights or tokenizer are missing (says where they belong), or something
            else lies there.
    """
    from model.byte_encoder import is_byte_encoder, load_byte_encoder
    from model.umt5 import load_umt5

    folder = Path(spec).expanduser()
    if is_byte_encoder(folder):
        if tokenizer is not None:
            raise CheckpointError(f"{spec}: a ByteEncoder reads bytes and takes no tokenizer")
        return load_byte_encoder(folder, device, dtype).requires_grad_(False).eval()
    return load_umt5(spec, device, dtype, tokenizer)
