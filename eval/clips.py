"""Clips to measure a VAE on: the first frames of all videos of shards, or of a folder.

source = Source.of(config, [vae.compression])
for clips in source.batches(4, most=64):        # [B, 3, T, H, W] in −1 … 1
    ...
source.short, source.broken                     # what was left out
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import lcm
from pathlib import Path

import torch
from PIL import Image

from curation.shards import index
from curation.video import VideoError, clip_frames
from eval import inputs
from eval.sample import sized
from model.distance import WINDOW
from recipes.keys import UsageError
from recipes.reconstruction import Reconstruction

VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}


@dataclass(frozen=True)
class Clip:
    """A video: a file of its own, or `bytes` of a tar from `offset` on."""

    name: str
    path: Path
    offset: int = 0
    bytes: int | None = None

    @contextmanager
    def file(self) -> Iterator[Path]:
        """A file with nothing else in it."""
        if self.bytes is None:
            yield self.path
            return
        with self.path.open("rb") as tar, tempfile.NamedTemporaryFile(suffix=".mp4") as own:
            tar.seek(self.offset)
            own.write(tar.read(self.bytes))
            own.flush()
            yield Path(own.name)


@dataclass
class Source:
    """The clips that are asked for, and what of them could be read.

    Attributes:
        frames: of each.
        size: width and height to scale to; None: the clip's own, cut to multiples of `cell`.
        read, short, broken: names, in order; broken with the reason.
    """

    place: str
    clips: list[Clip]
    frames: int
    size: tuple[int, int] | None
    cell: tuple[int, int]
    read: list[Clip] = field(default_factory=list)
    short: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: Reconstruction, compressions: Sequence[tuple[int, int, int]]) -> "Source":
        """Raises a UsageError where there are none, or the VAEs take no such clips."""
        time, rows, columns = (lcm(*some) for some in zip(*compressions, strict=True))
        if (config.frames - 1) % time:
            near = max(0, round((config.frames - 1) / time)) * time + 1
            raise UsageError(f"frames={config.frames}: must be {time}k+1, such as {near}")
        size = sized(config.size)
        if size and (size[0] % columns or size[1] % rows or min(size) < WINDOW):
            raise UsageError(
                f"size={config.size}: width must be a multiple of {columns}, height of {rows}, and "
                f"both at least {WINDOW}"
            )
        return cls(config.clips, found(config.clips), config.frames, size, (columns, rows))

    def batches(self, batch: int, most: int) -> Iterator[torch.Tensor]:
        """[B, 3, T, H, W] in −1 … 1, clips of one size that follow one another, `most` in all."""
        held: list[torch.Tensor] = []
        for clip in self.clips:
            if len(self.read) == most:
                break
            video = self.video(clip)
            if video is None:
                continue
            if held and (len(held) == batch or held[0].shape != video.shape):
                yield torch.stack(held)
                held = []
            self.read.append(clip)
            held.append(video)
        if held:
            yield torch.stack(held)

    def video(self, clip: Clip) -> torch.Tensor | None:
        """[3, T, H, W]; None: it is among the short or the broken ones."""
        try:
            with clip.file() as path:
                frames = clip_frames(path, list(range(self.frames)))
        except IndexError:  # decord's, of a frame that is not there
            self.short.append(clip.name)
            return None
        except (VideoError, OSError) as error:
            self.broken.append(f"{clip.name}: {error}")
            return None
        if self.size:
            pictures = [inputs.covered(Image.fromarray(one), *self.size) for one in frames]
            return torch.stack([inputs.tensor(one) for one in pictures], dim=1)
        height, width = frames.shape[1:3]
        across, down = width - width % self.cell[0], height - height % self.cell[1]
        if min(across, down) < WINDOW:
            self.broken.append(f"{clip.name}: {width}x{height} is too small")
            return None
        left, top = (width - across) // 2, (height - down) // 2
        part = torch.from_numpy(frames[:, top : top + down, left : left + across])
        return part.permute(3, 0, 1, 2).float() / 127.5 - 1

    def emptiness(self) -> str:
        """Why not a single clip was read."""
        first = f" ({self.broken[0]})" if self.broken else ""
        return (
            f"clips={self.place}: of {len(self.clips)} none is left: {len(self.short)} are shorter "
            f"than frames={self.frames}, {len(self.broken)} can't be used{first}"
        )


def found(place: str) -> list[Clip]:
    """All videos of shards, or of a folder and those within it, in order of their names."""
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise UsageError(f"clips={place}: no such folder")
    held_out = folder / "val" / "manifest.json"
    places = (one.parent for one in (folder / "manifest.json", held_out) if one.is_file())
    shards = next(places, None)
    if shards:
        clips = [
            Clip(row["key"], shards / row["shard"], row["offset"], row["bytes"])
            for row in index(shards)
            if row["media"] == "mp4"
        ]
    else:
        files = sorted(one for one in folder.rglob("*") if one.suffix.lower() in VIDEOS)
        clips = [Clip(str(one.relative_to(folder)), one) for one in files]
    if not clips:
        raise UsageError(f"clips={place}: no video in it")
    return clips
