"""Activation checkpointing: what backward computes again instead of keeping (Chen et al. 2016).

A block's activations cost memory that grows with the tokens; attention's output is small and, in a
long video, most of the arithmetic. So there are four measures:

    none        everything is kept
    selective   products of matrices and attention are kept; norms, GELU, rotation run again
    attention   only attention's outputs are kept
    full        only a block's input is kept
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

MODES = ("none", "selective", "attention", "full")
PRODUCTS = ("aten.mm.", "aten.addmm.", "aten.bmm.", "aten._scaled_mm.")
ATTENTION = ("aten._scaled_dot_product_", "flash_attn")


class Recompute:
    """Which blocks run under checkpointing, and how.

    mode: one of `MODES`. blocks: how many of the model's blocks, the first ones; None for all.
    """

    def __init__(self, mode: str = "none", blocks: int | None = None) -> None:
        if mode not in MODES:
            raise ValueError(f"recompute mode {mode!r} is none of {', '.join(MODES)}")
        if blocks is not None and blocks < 0:
            raise ValueError(f"recompute of {blocks} blocks: give 0 or more, or None for all")
        self.mode = mode
        self.blocks = blocks

    def __call__(self, index: int, block: Callable[..., Tensor], *inputs) -> Tensor:
        """block(*inputs), the block being the model's index-th."""
        here = self.blocks is None or index < self.blocks
        if self.mode == "none" or not here or not torch.is_grad_enabled():
            return block(*inputs)
        options = {}
        if self.mode in KEPT:
            options["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT[self.mode])
        # nothing in a block draws random numbers, so their state need not be saved
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, **options)


def _keep_attention(_, op, *args, **kwargs) -> CheckpointPolicy:
    return _policy(str(op).startswith(ATTENTION))


def _keep_products(_, op, *args, **kwargs) -> CheckpointPolicy:
    return _policy(str(op).startswith(PRODUCTS + ATTENTION))


def _policy(keep: bool) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


KEPT = {"selective": _keep_products, "attention": _keep_attention}
