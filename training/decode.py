"""One sample: its bytes to frames of a bucket's size, at 16 a second, with one of its captions.

What is drawn (where a longer clip is entered, which part of the picture is shown, which caption)
follows from (seed, epoch, key).
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from model.condition import MASK_CHANNELS
from training import features, foreign, tars
from training.batch import Bucket
from training.frames import MIDDLE, BrokenError, View, image, line, video
from training.tars import Row, TarError

HELD_OUT = -1  # the epoch of held-out clips: nothing is drawn


@dataclass(frozen=True)
class Taste:
    """How samples are read: what a reader's process has to know of the configuration."""

    fps: float = 16.0
    captions: str = "any"
    needs_caption: bool = True
    seed: int = 0
    zoom: float = 1.0
    flip: bool = False
    conditions: bool = False  # of cached clips: for an image-to-video model

    def view(self, zoom: float, x: float, y: float, flip: float) -> View:
        """Of four numbers from 0 to 1."""
        if self.zoom == 1:
            x = y = 0.5
        return View(self.zoom**zoom, x, y, self.flip and flip < 0.5)


@dataclass
class Decoded:
    """One sample."""

    prompt: str
    tier: str | None
    scores: dict[str, float]
    video: Tensor | None = None  # uint8 [3, T, H, W]
    mean: Tensor | None = None  # [C, L, H/8, W/8]
    logvar: Tensor | None = None
    condition: Tensor | None = None  # [4 + C, L, H/8, W/8], mask and latents, not normalised
    text: Tensor | None = None  # [tokens, D], cached features of the prompt
    told: dict[str, Any] = field(default_factory=dict)  # its JSON


def decode(
    row: Row, bucket: Bucket, taste: Taste, epoch: int, place: float | None = None
) -> Decoded:
    """Reads a sample.

    Args:
        epoch: HELD_OUT takes the middle of a clip, always the same caption, and the first of the
            conditions that are cached.
        place: 0 … 1, which of the possible first frames instead.

    Raises:
        BrokenError: it can't be used, and why.
    """
    held_out = epoch == HELD_OUT
    where, which, *part = draws(0 if held_out else taste.seed, epoch, row.key)
    view = MIDDLE if held_out else taste.view(*part)
    place = (0.5 if held_out else where) if place is None else place
    try:
        members = tars.sample(row)
        told = tars.parsed(members["json"]) if "json" in members else {}
        found, span = Decoded("", tier(told), scores(told), told=told), (0, 0)
        tensors: dict[str, Tensor] = {}
        media = next((members[one] for one in SUFFIXES[row.media] if one in members), None)
        if media is None:
            raise BrokenError(f"the tar has no {row.media} of it")
        if told.get("sha256") and told.get("key") == row.name:
            check(media, str(told["sha256"]))
        if row.media == "safetensors":
            tensors = cached(media)
            found.mean, found.logvar = posterior(tensors, bucket)
            if taste.conditions and not bucket.is_image:
                # which frames a cached clip begins with was settled when it was encoded; held out,
                # the first is taken however many there are
                found.condition = condition(tensors, bucket, 0.0 if held_out else where)
        elif row.media == "mp4":
            found.video, span = video(
                media, bucket, taste.fps, place, foreign.box(told), row.length_s, view
            )
        else:
            found.video = image(media, bucket, foreign.box(told), view)
    except BrokenError:
        raise
    except (TarError, OSError, ValueError) as error:  # also FFmpeg's
        raise BrokenError(line(error)) from None
    except Exception as error:  # whatever a decoder makes of bytes that are no video
        raise BrokenError(f"{type(error).__name__}: {line(error)}") from None
    found.prompt = caption(told, members.get("txt"), span, taste, which)
    if taste.needs_caption and not found.prompt:
        raise BrokenError("it has no caption")
    found.text = tensors.get(features.name(found.prompt))
    return found


SUFFIXES = {
    "mp4": ("mp4",),
    "jpg": ("jpg", "jpeg"),
    "png": ("png",),
    "safetensors": ("safetensors",),
}


def draws(seed: int, epoch: int, key: str) -> tuple[float, ...]:
    """Six numbers from 0 to 1, 1 excluded."""
    text = f"{seed}/{epoch}/{key}".encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(text, digest_size=36).digest()
    return tuple(int.from_bytes(digest[at : at + 6]) / 2**48 for at in range(0, 36, 6))


def check(media: bytes, digest: str) -> None:
    if hashlib.sha256(media).hexdigest() != digest:
        raise BrokenError("its bytes are not those that were written: another checksum")


# --- what is said of it ---------------------------------------------------------------------------


def caption(
    told: dict[str, Any],
    text: bytes | None,
    span: tuple[int, int],
    taste: Taste,
    which: float,
) -> str:
    """One caption, of the wanted language where there is one; empty where there is none.

    Args:
        text: of the `.txt` beside it.
        span: first and last of its own frames that are shown.
        which: 0 … 1, of several.
    """
    some = foreign.of_span(foreign.captions(told), *span)
    if not some and text is not None:
        some = [{"text": text.decode("utf-8", "replace")}]
    wanted = [one for one in some if one.get("language", "").partition("-")[0] == taste.captions]
    texts = [one["text"].strip() for one in (wanted or some)]
    return texts[int(which * len(texts))] if texts else ""


def tier(told: dict[str, Any]) -> str | None:
    return told["tier"] if isinstance(told.get("tier"), str) else None


def scores(told: dict[str, Any]) -> dict[str, float]:
    """Those that are numbers."""
    some = told.get("scores")
    numbers = some.items() if isinstance(some, dict) else ()
    return {name: float(value) for name, value in numbers if foreign.is_number(value)}


def cached(data: bytes) -> dict[str, Tensor]:
    """What a latent shard has of a clip.

    Raises:
        BrokenError: it is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found = load(data)
    except SafetensorError as error:
        raise BrokenError(f"no cached posterior: {error}") from None
    if not {"mean", "logvar"} <= set(found):
        raise BrokenError(f"no cached posterior: only {', '.join(found) or 'nothing'}")
    return found


def posterior(found: dict[str, Tensor], bucket: Bucket) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [C, L, h, w]; of a longer clip the first frames: the VAE is causal.

    Raises:
        BrokenError: it is too short.
    """
    mean, logvar = found["mean"], found["logvar"]
    frames = 1 + (bucket.frames - 1) // 4
    if mean.shape != logvar.shape or mean.ndim != 4 or mean.shape[1] < frames:
        raise BrokenError(f"a posterior of {list(mean.shape)}, fewer than {frames} latent frames")
    return mean[:, :frames].float(), logvar[:, :frames].float()


def condition(found: dict[str, Tensor], bucket: Bucket, which: float) -> Tensor:
    """What is given of a clip, [4 + C, L, h, w]: mask channels, and latents, not normalised.

    Of a longer clip the first frames: the VAE is causal, so what is left is the condition of the
    shorter clip, except that a given last frame is cut off with the rest: of first and last the
    first is left. Those that then give all frames or none are passed over where there are others.

    Args:
        which: 0 … 1, of several.

    Raises:
        BrokenError: it has none that belongs to its posterior.
    """
    frames = 1 + (bucket.frames - 1) // 4
    whole = [found[name] for name in (f"condition.{k}" for k in range(len(found))) if name in found]
    channels, *size = found["mean"].shape
    if not whole or any(one.shape != (MASK_CHANNELS + channels, *size) for one in whole):
        shapes = ", ".join(str(list(one.shape)) for one in whole)
        raise BrokenError(f"conditions of {shapes}" if whole else "it has no conditions")
    masks = [one[:MASK_CHANNELS, :frames, 0, 0] for one in whole]
    some = [one for one, mask in zip(whole, masks, strict=True) if mask.any() and not mask.all()]
    some = some or whole
    return some[int(which * len(some))][:, :frames].float()
