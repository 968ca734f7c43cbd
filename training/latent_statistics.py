"""Mean and standard deviation of a VAE's latents, a channel: what the DiT's latents are scaled by.

A DiT learns on (latents − mean) / std, so that its noise of deviation one and its data are of one
size. The public VAE has its own in its configuration (`model.vae.LATENT_MEAN`); a VAE trained here
gets them from the clips it is validated on, under the weights that are validated.
"""

import torch
from torch import Tensor

from model.vae import Posterior, WanVAE

LEAST = 1e-3  # a deviation below this would blow up a channel that says nothing


class LatentStatistics:
    """Gathers over posteriors.

    The deviation is that of samples: the variance of the means plus the mean of the variances. So a
    channel that holds nothing (mean 0, variance 1) keeps its size, and isn't blown up.

    Attributes:
        sums: [3, C] in float64: how many latents, their sum, their sum of squares. Those of
            several ranks, or of several sets of clips, add up.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, posterior: Posterior) -> None:
        """Takes a batch's; every latent weighs the same."""
        mean, logvar = posterior.mean.double(), posterior.logvar.double()
        squares = mean.square() + logvar.exp()
        count = torch.full_like(mean[0, :, 0, 0, 0], mean[:, 0].numel())
        found = torch.stack([count, *(one.sum((0, 2, 3, 4)) for one in (mean, squares))])
        self.sums = found if self.sums is None else self.sums + found

    @property
    def mean(self) -> list[float]:
        return (self.sums[1] / self.sums[0]).tolist()

    @property
    def std(self) -> list[float]:
        count, total, squares = self.sums
        variance = squares / count - (total / count).square()
        return variance.clamp_min(LEAST**2).sqrt().tolist()


def describe(vae: WanVAE, mean: list[float], std: list[float]) -> None:
    """Gives a VAE its statistics: in its configuration, which is saved, and for `normalize`."""
    for name, values in (("latent_mean", mean), ("latent_std", std)):
        vae.config[name] = list(values)
        getattr(vae, name).copy_(torch.tensor(values).view(1, -1, 1, 1, 1))
