"""The adversary of the VAE's last stage: a 3-D patch discriminator, and how it is trained.

The report (arXiv 2503.20314, section 3.1) says only that it is 3-D. The nearest open configuration
is Open-Sora's (3-D patches, hinge, weight 0.05, rate 1e-4). PatchGAN is Isola et al., arXiv
1611.07004, section 3.2.2.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recipes.training import VaeLoss
from training.vae_loss import hinge_discriminator, hinge_generator

BETAS = (0.5, 0.9)  # VQGAN's, for both of its networks
LONGEST = 1.0  # of its gradient


class PatchDiscriminator(nn.Module):
    """Video → a logit for each patch of about 54 × 54 pixels and 25 frames; above 0: real.

    Takes images (one frame) and videos of any length, and any size of which 8 × 8 pixels are left.

    Args:
        width: channels of the first layer; 2, 4 and 8 times as many follow.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv3d(3, width, (3, 4, 4), (1, 2, 2), padding=1),
            nn.LeakyReLU(0.2),
        ]
        for i in range(3):
            # the last stage keeps the size
            kernel, stride = ((3, 4, 4), 2) if i < 2 else ((3, 3, 3), 1)
            channels = width * 2**i
            layers += [
                nn.Conv3d(channels, 2 * channels, kernel, stride, padding=1, bias=False),
                # batch norm would tie a sample's verdict to its batch, and a batch to its rank
                nn.GroupNorm(8, 2 * channels),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv3d(8 * width, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv3d):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, video: Tensor) -> Tensor:
        """[B, 3, T, H, W] → [B, 1, about T / 4, H / 8, W / 8]."""
        return self.layers(video)


class Adversary:
    """A discriminator with its own optimiser; no module of the trained one's, so not in its EMA.

    Its gradient gathers over the batches of a step (`learn`), and is used or thrown away with the
    step (`step`, `forget`).

    Args:
        config: gan_width and gan_lr count here.
        seed: of its first weights.
    """

    def __init__(self, config: VaeLoss, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = PatchDiscriminator(config.gan_width)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), config.gan_lr, BETAS, weight_decay=0.0
        )

    def to(self, device: torch.device) -> None:
        self.network.to(device)
        self.optimizer.load_state_dict(self.optimizer.state_dict())  # follows the weights

    def fooled(self, rebuilt: Tensor) -> Tensor:
        """The generator's loss, [B]; only `rebuilt` gets a gradient."""
        self.network.requires_grad_(False)
        loss = hinge_generator(self.network(rebuilt))
        self.network.requires_grad_(True)
        return loss

    def learn(self, video: Tensor, rebuilt: Tensor, share: float) -> dict[str, Tensor]:
        """Adds a batch to the gradient.

        Args:
            share: of the whole step's tokens, over all ranks.

        Returns:
            Its loss and mean logits, to be shown.
        """
        # one call for both would double the memory
        real, fake = self.network(video), self.network(rebuilt.detach())
        loss = hinge_discriminator(real, fake).mean()
        (loss * share).backward()
        return {
            "discriminator": loss.detach(),
            "logit_real": real.detach().float().mean(),
            "logit_fake": fake.detach().float().mean(),
        }

    def step(self) -> None:
        """An update by what was learned since the last one; not by a gradient that is no number."""
        weights = [one for one in self.network.parameters() if one.grad is not None]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # every rank has all weights: one without batches adds nothing
            weights = list(self.network.parameters())
            for one in weights:
                one.grad = torch.zeros_like(one) if one.grad is None else one.grad
                dist.all_reduce(one.grad)  # shares add up to one
        if weights and nn.utils.clip_grad_norm_(weights, LONGEST).isfinite():
            self.optimizer.step()
        self.forget()

    def forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
