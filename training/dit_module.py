"""Trains the DiT by flow matching (Wan report, arXiv 2503.20314, section 4.2).

Latents come cached or from the frozen VAE; prompts are dropped now and then, so that guidance has
an empty prompt to point away from. An image-to-video model learns from masks jointly (section 5.1):
which frames are given is drawn for each batch, or for each clip when it is encoded.

Validation measures the loss at fixed noise levels with fixed noise, on held-out clips: the same
question every time, so that the curve shows learning and nothing else.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from model import flow
from model.condition import MASK_CHANNELS, condition
from model.dit import WanDiT
from model.image import ImageEncoder
from model.text import TextEncoder
from model.vae import Posterior, WanVAE
from recipes.training import Fit
from training.batch import Batch, Bucket, pixels
from training.features import Features
from training.masks import draw_mask
from training.module import Losses, Trained

NAMES = ("mean", "logvar")


class DiTModule(Trained):
    """Trains a WanDiT.

    Args:
        network: the DiT; with an image branch it also wants `image`.
        vae: frozen; normalises latents, and encodes pixels where they are not cached.
        text: frozen.
        image: frozen, for a DiT with an image branch.
    """

    kind = "dit"

    def __init__(
        self,
        network: WanDiT,
        config: Fit,
        vae: WanVAE,
        text: TextEncoder,
        image: ImageEncoder | None = None,
    ) -> None:
        super().__init__(network, config)
        # not submodules: frozen parts are neither saved with every checkpoint nor sharded
        self._parts = {"vae": vae, "text": text, "image": image}
        self.features = Features(text)
        self._nothing: dict[Bucket, Tensor] = {}

    @property
    def vae(self) -> WanVAE:
        return self._parts["vae"]

    def on_fit_start(self) -> None:
        # with features cached only the empty prompt and those of the samples are left to encode:
        # for these umT5's 11 GB need not be on the GPU
        still = {"text"} if getattr(self.trainer.datamodule, "has_text", False) else set()
        for name, part in self._parts.items():
            if part is not None and name not in still:
                part.to(self.device)

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        objective = self.config.objective
        data = self.latents(batch, generator)
        shift = objective.shift or flow.training_shift(batch.bucket.tokens)
        sigma = flow.sample_sigmas(
            len(batch),
            objective.distribution,
            shift=shift,
            stratified=True,
            generator=generator,
            device=self.device,
        )
        noise = torch.randn(data.shape, generator=generator).to(data)
        dropped = torch.rand(len(batch), generator=generator) < objective.text_dropout
        given = self.given(batch, generator)
        velocity = self.network(
            flow.interpolate(data, noise, sigma),
            sigma * flow.TIMESTEPS,
            self.text(batch, dropped),
            **given,
        )
        return Losses(flow.loss(velocity, data, noise))

    def measure(self, batch: Batch, index: int) -> dict[str, Tensor]:
        levels = self.config.validate.timesteps
        generator = self.generator(-1, batch.number)
        data = self.latents(batch, generator)
        noise = torch.randn(data.shape, generator=generator).to(data)
        text = self.text(batch)
        given = self.given(batch, generator, dropout=False)
        found: dict[str, Tensor] = {}
        for level in range(levels):
            sigma = torch.full((len(batch),), (level + 0.5) / levels, device=data.device)
            velocity = self.averaged(
                flow.interpolate(data, noise, sigma), sigma * flow.TIMESTEPS, text, **given
            )
            loss = flow.loss(velocity, data, noise)
            name = f"{round(1000 * (level + 0.5) / levels):04d}"
            found[f"timestep/{name}"] = loss
            found[f"timestep/{name}/{batch.bucket.name}"] = loss
        mean = torch.stack([found[name] for name in found if name.count("/") == 1]).mean(0)
        return found | {f"bucket/{batch.bucket.name}": mean, "loss": mean}

    @torch.no_grad()
    def latents(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Normalised latents [B, C, L, H/8, W/8], float32, of what the batch holds."""
        posterior = self.posterior(batch)
        if self.config.data.posterior == "sample":
            latents = posterior.sample(generator)
        else:
            latents = posterior.mean
        return self.vae.normalize(latents.float())

    def posterior(self, batch: Batch) -> Posterior:
        if batch.mean is not None:
            return Posterior(batch.mean.float(), batch.logvar.float())
        # piece by piece, in a ninth of the memory that a whole clip of 480p takes
        # and in float32, as the official code: latents are what the network is to hit
        with torch.autocast(batch.video.device.type, enabled=False):
            parts = list(self.vae.encode_stream([pixels(batch.video)]))
        return Posterior(*(torch.cat([getattr(one, name) for one in parts], 2) for name in NAMES))

    def text(self, batch: Batch, dropped: Tensor | None = None) -> Tensor:
        """Features of the prompts [B, given, D], zero beyond each; where dropped [B], the empty
        one's. What was not cached the batch holds from now on."""
        if batch.text is None:
            batch.text = self.features(batch.prompts).to(self.device)
        features = self.features.filled(batch.text)
        if dropped is None or not dropped.any():
            return features
        empty = self.features([""]).to(features)  # no prompt has fewer tokens
        empty = pad(empty, (0, 0, 0, features.shape[1] - empty.shape[1]))
        return torch.where(dropped.to(self.device)[:, None, None], empty, features)

    @torch.no_grad()
    def given(
        self, batch: Batch, generator: torch.Generator, dropout: bool = True
    ) -> dict[str, Tensor]:
        """What an image-to-video model is told besides the prompt; nothing for text-to-video."""
        config = self.network.config
        if config["in_channels"] == config["out_channels"]:
            return {}
        told = {"condition": self.condition(batch, generator)}
        if config["image_width"]:  # whose latents are not cached
            tokens = self.images(pixels(batch.video), told["condition"])
            if dropout:
                share = self.config.objective.image_dropout
                keep = torch.rand(len(batch), generator=generator) >= share
                tokens = tokens * keep.to(tokens)[:, None, None]
            told["image"] = tokens
        return told

    def images(self, video: Tensor, condition: Tensor) -> Tensor:
        """CLIP's tokens [B, N, D] of the first frame, or [B, 2·N, D] of the first and the last.

        Zeros where the mask does not give that frame: it is what the network is to make.
        """
        encoder, first = self._parts["image"], condition[:, 0, 0, 0, 0]
        ends = [(video[:, :, 0], first)]
        if self.network.config["image_positions"]:
            ends.append((video[:, :, -1], condition[:, MASK_CHANNELS - 1, -1, 0, 0]))
        found = [(encoder.encode(frame), given) for frame, given in ends]
        return torch.cat([one * given.to(one)[:, None, None] for one, given in found], 1)

    def condition(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mask and normalised latents [B, 4 + C, L, H/8, W/8] of the frames that are given."""
        if batch.condition is not None:
            told = batch.condition.float()
            mask, latents = told[:, :MASK_CHANNELS], told[:, MASK_CHANNELS:]
            return torch.cat([mask, self.vae.normalize(latents)], 1)
        if batch.video is None and batch.bucket.is_image:
            return self.nothing(batch.bucket).expand(len(batch), -1, -1, -1, -1)
        mask = draw_mask(batch.bucket.frames, self.config.objective.masks, generator)
        return condition(self.vae, pixels(batch.video), mask)

    def nothing(self, bucket: Bucket) -> Tensor:
        """The condition of an image, which is given nothing: encoded once for all of a size."""
        if bucket not in self._nothing:
            grey = torch.zeros(1, 3, 1, bucket.height, bucket.width, device=self.device)
            self._nothing[bucket] = condition(self.vae, grey, torch.zeros(1, dtype=torch.bool))
        return self._nothing[bucket]
