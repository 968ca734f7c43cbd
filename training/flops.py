"""How many floating-point operations a sample costs: matrix products, attention and convolutions.

    done = step_flops(network, step.batches)          # of one rank's step: forward and backward

A product of m × k by k × n is 2·m·k·n. What checkpointing and attention kernels compute again is
not counted: these are the operations that a model FLOP utilisation speaks of (PaLM, arXiv
2204.02311, appendix B). A DiT's are a closed form; a VAE's are counted by PyTorch's FlopCounterMode
on the meta device, where nothing is computed.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.dit import WanDiT
from model.vae import WanVAE
from recipes.training import VaeLoss
from training.batch import Batch, Bucket
from training.features import given
from training.footprint import IMAGE_TOKENS, judged, judges_of


@dataclass(frozen=True)
class Flops:
    """Of one sample."""

    forward: int
    backward: int
    attention: int = 0  # of the forward pass
    blocks: int = 0  # of the forward pass: all that can be computed again

    @property
    def step(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward

    def again(self, mode: str) -> int:
        """What a way of recomputing (model.recompute) adds where all blocks do."""
        if mode == "full":
            return self.blocks
        return self.blocks - self.attention if mode == "attention" else 0


def step_flops(network: nn.Module, batches: Iterable[Batch], context: int = 1) -> float:
    """Operations of some batches, forward and backward, of a WanDiT or a WanVAE.

    Args:
        batches: with their text, where the DiT was given less of it than it takes.
        context: processes that share each sequence; the share of one of them is told.
    """
    sizes, total = network.config, 0.0
    for batch in batches:
        if isinstance(network, WanDiT):
            length = sizes["text_length"]
            text = length if batch.text is None else given(batch.text.shape[1], length)
            total += len(batch) * of_dit(sizes, batch.bucket, text).step
        else:
            total += len(batch) * of_vae(sizes, batch.bucket).step
    return total / context


def of_dit(sizes: dict[str, Any], bucket: Bucket, text: int | None = None) -> Flops:
    """Of one sample of a DiT: all of WanDiT's keywords, a bucket, and the tokens of text that it is
    given, by default all that it takes.

    The report (section 4.3) gives a layer α·s·h² + 4·s²·h; that the keys and values of text and
    image are few, and the first and last layers, make the difference.
    """
    width, patch = sizes["width"], 4 * sizes["in_channels"]
    video, text = bucket.tokens, text or sizes["text_length"]
    image = sizes["image_width"] and (sizes["image_positions"] or IMAGE_TOKENS)

    first = 2 * video * patch * width  # their inputs need no gradient
    first += 2 * text * sizes["text_width"] * width + 2 * sizes["time_width"] * width
    ends = 2 * text * width**2 + 2 * 7 * width**2 + 2 * video * width * 4 * sizes["out_channels"]
    if image:
        ends += 2 * image * sizes["image_width"] * (sizes["image_width"] + width)

    other = text + (image or 0)
    products = 2 * width**2 * (6 * video + 2 * other) + 4 * video * width * sizes["ffn_width"]
    attention = 4 * video * width * (video + other)

    layers = sizes["num_layers"]
    blocks = layers * (products + attention)
    forward = first + ends + blocks
    return Flops(forward, 2 * forward - first, layers * attention, blocks)


def of_vae(sizes: dict[str, Any], bucket: Bucket) -> Flops:
    """Of one clip that a VAE encodes and decodes: WanVAE's keywords, and a bucket."""
    return _vae(json.dumps(sizes), bucket, True)


def of_encoding(sizes: dict[str, Any], bucket: Bucket) -> int:
    """Of one clip that a frozen VAE encodes."""
    return _vae(json.dumps(sizes), bucket, False).forward


@lru_cache(maxsize=512)
def _vae(sizes: str, bucket: Bucket, trained: bool) -> Flops:
    with torch.device("meta"):
        network = WanVAE(**json.loads(sizes)).requires_grad_(trained)
        video = torch.empty(1, 3, bucket.frames, bucket.height, bucket.width)

        def loss() -> Tensor:
            latents = network.encode(video).mean
            return network.decode(latents).mean() if trained else latents.mean()

        return counted(loss)


def of_judging(loss: VaeLoss, bucket: Bucket) -> int:
    """Of one clip, forward and backward of what judges a VAE: perceptual network and adversary."""
    return _judging(json.dumps(asdict(loss)), bucket)


@lru_cache(maxsize=512)
def _judging(written: str, bucket: Bucket) -> int:
    weights = VaeLoss(**json.loads(written))
    with torch.device("meta"):
        judges = judges_of(weights)
        video = torch.empty(1, 3, bucket.frames, bucket.height, bucket.width)
        leaf = torch.empty_like(video, requires_grad=True)

        def loss() -> Tensor:
            rebuilt = 1 * leaf  # PyTorch's counter takes no slope at a leaf
            nothing = rebuilt.flatten(1).mean(1)
            return judged(weights, judges, video, rebuilt, nothing, rebuilt).mean()

        return counted(loss).step


def counted(loss: Callable[[], Tensor]) -> Flops:
    """Runs a loss forward and, where it can be, backward, under PyTorch's counter."""
    with FlopCounterMode(display=False) as counter:
        value = loss()
        forward = counter.get_total_flops()
        if value.requires_grad:
            value.backward()
    backward = counter.get_total_flops() - forward
    return Flops(forward, backward, blocks=forward)
