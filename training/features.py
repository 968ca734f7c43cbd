"""Features of captions: by a frozen text encoder, remembered, or read from latent shards.

    features = Features(encoder)
    text = features(["a cat", ""])          # [2, N, D], as long as the longest
    features.filled(text)                   # [2, given, D], as the DiT takes them
    features.rows(["a cat"])                # [[tokens, D]], without the zeros after

In a latent shard a caption's features are a tensor named after the caption's hash.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from model.text import TextEncoder

REMEMBERED = 2 * 2**30  # bytes: 2,600 captions of 100 tokens of umT5-XXL in bfloat16
SEEN = 4096  # values of each weight that an encoder is told by
MULTIPLE = 64  # of tokens: batches come in few shapes, as a compiler likes them


def given(longest: int, length: int) -> int:
    """Tokens that the DiT is given of prompts of at most `longest`, where it takes `length`: at
    least one zero, which stands for all that are left out (model.dit). Of 256 image tokens' cost
    512 of text, nearly all of them zeros, would be a fifth."""
    return min(length, MULTIPLE * (longest // MULTIPLE + 1))


class Features:
    """What an encoder makes of prompts; those of the last ones are remembered, since many come
    again and again.

    Args:
        encoder: frozen.
        remembered: bytes.
    """

    def __init__(self, encoder: TextEncoder, remembered: int = REMEMBERED) -> None:
        self.encoder, self.remembered, self.held = encoder, remembered, 0
        self._rows: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """[B, N, D] of the longest prompt, on the CPU, zero beyond each one's tokens."""
        return torch.nn.utils.rnn.pad_sequence(self.rows(prompts), batch_first=True)

    def filled(self, features: Tensor) -> Tensor:
        """[B, N, D] → [B, given, D], zeros after."""
        longest = features.shape[1]
        return pad(features, (0, 0, 0, given(longest, self.encoder.length) - longest))

    @torch.no_grad()
    def rows(self, prompts: Sequence[str]) -> list[Tensor]:
        """[tokens, D] of each, on the CPU."""
        new = [one for one in dict.fromkeys(prompts) if one not in self._rows]
        if new:
            found = self.encoder.encode(new)
            for prompt, row, count in zip(new, found.features, found.lengths, strict=True):
                self._rows[prompt] = row[: int(count)].cpu().clone()
                self.held += self._rows[prompt].nbytes
        rows = []
        for prompt in prompts:
            self._rows.move_to_end(prompt)
            rows.append(self._rows[prompt])
        while self.held > self.remembered:
            self.held -= self._rows.popitem(last=False)[1].nbytes
        return rows


def name(caption: str) -> str:
    """Of a caption's features in a latent shard."""
    digest = hashlib.blake2b(caption.encode("utf-8", "surrogateescape"), digest_size=8)
    return f"text/{digest.hexdigest()}"


def fingerprint(encoder: TextEncoder) -> str:
    """SHA-256 of what tells a text encoder from another: names, shapes and some values of all its
    weights; all of umT5-XXL's would take minutes."""
    digest = hashlib.sha256(f"{encoder.name} {encoder.width} {encoder.length}".encode())
    weights = getattr(encoder, "model", encoder).state_dict()
    for key, value in sorted(weights.items()):
        some = value.detach().flatten()[:: max(1, value.numel() // SEEN)]
        digest.update(f"{key} {list(value.shape)}".encode())
        digest.update(some.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
