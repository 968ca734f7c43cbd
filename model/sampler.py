"""Samples videos: from text, from images, from other videos. What a task is told, and its steps.

    bundle = load_bundle("random:tiny")
    settings = Settings.of(bundle.card, steps=30)
    latents = sample(bundle, ["a red circle moves left"], seeds=[0], settings=settings)
    for frames in decode(bundle, latents): ...      # [1, 3, t, H, W] in -1..1, piece by piece

The noise of a video is drawn on the CPU, in float32, from its own seed, so that it is the same one
whatever else is in the batch and on whatever device; diffusers draws the same from
`torch.Generator().manual_seed(seed)`.

B batch, T frames = 4k + 1, L latent frames = k + 1, H × W pixels, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model import flow
from model.bundle import Bundle, Card
from model.condition import condition, encode
from model.defaults import public
from model.guidance import Conditioning, Guidance
from model.solver import SOLVERS, STOCHASTIC
from model.stepcache import GuidanceCache, StepCache

GIVEN_FRAMES = 25  # of a continuation, 1.5 s at 16 fps (report, arXiv 2503.20314, section 5.1)
SPACINGS = {
    "unipc": "unipc",
    "dpmpp_2m": "dpm++",
    "dpmpp_2m_sde": "dpm++",
    "heun": "unipc",
    "euler": "euler",
}
Callback = Callable[[int, float, Tensor, Tensor], None]  # as in `model.solver`


class TaskError(ValueError):
    """One line: what was asked for that this model or these settings can't do."""


@dataclass(frozen=True)
class Task:
    """What a task is given besides the text."""

    inputs: tuple[str, ...] = ()  # of Inputs; all are needed, others are refused
    conditioned: bool = False  # told through mask and condition: image-to-video models only


TASKS = {
    "text-to-video": Task(),
    "text-to-image": Task(),
    "image-to-video": Task(("image",), True),
    "first-last-frame": Task(("image", "last_image"), True),
    "continuation": Task(("video",), True),
    "video-to-video": Task(("video",)),
}


@dataclass(frozen=True)
class Inputs:
    """What videos start from, in -1..1, of the wanted size; a batch of 1 counts for every video.

    image, last_image [B, 3, H, W]; video [B, 3, t, H, W], t the frames that are sampled
    (video-to-video) or the first ones, which are given (continuation).
    """

    image: Tensor | None = None
    last_image: Tensor | None = None
    video: Tensor | None = None


@dataclass(frozen=True)
class Settings:
    """How to sample; `Settings.of` fills in what the checkpoint was trained on.

    width and height in pixels, multiples of 16; frames of the form 4k + 1; guidance 1 leaves the
    negative prompt out; interval: the sigmas within which to guide; batched: both passes of
    guidance at once, else in turn; strength: of video-to-video, the share of the steps that are
    run, as in diffusers.
    """

    width: int
    height: int
    frames: int
    steps: int
    guidance: float
    shift: float
    negative: str
    task: str = "text-to-video"
    solver: str = "unipc"
    interval: tuple[float, float] = (0.0, 1.0)
    batched: bool = True
    strength: float = 0.8
    step_cache: StepCache | None = None
    guidance_cache: GuidanceCache | None = None

    @classmethod
    def of(cls, card: Card, **given) -> "Settings":
        """The checkpoint's defaults, and over them whatever is given and not None."""
        given = {name: value for name, value in given.items() if value is not None}
        known = card.defaults
        size = (given.get("width", known.width), given.get("height", known.height))
        shift = known.shift
        if "shift" not in card.layout.trained_on:
            shift = public(card.config, size).shift  # i2v's goes by the size
        if given.get("task") == "text-to-image":
            given = {"frames": 1} | given
        names = ("width", "height", "frames", "steps", "guidance", "negative", "solver")
        return cls(**{name: getattr(known, name) for name in names} | {"shift": shift} | given)

    def check(self, card: Card) -> None:
        """Refuses what can't be sampled.

        Raises:
            TaskError: one line that says which value, and what it may be.
        """
        allowed = tasks(card)
        if self.task not in TASKS:
            raise TaskError(f"task={self.task}: there is {', '.join(TASKS)}")
        if self.task not in allowed:
            raise TaskError(
                f"task={self.task}: {card.layout.path} is of kind {card.kind}, which does "
                f"{', '.join(allowed)}"
            )
        time, rows, columns = card.compression
        patch = card.config["patch"]
        cells = (columns * patch[2], rows * patch[1])
        size = (self.width, self.height)
        if any(n < 1 or n % cell for n, cell in zip(size, cells, strict=True)):
            near = [max(1, round(n / cell)) * cell for n, cell in zip(size, cells, strict=True)]
            raise TaskError(
                f"size={self.width}x{self.height}: width and height must be multiples of "
                f"{cells[0]}; the nearest is {near[0]}x{near[1]}"
            )
        if self.frames < 1 or self.frames % time != 1 % time:
            near = max(0, round((self.frames - 1) / time)) * time + 1
            raise TaskError(
                f"frames={self.frames}: must be {time}k+1, such as {near}: the VAE takes one "
                f"frame, then {time} at a time"
            )
        if self.steps < 1:
            raise TaskError(f"steps={self.steps}: at least one")
        if self.guidance < 1:
            raise TaskError(f"guidance={self.guidance:g}: at least 1, which is none")
        low, high = self.interval if len(self.interval) == 2 else (1, 0)
        if not 0 <= low <= high <= 1:
            raise TaskError(f"interval={list(self.interval)}: two rising sigmas between 0 and 1")
        if self.shift <= 0:
            raise TaskError(f"shift={self.shift:g}: greater than 0 (1 is none)")
        if self.solver not in SPACINGS:
            raise TaskError(f"solver={self.solver}: there is {', '.join(SPACINGS)}")
        if self.task == "video-to-video" and int(self.steps * self.strength) < 1:
            raise TaskError(
                f"strength={self.strength:g}: of {self.steps} steps leaves none; at least "
                f"{1 / self.steps:.2g}"
            )
        if self.strength > 1:
            raise TaskError(f"strength={self.strength:g}: at most 1, where nothing stays")
        if self.task == "text-to-image" and self.frames != 1:
            raise TaskError(f"task={self.task}: is one frame, not frames={self.frames}")
        if self.frames == 1 and TASKS[self.task].conditioned:
            raise TaskError(f"task={self.task}: frames=1 leaves nothing to sample")


def tasks(card: Card) -> tuple[str, ...]:
    """What a model can do.

    Without a condition it knows text only. Mask and condition make image-to-video, first-last-frame
    and continuation one task to a network; but where it has an image branch too, its weights were
    tuned on what that sees: one image, or two.
    """
    if card.kind == "t2v":
        return ("text-to-video", "text-to-image", "video-to-video")
    if card.kind == "flf2v":
        return ("first-last-frame",)
    if card.config["image_width"]:
        return ("image-to-video", "continuation")
    return ("image-to-video", "first-last-frame", "continuation")


def noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal [B, *shape], float32 on the CPU, each row from its own seed."""
    return next(noises(seeds, shape))


def noises(seeds: Sequence[int], shape: Sequence[int]) -> Iterator[Tensor]:
    """`noise`, and without end what the same seeds give next."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        yield torch.stack([torch.randn(shape, generator=one) for one in generators])


@torch.no_grad()
def sample(
    bundle: Bundle,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    inputs: Inputs | None = None,
    negatives: Sequence[str] | None = None,
    start: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Samples a batch of videos.

    Args:
        prompts, seeds: one each a video.
        inputs: as the task needs them.
        negatives: one a video; None: the settings' for all.
        start: the noise [B, C, L, H/8, W/8]; None: drawn from the seeds.
        callback: told after each step, as in `model.solver`.

    Returns:
        Normalised latents [B, C, L, H/8, W/8], float32 on the bundle's device.

    Raises:
        TaskError: the settings, or the inputs, don't fit the model or the task.
    """
    settings.check(bundle.card)
    inputs = inputs or Inputs()
    check_inputs(inputs, settings)
    config, device = bundle.dit.config, bundle.device
    time, rows, columns = bundle.vae.compression
    shape = (settings.height // rows, settings.width // columns)
    shape = (config["out_channels"], (settings.frames - 1) // time + 1, *shape)
    drawn = noises(seeds, shape)
    first = next(drawn)  # drawn in any case: what is added later must not be the start again
    x = (first if start is None else start).to(device, torch.float32)
    if x.shape != (len(prompts), *shape):
        raise TaskError(f"noise of shape {tuple(x.shape)} for {len(prompts)} videos of {shape}")

    sigmas = flow.sigmas(settings.steps, settings.shift, SPACINGS[settings.solver])
    if settings.task == "video-to-video":
        sigmas = sigmas[settings.steps - int(settings.steps * settings.strength) :]
        x = flow.interpolate(encode(bundle.vae, inputs.video).to(x), x, sigmas[0])

    dtype = next(bundle.dit.parameters()).dtype
    told, image = told_by(bundle, settings, inputs)
    told, image = (part if part is None else part.to(device, dtype) for part in (told, image))
    positive = Conditioning(features(bundle, prompts).to(device, dtype), image, told)
    negative = None
    if settings.guidance != 1:
        texts = list(negatives or [settings.negative] * len(prompts))
        negative = Conditioning(features(bundle, texts).to(device, dtype), image, told)
    guidance = Guidance(
        settings.guidance,
        settings.interval,
        settings.batched,
        step_cache=settings.step_cache,
        guidance_cache=settings.guidance_cache,
    )
    velocity = guidance(bundle.dit, positive, negative, sigmas)
    if settings.solver in STOCHASTIC:
        return STOCHASTIC[settings.solver](velocity, x, sigmas, callback, drawn)
    return SOLVERS[settings.solver](velocity, x, sigmas, callback)


def features(bundle: Bundle, prompts: Sequence[str]) -> Tensor:
    """Text features [B, 512, D]; one text for all is encoded once, and [1, 512, D]."""
    once = list(dict.fromkeys(prompts))
    found = torch.cat([bundle.text.encode([text]).features for text in once])
    return found if len(once) == 1 else found[[once.index(text) for text in prompts]]


def told_by(
    bundle: Bundle, settings: Settings, inputs: Inputs
) -> tuple[Tensor | None, Tensor | None]:
    """The condition [B, 20, L, H/8, W/8] and the image tokens [B, 257 or 514, 1280] of a task."""
    if not TASKS[settings.task].conditioned:
        return None, None
    first = inputs.image if settings.task != "continuation" else inputs.video[:, :, 0]
    video = torch.zeros(len(first), 3, settings.frames, settings.height, settings.width)
    given = torch.zeros(settings.frames, dtype=torch.bool)
    count = inputs.video.shape[2] if settings.task == "continuation" else 1
    video[:, :, :count] = first[:, :, None] if count == 1 else inputs.video
    given[:count] = True
    if inputs.last_image is not None:
        video[:, :, -1], given[-1] = inputs.last_image, True
    tokens = None
    if bundle.image is not None:
        tokens = bundle.image.encode(first, inputs.last_image)
    return condition(bundle.vae, video, given), tokens


def check_inputs(inputs: Inputs, settings: Settings) -> None:
    """Raises a TaskError where inputs are missing, too many, or of another size."""
    needed = TASKS[settings.task].inputs
    for name in ("image", "last_image", "video"):
        value = getattr(inputs, name)
        if value is None and name in needed:
            raise TaskError(f"task={settings.task}: needs {name}=")
        if value is not None and name not in needed:
            raise TaskError(f"task={settings.task}: takes no {name}=")
        if value is not None and value.shape[-2:] != (settings.height, settings.width):
            raise TaskError(
                f"{name} is {value.shape[-1]}x{value.shape[-2]}, the sample "
                f"{settings.width}x{settings.height}"
            )
    length = None if inputs.video is None else inputs.video.shape[2]
    if settings.task == "video-to-video" and length != settings.frames:
        raise TaskError(f"video has {length} frames, the sample {settings.frames}")
    if settings.task == "continuation" and not 0 < length < settings.frames:
        raise TaskError(f"{length} given frames leave none of frames={settings.frames} to sample")


@torch.no_grad()
def decode(bundle: Bundle, latents: Tensor, tile: int | None = None) -> Iterator[Tensor]:
    """Normalised latents [B, C, L, H/8, W/8] as frames [B, 3, t, H, W] in -1..1, piece by piece.

    Memory does not grow with the length. `tile`: as in `WanVAE.decode_stream`.
    """
    yield from bundle.vae.decode_stream([bundle.vae.denormalize(latents)], tile=tile)
