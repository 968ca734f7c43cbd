"""What updates the weights: AdamW, as the report has it, or Muon for small budgets.

Muon (Jordan et al., 2024) makes every update of a matrix about equally long in all directions. Not
the report's: a VAE of width 16 is 3 dB ahead of AdamW's after 600 small steps
(`recipes/tiny-vae-image.yaml`).
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from recipes.keys import UsageError
from recipes.training import Optimizer

COLORS = 3  # kernels from or to pixels are no matrices between features


def optimizers(network: nn.Module, config: Optimizer) -> list[torch.optim.Optimizer]:
    """One or two optimisers over everything in a network that is trained.

    Raises:
        UsageError: Muon over sharded weights: it needs whole matrices.
    """
    trained = [one for one in network.parameters() if one.requires_grad]
    found: list[torch.optim.Optimizer] = []
    if config.kind == "muon":
        if any(isinstance(one, DTensor) for one in trained):
            raise UsageError("optimizer.kind=muon: works on one process; take adamw for several")
        whole = [one for one in trained if one.ndim > 1 and min(one.shape[:2]) > COLORS]
        found.append(Muon(whole, config.lr, config.weight_decay))
        taken = {id(one) for one in whole}
        trained = [one for one in trained if id(one) not in taken]
    groups = [
        # matrices and kernels, then gains and biases
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, config.lr, tuple(config.betas), config.eps)
    return [adamw, *found]


class Muon(torch.optim.Muon):
    """PyTorch's Muon, for kernels too: [out, in, …] is the matrix [out, in · …].

    An update is as long as AdamW's usually are, so both take the same learning rate.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        self._weights = weights
        # the same memory seen as matrices
        matrices = [nn.Parameter(one.detach().flatten(1)) for one in weights]
        super().__init__(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self, closure=None) -> None:
        matrices = self.param_groups[0]["params"]
        for weight, matrix in zip(self._weights, matrices, strict=True):
            if matrix.data_ptr() != weight.data_ptr():
                raise RuntimeError("the weights have moved since the optimiser was made")
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self._weights:
            weight.grad = None
