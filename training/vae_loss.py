"""What the VAE learns by: reconstruction, divergence, and an adversary; one value a sample, [B].

Wan report (arXiv 2503.20314) section 3.1: L1 × 3, KL × 3e-6, LPIPS × 3, and in the last stage an
adversarial loss from a 3-D discriminator. It doesn't say over what its terms are averaged, and the
weights mean nothing without that. Ours:

L1      mean over all values of a clip.
KL      nats a latent position (summed over channels, averaged over positions) × 512: what the sum
        over a clip is at the report's own size, 5 frames of 128 × 128. The plain sum is what
        latent diffusion's code takes (arXiv 2112.10752, appendix G); it grows with the clip, while
        the mean L1 does not, so that the balance of the two would change with every bucket. The
        mean over every value would make 3e-6 as good as nothing: 8192 times less.

With the public weights' statistics (means of variance 1 to 10, as good as no noise) a latent costs
some 5 nats, so the KL term is near 0.1, as are L1 and LPIPS at 30 to 36 dB.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.vae import Posterior

POSITIONS = 2 * 16 * 16  # of the latents of 5 frames of 128 × 128
STEADY = 1e-6  # VQGAN's delta
MOST = 1e4  # of an adaptive weight, as in VQGAN's code


def l1(video: Tensor, rebuilt: Tensor) -> Tensor:
    """Mean absolute error in −1 … 1, float32: [B, 3, T, H, W] twice → [B]."""
    return (video - rebuilt.float()).abs().flatten(1).mean(1)


def l2(video: Tensor, rebuilt: Tensor) -> Tensor:
    """Mean squared error in −1 … 1, float32: [B, 3, T, H, W] twice → [B].

    Not in the report. Its slope grows with the error, which helps a VAE at its beginning.
    """
    return (video - rebuilt.float()).square().flatten(1).mean(1)


def kl(posterior: Posterior) -> Tensor:
    """Divergence from the standard normal, in nats of a clip of 5 × 128 × 128: [B]."""
    positions = posterior.mean[0, 0].numel()
    return posterior.kl() * (POSITIONS / positions)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator lowers: real judged above 1 and fake below −1 cost nothing.

    Lim and Ye, arXiv 1705.02894; halved as in VQGAN. Logits [B, …] twice → [B].
    """
    real, fake = real.float().flatten(1), fake.float().flatten(1)
    return (F.relu(1 - real).mean(1) + F.relu(1 + fake).mean(1)) / 2


def hinge_generator(fake: Tensor) -> Tensor:
    """What the generator lowers: [B, …] → [B], of any sign."""
    return -fake.float().flatten(1).mean(1)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """|∇ reconstruction| / |∇ adversarial| at the decoder's last layer.

    VQGAN, Esser et al., arXiv 2012.09841, equation 7: scaled so, both pull equally hard, however
    confident the discriminator is.

    Args:
        reconstruction, adversarial: losses, scalars; their graphs stay.
        last: weight of the last layer.
    """
    lengths = []
    for loss in (reconstruction, adversarial):
        (slope,) = torch.autograd.grad(loss, last, retain_graph=True)
        lengths.append(torch.linalg.vector_norm(slope.float()))
    return (lengths[0] / (lengths[1] + STEADY)).clamp(max=MOST)
