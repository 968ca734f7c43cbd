"""How much memory a sample takes, roughly, and what would fit where it did not."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from model.bundle import Bundle
from model.sampler import Settings
from recipes.keys import UsageError

SIZES = ((1280, 720), (832, 480), (640, 368), (416, 240), (256, 144), (64, 64))


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)
    )


@contextmanager
def told(out: str) -> Iterator[None]:
    """Says in one line that memory ran out, or that `out=` can't be written.

    Raises:
        UsageError: one of the two.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"out={out}: can't be written ({error.strerror})") from error
    except (MemoryError, RuntimeError) as error:
        if is_exhausted(error):
            raise UsageError("memory ran out: try size=, fewer frames=, or batch=1") from error
        raise


def needed(bundle: Bundle, settings: Settings, batch: int = 1) -> int:
    """Bytes besides the weights, at the peak of the DiT or of the VAE, whichever is larger.

    An estimate, within a fifth of what was measured on a CPU (256 and 384 pixels, 9 to 49 frames):
    of the DiT, the tensors of one block that live at once, twelve of its width and two of its
    feed-forward layer's; of the VAE, nine maps of four frames at full size and twice its width.
    """
    config, (time, rows, columns) = bundle.dit.config, bundle.vae.compression
    patch = config["patch"]
    frames = (settings.frames - 1) // time + 1
    tokens = (
        frames * (settings.height // rows // patch[1]) * (settings.width // columns // patch[2])
    )
    passes = 2 if settings.guidance > 1 and settings.batched else 1
    wide = next(bundle.dit.parameters()).element_size()
    dit = batch * passes * tokens * (12 * config["width"] + 2 * config["ffn_width"]) * wide
    pixels = settings.width * settings.height
    vae = 9 * 4 * time * bundle.vae.config["width"] * 2 * pixels
    latents = 8 * 4 * batch * tokens * 4 * config["out_channels"]
    return max(dit, vae) + latents


def weights(bundle: Bundle) -> int:
    """Bytes of all parts on the bundle's device."""
    parts = (bundle.dit, bundle.vae, getattr(bundle.text, "model", bundle.text), bundle.image)
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def capacity(device: torch.device) -> int:
    """Bytes of the GPU, or of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def advice(bundle: Bundle, settings: Settings, batch: int, room: int | None = None) -> str:
    """One line: what was asked for, about how much it takes, and what would fit.

    Args:
        room: bytes beside the weights; None: what the device has.
    """
    if room is None:
        room = int(0.9 * capacity(bundle.device)) - weights(bundle)
    # what has just failed does not fit, whatever the estimate says
    asked = needed(bundle, settings, batch)
    room = min(room, int(0.9 * asked))
    what = f"{settings.width}x{settings.height}, {settings.frames} frames, batch={batch}"
    line = f"out of memory for {what} on {bundle.device.type}: takes about {gigabytes(asked)}"
    fitting = [words for words, fits in options(bundle, settings, batch) if fits <= room]
    if fitting:
        return f"{line} beside the weights; would fit: {fitting[0]}"
    return f"{line} beside {gigabytes(weights(bundle))} of weights; take a larger device"


def options(bundle: Bundle, settings: Settings, batch: int):
    """Ways to ask for less, the gentlest first, each with its bytes."""
    if batch > 1:
        yield "batch=1", needed(bundle, settings, 1)
    if settings.batched and settings.guidance > 1:
        settings = replace(settings, batched=False)
        yield "batched=false (batch=1)", needed(bundle, settings, 1)
    less = "" if settings.batched else " batched=false"
    for frames in (81, 65, 49, 33, 17, 5, 1):
        if frames < settings.frames:
            shorter = replace(settings, frames=frames)
            yield f"frames={frames}{less}", needed(bundle, shorter, 1)
    for width, height in SIZES:
        if settings.width < settings.height:
            width, height = height, width
        if width * height < settings.width * settings.height:
            for frames in (settings.frames, *(n for n in (33, 17) if n < settings.frames)):
                smaller = replace(settings, width=width, height=height, frames=frames)
                yield f"size={width}x{height} frames={frames}{less}", needed(bundle, smaller, 1)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
