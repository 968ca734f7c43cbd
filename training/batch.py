"""What flows from the data to the modules: a step of batches, each of one bucket.

A step is one update of the weights. Its batches are spread over the ranks, and each weighs in the
loss by its tokens, so that a small batch does not count as much as a full one, and a step means the
same on one GPU as on many.

B samples, T frames, H × W pixels, C latent channels, L latent frames.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

MEDIA = ("video", "mean", "logvar", "condition")  # of a batch, as many of each as samples
TENSORS = (*MEDIA, "text")


@dataclass(frozen=True, order=True)
class Bucket:
    """Clips of one size and length."""

    width: int  # pixels, a multiple of 16
    height: int
    frames: int  # 4k + 1; 1 is an image

    @property
    def tokens(self) -> int:
        """Positions that the DiT sees, of 4 frames and 16 × 16 pixels each."""
        return (1 + (self.frames - 1) // 4) * (self.height // 16) * (self.width // 16)

    @property
    def is_image(self) -> bool:
        return self.frames == 1

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


@dataclass
class Batch:
    """Samples of one bucket; media are either pixels or a cached posterior.

    N tokens of the longest prompt, D width of the text encoder.
    """

    bucket: Bucket
    keys: list[str]
    prompts: list[str]  # one caption each; dropping them is the module's
    video: Tensor | None = None  # uint8 [B, 3, T, H, W], RGB
    mean: Tensor | None = None  # [B, C, L, H/8, W/8], not normalised
    logvar: Tensor | None = None
    text: Tensor | None = None  # [B, N, D], features of the prompts, zero beyond each
    condition: Tensor | None = None  # [B, 4 + C, L, H/8, W/8], cached: mask, latents not normalised
    tiers: list[str | None] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    number: int = 0  # which of its step's, over all ranks: noise is drawn from (seed, step, number)
    repeat: bool = False  # in validation: only so that every rank has as many; not to be counted

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def tokens(self) -> int:
        return len(self) * self.bucket.tokens

    def to(self, device: torch.device | str) -> "Batch":
        """The same with its tensors on a device."""
        return self._moved(lambda one: one.to(device, non_blocking=True))

    def pin_memory(self, device: Any = None) -> "Batch":
        """The same in memory that a GPU copies from on its own; PyTorch's loader calls it."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: getattr(self, name) for name in TENSORS}
        return replace(self, **{n: move(one) for n, one in tensors.items() if one is not None})


@dataclass
class Step:
    """One rank's batches of a step."""

    number: int  # from 0
    batches: list[Batch]
    tokens: int  # of the whole step, over all ranks
    samples: int
    state: dict[str, Any]  # of the data, once this step is taken
    broken: list[str] = field(default_factory=list)  # keys that could not be read, and why
    lost: int = 0  # samples for which no other could stand in: the run stops

    def to(self, device: torch.device | str) -> "Step":
        return replace(self, batches=[one.to(device) for one in self.batches])

    def pin_memory(self, device: Any = None) -> "Step":
        return replace(self, batches=[one.pin_memory() for one in self.batches])


def pixels(video: Tensor) -> Tensor:
    """uint8 → float32 in −1 … 1, as networks take them."""
    return video.float() / 127.5 - 1
