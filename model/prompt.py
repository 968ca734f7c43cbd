"""Prompts on their way to the DiT: cleaned before an encoder reads them, padded after.

B batch, N tokens, D width of the features.
"""

import html
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import ftfy
import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextFeatures:
    """Prompts as the DiT takes them."""

    features: Tensor  # [B, length, D], zero beyond each prompt's tokens
    lengths: Tensor  # [B] int64, on the features' device: tokens of each prompt, never 0
    truncated: tuple[bool, ...]  # which prompts were cut


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
