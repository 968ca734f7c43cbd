"""Text encoders: prompts in, features for the DiT's cross-attention out.

Two kinds: umT5-XXL (model/umt5.py), which the public weights were trained with, and a small
byte-level encoder of ours (model/byte_encoder.py) for machines without those weights.
`load_text_encoder` tells them apart by what lies there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from model.byte_encoder import is_byte_encoder, load_byte_encoder
from model.prompt import TextFeatures
from model.tensors import CheckpointError
from model.umt5 import load_umt5


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
    folder = Path(spec).expanduser()
    if is_byte_encoder(folder):
        if tokenizer is not None:
            raise CheckpointError(f"{spec}: a ByteEncoder reads bytes and takes no tokenizer")
        return load_byte_encoder(folder, device, dtype).requires_grad_(False).eval()
    return load_umt5(spec, device, dtype, tokenizer)
