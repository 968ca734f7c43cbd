"""Trains the Wan-VAE: L1, divergence and perceptual distance, then an adversary too.

Wan report (arXiv 2503.20314) section 3.1, in three stages: images with `taps=1`; short small video
from the inflated image VAE; longer and larger video with `loss.gan` above 0. What each term is, and
in which units, stands in `training.vae_loss`.

Validation rebuilds held-out clips from the posterior's mean with the averaged weights: PSNR, SSIM,
the terms of the loss, and `loss`, their weighted sum without the adversary.
"""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch import Tensor

from model.distance import psnr, psnr_frames, ssim
from model.vae import Posterior, WanVAE
from recipes.training import Fit
from training.batch import Batch, Step, pixels
from training.discriminator import Adversary
from training.latent_statistics import LatentStatistics, describe
from training.module import Losses, Trained
from training.perceptual import Perceptual
from training.vae_loss import adaptive_weight, kl, l1, l2

HIGHEST = 100.0  # dB, of a clip rebuilt exactly: infinite, and so would be the mean of all clips


class VAEModule(Trained):
    """Trains a WanVAE.

    Args:
        network: drawn at random, or what the recipe starts from.

    Raises:
        UsageError: the perceptual distance has no weights.
    """

    kind = "vae"

    def __init__(self, network: WanVAE, config: Fit) -> None:
        super().__init__(network, config)
        loss = config.loss
        # neither is a submodule: they are not what is trained, averaged, and sharded
        self.perceptual = None
        if loss.perceptual:
            self.perceptual = Perceptual(loss.backbone, loss.perceptual_frames)
        self.adversary = Adversary(loss, config.seed) if loss.gan else None
        network.checkpoint_activations(config.compute.recompute != "none")
        self._tokens = 1  # of the step that is under way, over all ranks

    @property
    def weights(self) -> dict[str, float]:
        loss = self.config.loss
        return {"l1": loss.l1, "l2": loss.l2, "kl": loss.kl, "perceptual": loss.perceptual}

    # --- the loss --------------------------------------------------------------------------------

    def training_step(self, step: Step, index: int) -> None:
        self._tokens = step.tokens
        if self.adversary:
            self.adversary.forget()  # what a skipped step has left
        super().training_step(step, index)

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        video = pixels(batch.video)
        posterior = wide(self.network.encode(video))
        rebuilt = self.network.decode(posterior.sample(generator), clamp=False)
        terms = self.terms(video, rebuilt, posterior, generator)
        total = sum(self.weights[name] * each for name, each in terms.items())
        parts = {name: each.mean() for name, each in terms.items()}
        if self.adversary and self.step >= self.config.loss.gan_start:
            against, found = self.opposed(batch, video, rebuilt, total)
            # only its slope: its value says who is ahead, not how good the VAE is, and would make
            # the loss leap where it sets in
            total = total + (against - against.detach())
            parts |= found
        return Losses(total, parts)

    def terms(
        self, video: Tensor, rebuilt: Tensor, posterior: Posterior, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """What is weighed and added up, [B] each."""
        found = {"l1": l1(video, rebuilt), "kl": kl(posterior)}
        if self.config.loss.l2:
            found["l2"] = l2(video, rebuilt)
        if self.perceptual:
            found["perceptual"] = self.perceptual(video, rebuilt, generator)
        return found

    def opposed(
        self, batch: Batch, video: Tensor, rebuilt: Tensor, total: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighed adversarial loss, [B]; the discriminator learns from the same clips."""
        fooled = self.adversary.fooled(rebuilt)
        weight = torch.tensor(self.config.loss.gan, device=fooled.device)
        if self.config.loss.gan_adaptive:
            last = self.network.decoder.head[-1].weight
            weight = weight * adaptive_weight(total.mean(), fooled.mean(), last)
        found = self.adversary.learn(video, rebuilt, batch.tokens / self._tokens)
        return weight * fooled, found | {"adversarial": fooled.mean(), "gan_weight": weight}

    def stepped(self) -> None:
        if self.adversary and self.step >= self.config.loss.gan_start:
            self.adversary.step()

    # --- validation ------------------------------------------------------------------------------

    def measure(self, batch: Batch, index: int) -> dict[str, Tensor]:
        video = pixels(batch.video)
        posterior = wide(self.averaged.encode(video))
        self._statistics.add(posterior)
        rebuilt = self.averaged.decode(posterior.mean).float()
        terms = self.terms(video, rebuilt, posterior, self.generator(-1, batch.number))
        loss = sum(self.weights[name] * each for name, each in terms.items())
        if self.perceptual:
            terms[self.perceptual.name] = terms.pop("perceptual")
        decibels = psnr(video, rebuilt).clamp(max=HIGHEST)
        found = terms | {
            "loss": loss,
            f"bucket/{batch.bucket.name}": loss,
            "psnr": decibels,
            f"psnr/{batch.bucket.name}": decibels,
            "ssim": ssim(video, rebuilt),
        }
        if not batch.bucket.is_image:  # frame 0 has no past: it is coded apart from the others
            each = psnr_frames(video, rebuilt).clamp(max=HIGHEST)
            found |= {"psnr/frame 0": each[:, 0], "psnr/later frames": each[:, 1:].mean(1)}
        return found

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._statistics = LatentStatistics()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.describe_latents()

    def describe_latents(self) -> None:
        """Gives the networks the statistics of the latents seen in this validation."""
        sums = self._statistics.sums
        if self.trainer.world_size > 1:
            ranks: list[Any] = [None] * self.trainer.world_size
            dist.all_gather_object(ranks, None if sums is None else sums.cpu())
            ranks = [one for one in ranks if one is not None]
            self._statistics.sums = sum(ranks) if ranks else None
        if self._statistics.sums is not None:
            for network in {self.network, self.averaged}:
                describe(network, self._statistics.mean, self._statistics.std)

    @torch.no_grad()
    def finish(self, data: LightningDataModule) -> None:
        """Describes the latents where no validation has: a run shorter than `validate.every`."""
        if self.validation:
            return
        self._statistics = LatentStatistics()
        device = self.trainer.strategy.root_device
        network = self.averaged.to(device)
        for batch in data.val_dataloader():
            if not batch.repeat:
                self._statistics.add(wide(network.encode(pixels(batch.to(device).video))))
        self.describe_latents()

    # --- Lightning's hooks -----------------------------------------------------------------------

    def on_fit_start(self) -> None:
        for one in (self.perceptual, self.adversary):
            if one:
                one.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        names = ("latent_mean", "latent_std")
        checkpoint["latents"] = {name: self.network.config[name] for name in names}
        if self.adversary:
            checkpoint["adversary"] = self.adversary.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for network in {self.network, self.averaged}:
            describe(network, *checkpoint["latents"].values())
        if self.adversary:
            self.adversary.load_state_dict(checkpoint["adversary"])


def wide(posterior: Posterior) -> Posterior:
    """In float32, also where the network computes in less."""
    return Posterior(posterior.mean.float(), posterior.logvar.float())
