"""What the network makes of the same things again and again, to look at.

    samples/step=00005000/1-a-red-circle-moves-left.mp4, …, samples.json       and in TensorBoard

A DiT samples fixed prompts from fixed seeds, an image-to-video model from the first frames of
held-out clips too; a VAE takes held-out clips through and back, and its pictures stand beside them.
The weights are the EMA's. Length and size are those of the longest and largest held-out clips that
training has come to.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from model.bundle import Bundle, Card
from model.defaults import Defaults
from model.layout import Layout
from model.sampler import Inputs, Settings, TaskError, decode, sample, tasks
from model.vae import WanVAE
from recipes.load import UsageError
from training.batch import Batch, Bucket
from training.board import Board
from training.movie import beside, frames, write
from training.parts import Parts

TITLE = 60  # characters of a prompt that name a file and a picture
SIDE_BY_SIDE = "left: clip, right: reconstruction"


@dataclass
class Clip:
    """A held-out clip: what samples start from."""

    key: str
    prompt: str
    video: Tensor | None  # uint8 [3, T, H, W] on the CPU; None where nothing is told but the prompt


class Samples(Callback):
    """Samples every `validate.sample_every` steps and after the last.

    Args:
        board: TensorBoard.
        folder: samples/ of the run.
        parts: what a DiT is trained with; None for a VAE.
        trained_on: how the run's checkpoints are sampled: shift, negative prompt, frame rate.
    """

    def __init__(
        self,
        board: Board,
        folder: Path,
        parts: Parts | None = None,
        trained_on: Defaults | None = None,
    ) -> None:
        self.board, self.folder = board, folder
        self.parts, self.trained_on = parts, trained_on
        self.bucket: Bucket | None = None  # of the clips
        self.clips: list[Clip] = []
        self.due = False

    # --- held-out clips ------------------------------------------------------------------------

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Batch,
        index: int,
        loader: int = 0,
    ) -> None:
        if module.config.validate.sample_every:
            self.keep(module, batch)

    def keep(self, module: LightningModule, batch: Batch) -> None:
        """The first few clips of the largest bucket that training has come to."""
        wanted, bucket = self.count(module), batch.bucket
        if bucket.frames > longest(module.config.buckets.growth, module.step):
            return
        if bucket.is_image and module.kind == "dit" and is_conditioned(module):
            return  # the given frame would be all
        if self.bucket is None or (bucket.tokens, bucket) > (self.bucket.tokens, self.bucket):
            self.bucket, self.clips = bucket, []
        if bucket != self.bucket:
            return
        known = {clip.key for clip in self.clips}  # every validation brings the same
        for number, key in enumerate(batch.keys):
            if len(self.clips) < wanted and key not in known:
                video = self.pixels(module, batch, number)
                self.clips.append(Clip(key, batch.prompts[number], video))

    def count(self, module: LightningModule) -> int:
        prompts = module.config.validate.prompts if module.kind == "dit" else []
        return len(prompts) or module.config.validate.samples

    @torch.no_grad()
    def pixels(self, module: LightningModule, batch: Batch, number: int) -> Tensor | None:
        """A clip of a batch, if anything but its prompt is needed: of latents, decoded."""
        if module.kind == "dit" and not is_conditioned(module):
            return None
        if batch.video is not None:
            return batch.video[number].cpu()
        shown = self.parts.vae.decode(batch.mean[number : number + 1].float())[0]
        return torch.from_numpy(frames(shown)).permute(3, 0, 1, 2)

    # --- when ----------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if module.kind == "dit" and module.config.validate.sample_every:
            try:
                settings = self.settings(module, Bucket(64, 64, 5))
                settings.check(self.bundle(module).card)
            except TaskError as error:
                raise UsageError(f"validate: {error}") from error

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        config, step = module.config, module.step
        every = config.validate.sample_every
        if not every or (step % every and step != config.optimizer.steps):
            return
        self.due = True
        if step % config.validate.every:  # else the validation that follows brings the clips
            self.show(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.due:
            self.show(trainer, module)

    def show(self, trainer: Trainer, module: LightningModule) -> None:
        """Samples, writes the files, and shows them."""
        self.due = False
        if not self.clips:  # just resumed
            for batch in trainer.datamodule.val_dataloader():
                self.keep(module, batch)
        if trainer.world_size > 1:  # ranks have other clips each, but one network together
            shared = [(self.bucket, self.clips)]
            dist.broadcast_object_list(shared, src=0)
            self.bucket, self.clips = shared[0]
        if not self.clips:
            return
        network = module.averaged
        was_training = network.training
        network.eval()
        made = self.reconstructed if module.kind == "vae" else self.sampled
        rows = []
        fps = self.trained_on.fps if self.trained_on else module.config.buckets.fps
        folder = self.folder / f"step={module.step:08d}"
        for number, (title, video, about) in enumerate(made(trainer, module), 1):
            if trainer.is_global_zero:
                name = f"{number}-{plain(title)}" if title else str(number)
                file = write(folder / name, video, fps)
                rows.append({"file": file.name} | about)
                self.board.movie(self.tag(number, title), video, fps, module.step)
        network.train(was_training)
        if trainer.is_global_zero:
            text = json.dumps({"step": module.step, "samples": rows}, indent=1, ensure_ascii=False)
            (folder / "samples.json").write_text(text + "\n", "utf-8")

    @staticmethod
    def tag(number: int, title: str) -> str:
        if not title:
            return f"{SIDE_BY_SIDE}/{number}"
        cut = title if len(title) <= TITLE else f"{title[:TITLE]}…"
        return f"samples/{number} {cut.replace('/', ' ')}"

    # --- what ----------------------------------------------------------------------------------

    def reconstructed(
        self, trainer: Trainer, module: LightningModule
    ) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
        vae: WanVAE = module.averaged
        for clip in self.clips:
            video = clip.video[None].to(module.device).float() / 127.5 - 1
            with trainer.precision_plugin.val_step_context(), torch.no_grad():
                means = [one.mean for one in vae.encode_stream([video])]
                again = torch.cat(list(vae.decode_stream(means)), dim=2)
            original = clip.video.permute(1, 2, 3, 0).numpy()
            yield "", beside(original, frames(again[0])), {"shows": SIDE_BY_SIDE}

    def sampled(
        self, trainer: Trainer, module: LightningModule
    ) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
        bundle, settings = self.bundle(module), self.settings(module, self.bucket)
        prompts = module.config.validate.prompts or [clip.prompt for clip in self.clips]
        for number, prompt in enumerate(prompts):
            clip = self.clips[number % len(self.clips)]
            with trainer.precision_plugin.val_step_context():
                latents = sample(bundle, [prompt], [number], settings, given(settings, clip.video))
            video = torch.cat(list(decode(bundle, latents)), dim=2)[0]
            about = {
                "prompt": prompt,
                "seed": number,
                "steps": settings.steps,
                "guidance": settings.guidance,
                "shift": settings.shift,
                "solver": settings.solver,
            }
            yield prompt, frames(video), about

    def bundle(self, module: LightningModule) -> Bundle:
        """As the sampler takes it: the EMA weights among the parts they are trained with."""
        parts, network = self.parts, module.averaged
        place = Path(self.folder)
        layout = Layout("run", str(place.parent), *[place.parent] * 4)
        card = Card(layout, network.config, parts.vae.compression, self.trained_on)
        return Bundle(network, parts.vae, parts.text, parts.image, card, module.device)

    def settings(self, module: LightningModule, bucket: Bucket) -> Settings:
        card, validate = self.bundle(module).card, module.config.validate
        task = tasks(card)[0]
        if task == "text-to-video" and bucket.is_image:
            task = "text-to-image"
        return Settings(
            width=bucket.width,
            height=bucket.height,
            frames=bucket.frames,
            steps=validate.steps,
            guidance=validate.guidance,
            shift=self.trained_on.shift,
            negative=self.trained_on.negative,
            solver=self.trained_on.solver,
            task=task,
        )


def longest(growth: dict[str, int], step: int) -> float:
    """Frames of the longest clips that training sees at a step."""
    limits = [frames for start, frames in sorted(growth.items(), key=first) if int(start) <= step]
    return limits[-1] if limits else math.inf


def first(entry: tuple[str, int]) -> int:
    return int(entry[0])


def is_conditioned(module: LightningModule) -> bool:
    """Whether the DiT is told frames: image-to-video."""
    config = module.network.config
    return config["in_channels"] > config["out_channels"]


def given(settings: Settings, video: Tensor | None) -> Inputs | None:
    """The frames of a clip that the task starts from, in −1..1."""
    if video is None:
        return None
    ends = video[None].float() / 127.5 - 1
    last = ends[:, :, -1] if settings.task == "first-last-frame" else None
    return Inputs(image=ends[:, :, 0], last_image=last)


def plain(text: str) -> str:
    """A prompt as part of a file's name."""
    return re.sub(r"\W+", "-", text)[:TITLE].strip("-") or "sample"
