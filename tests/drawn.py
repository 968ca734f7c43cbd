"""Weights drawn at random for equality tests: every one counts, zero-initialised ones too."""

import torch
from torch import nn


@torch.no_grad()
def draw(module: nn.Module, seed: int = 0) -> nn.Module:
    """Re-draws all parameters, so that nothing is equal because it is zero.

    Matrices and kernels keep the scale of what passes; gains lie around one; the rest around zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if name.endswith("gamma") or (weight.ndim == 1 and "norm" in name and "weight" in name):
            weight.uniform_(0.5, 1.5, generator=generator)
        elif weight.ndim > 1:
            weight.normal_(std=weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.normal_(std=0.1, generator=generator)
    return module.eval()
