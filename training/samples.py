"""What the network makes of the same things again and again, to look at.

    samples/step=00005000/1-a-red-circle-moves-left.mp4, …, samples.json       and in TensorBoard

A DiT samples fixed prompts from fixed seeds, an image-to-video model from the first frames of
held-out clips too; a VAE takes held-out clips through and back, and its pictures stand beside them.
The weights are the EMA's. Length and size are those of the longest and largest held-out clips that
training has come to or, where prompts are fixed and nothing is held out, of the largest bucket.

A signal to stop ends it between two steps of the sampler, since clusters don't wait for videos to
be finished; the run that goes on makes those that are left.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
from recipes.training import Buckets
from training.batch import Batch, Bucket
from training.board import Board
from training.buckets import buckets, phases
from training.checkpoints import is_validated
from training.movie import beside, frames, write
from training.parts import Parts
from training.snapshot import agreed

TITLE = 60  # characters of a prompt that name a file and a picture
SIDE_BY_SIDE = "left: clip, right: reconstruction"


@dataclass
class Clip:
    """A held-out clip: what samples start from."""

    key: str
    prompt: str
    video: Tensor | None  # uint8 [3, T, H, W] on the CPU; None where nothing is told but the prompt


class Stopping(Exception):
    """A signal has come amid the samples."""


class Samples(Callback):
    """Samples every `validate.sample_every` steps and after the last; stands before the callback
    that saves, and then stops where a signal asks for it.

    Args:
        board: TensorBoard.
        folder: samples/ of the run.
        parts: what a DiT is trained with; None for a VAE.
        trained_on: how the run's checkpoints are sampled: shift, negative prompt, frame rate.
        asked: the signal that asks this process to stop; 0: none has.
    """

    def __init__(
        self,
        board: Board,
        folder: Path,
        parts: Parts | None = None,
        trained_on: Defaults | None = None,
        asked: Callable[[], int] = int,
    ) -> None:
        self.board, self.folder = board, folder
        self.parts, self.trained_on = parts, trained_on
        self.asked = asked
        self.bucket: Bucket | None = None  # of the clips
        self.clips: list[Clip] = []
        self.due = False
        self.rows: list[dict[str, Any]] = []  # of samples.json: those that are made of what is due

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
        if bucket.frames > longest(module.config.buckets, module.step):
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

    def is_fixed(self, module: LightningModule) -> bool:
        """Whether samples want nothing of held-out clips."""
        prompts = module.config.validate.prompts
        return module.kind == "dit" and bool(prompts) and not is_conditioned(module)

    @torch.no_grad()
    def pixels(self, module: LightningModule, batch: Batch, number: int) -> Tensor | None:
        """A clip of a batch, if anything but its prompt is needed: of latents, decoded."""
        if module.kind == "dit" and not is_conditioned(module):
            return None
        if batch.video is not None:
            return batch.video[number].cpu()
        mean = batch.mean[number : number + 1].to(module.device, torch.float32)
        shown = self.parts.vae.decode(mean)[0]
        return torch.from_numpy(frames(shown)).permute(3, 0, 1, 2)

    # --- when ----------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if module.kind == "dit" and module.config.validate.sample_every:
            try:
                settings = self.settings(module, Bucket(64, 64, 5))
                settings.check(self.bundle(module).card)
            except TaskError as error:
                raise UsageError(f"validate: {error}") from error

    def left(self, trainer: Trainer, module: LightningModule) -> None:
        """Makes what the last process was stopped at."""
        if self.due and module.config.validate.sample_every:
            self.show(trainer, module)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        config, step = module.config, module.step
        every = config.validate.sample_every
        if not every or (step % every and step != config.optimizer.steps):
            return
        self.due = True
        if not is_validated(trainer):  # else the validation that follows brings the clips
            self.show(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.due:
            self.show(trainer, module)

    def show(self, trainer: Trainer, module: LightningModule) -> None:
        """Samples, writes the files, and shows them."""
        self.provide(trainer, module)
        network = module.averaged
        was_training = network.training
        network.eval()
        try:
            if self.bucket:
                self.make(trainer, module)
            self.due, self.rows = False, []
        except Stopping:
            pass  # the callback that saves does the rest
        finally:
            network.train(was_training)

    def provide(self, trainer: Trainer, module: LightningModule) -> None:
        """Clips, or at least a size, where no validation has brought any."""
        if not self.clips:  # just resumed, or never validated
            for batch in trainer.datamodule.val_dataloader():
                self.keep(module, batch)
        if trainer.world_size > 1:  # ranks have other clips each, but one network together
            shared = [(self.bucket, self.clips)]
            dist.broadcast_object_list(shared, src=0)
            self.bucket, self.clips = shared[0]
        if not self.clips and self.is_fixed(module):
            self.bucket = largest(module.config.buckets, module.step)

    def make(self, trainer: Trainer, module: LightningModule) -> None:
        """What is due and not made yet."""
        made = self.reconstructed if module.kind == "vae" else self.sampled
        fps = self.trained_on.fps if self.trained_on else module.config.buckets.fps
        folder = self.folder / f"step={module.step:08d}"
        for title, video, about in made(trainer, module):
            number = len(self.rows) + 1
            name = f"{number}-{plain(title)}" if title else str(number)
            if trainer.is_global_zero:
                name = write(folder / name, video, fps).name
                self.board.movie(self.tag(number, title), video, fps, module.step)
            self.rows.append({"file": name} | about)
        if trainer.is_global_zero:
            told = {"step": module.step, "samples": self.rows}
            text = json.dumps(told, indent=1, ensure_ascii=False)
            (folder / "samples.json").write_text(text + "\n", "utf-8")

    def go_on(self, module: LightningModule, *_: Any) -> None:
        """Raises Stopping if any rank was asked to stop; all of them call it together."""
        if agreed(module, float(self.asked()))[0]:
            raise Stopping

    def state_dict(self) -> dict[str, Any]:
        return {"due": self.due, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.due, self.rows = state["due"], state["rows"]

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
        for clip in self.clips[len(self.rows) :]:
            self.go_on(module)
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
        going = partial(self.go_on, module)
        for number in range(len(self.rows), len(prompts)):
            going()
            prompt = prompts[number]
            clip = self.clips[number % len(self.clips)] if self.clips else None
            start = given(settings, clip.video) if clip else None
            with trainer.precision_plugin.val_step_context():
                latents = sample(bundle, [prompt], [number], settings, start, callback=going)
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


def longest(config: Buckets, step: int) -> int:
    """Frames of the longest clips that training sees at a step."""
    return [frames for start, frames in phases(config) if start <= step][-1]


def largest(config: Buckets, step: int) -> Bucket:
    """The largest bucket that training has come to at a step."""
    most = longest(config, step)
    return max(
        (one for one in buckets(config) if one.frames <= most), key=lambda one: (one.tokens, one)
    )


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
