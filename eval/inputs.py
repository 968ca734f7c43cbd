"""Reads the images and videos that a sample starts from, as the model sees them.

A picture is enlarged or reduced until it covers the wanted size, its aspect ratio kept, and what
stands over is cut off, half on either side. Transparency is laid on white, EXIF rotation applied.
A video is read upright, with square pixels, at the wanted frame rate: each frame is the one that a
player would show at that moment.

T frames, H height, W width; values in -1..1.
"""

import hashlib
import warnings
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from PIL import Image, ImageOps, UnidentifiedImageError

from curation.video import VideoError, frames, probe
from recipes.load import UsageError


def image(path: str, width: int, height: int) -> torch.Tensor:
    """An image file as [3, H, W].

    Raises:
        UsageError: it can't be read.
    """
    return tensor(covered(_opened(path), width, height))


def picture(path: str | Path) -> np.ndarray:
    """An image file as uint8 [H, W, 3], at its own size.

    Raises:
        UsageError: it can't be read.
    """
    return np.array(_opened(path))


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: str | Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(Path(path).expanduser()) as opened:
                return upright(opened)
    except UnidentifiedImageError:
        raise UsageError(f"{path}: no image that can be read; give a PNG or JPEG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(f"{path}: {error}") from None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three on broken files
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path}: the image cannot be read: {why}") from None


def video(
    path: str,
    width: int,
    height: int,
    fps: float,
    first: int | None = None,
    last: int | None = None,
) -> torch.Tensor:
    """A video file as [3, T, H, W] at `fps`: its `first` or its `last` frames.

    Raises:
        UsageError: it can't be read, or has fewer frames at that rate.
    """
    wanted = first or last or 1
    found: deque[torch.Tensor] = deque(maxlen=last)
    count = 0
    try:
        for frame in islice(resampled(path, fps), first):
            found.append(tensor(covered(frame, width, height)))
            count += 1
    except VideoError as error:
        raise UsageError(f"{path}: {error}") from None
    if count < wanted:
        raise UsageError(f"{path}: has {count} frames at {fps:g} a second; {wanted} are asked for")
    return torch.stack(list(found), dim=1)


def length(path: str, fps: float, most: int) -> int:
    """The most frames, of the form 4k + 1 and at most `most`, that a video file has at `fps`.

    Raises:
        UsageError: it can't be read.
    """
    try:
        count = sum(1 for _ in islice(resampled(path, fps), most))
    except VideoError as error:
        raise UsageError(f"{path}: {error}") from None
    return (count - 1) // 4 * 4 + 1


def resampled(path: str, fps: float) -> Iterator[Image.Image]:
    """Upright RGB frames at a constant rate, from the first frame on."""
    path = Path(path).expanduser()
    about = probe(path)
    turned = about.rotation in (90, 270)
    size = (about.height, about.width) if turned else (about.width, about.height)
    scaler, held, count = VideoReformatter(), None, 0

    def shown(raw) -> Image.Image:
        # colours without a tag are BT.709 from 720 lines up, else BT.601, as players take them
        untagged = raw.colorspace not in (1, 4, 5, 6, 7, 9, 10)
        guess = Colorspace.ITU709 if min(size) >= 720 else Colorspace.ITU601
        rgb = scaler.reformat(
            raw,
            width=size[0],
            height=size[1],
            format="rgb24",
            src_colorspace=guess if untagged else None,
            interpolation=Interpolation.BICUBIC,
        ).to_ndarray()
        return Image.fromarray(np.ascontiguousarray(np.rot90(rgb, -about.rotation // 90)))

    for frame in frames(path, about):
        while held is not None and count / fps < frame.time_s - 1e-6:
            yield held
            count += 1
        held = shown(frame.raw)
        end_s = frame.time_s + 1 / about.fps
    while held is not None and count / fps < end_s - 1e-6:
        yield held
        count += 1


def upright(opened: Image.Image) -> Image.Image:
    """RGB, turned as EXIF says, transparency on white."""
    turned = ImageOps.exif_transpose(opened)
    if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
        turned = turned.convert("RGBA")
        white = Image.new("RGBA", turned.size, "white")
        return Image.alpha_composite(white, turned).convert("RGB")
    if turned.mode.startswith("I;16") or turned.mode == "I":
        array = np.asarray(turned, dtype=np.float64) / 257  # 16 bits: Pillow would clip them
        return Image.fromarray(array.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    return turned.convert("RGB")


def covered(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scaled to cover width × height, the middle kept."""
    scale = max(width / picture.width, height / picture.height)
    left = (picture.width - width / scale) / 2
    top = (picture.height - height / scale) / 2
    box = (left, top, picture.width - left, picture.height - top)
    if (picture.width, picture.height) == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.LANCZOS, box=box)


def tensor(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as [3, H, W] in -1..1."""
    array = torch.from_numpy(np.array(picture))  # a copy: Pillow's own buffer is read-only
    return array.permute(2, 0, 1).float() / 127.5 - 1
