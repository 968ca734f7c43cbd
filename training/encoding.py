"""Clips through a VAE into latent shards: which clips, in which order, by which process."""

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch.utils.data import Dataset

from model.condition import MASK_CHANNELS, condition
from model.text import TextEncoder
from model.vae import WanVAE
from recipes.load import UsageError
from recipes.training import Latents
from training import cache, console, features
from training.batch import pixels
from training.cache import Encoded, Piece, Shard
from training.data import ShardData, no_main
from training.decode import HELD_OUT, BrokenError, Decoded, Taste, decode
from training.features import Features
from training.index import Index
from training.masks import draw_mask
from training.progress import duration
from training.reader import Tally

SPLITS = ("train", "val")


class Clips(Dataset):
    """Decodes pieces of one bucket; a reader's process runs it."""

    def __init__(self, taste: Taste) -> None:
        self.taste = taste

    def __getitem__(self, pieces: list[Piece]) -> list[tuple[Decoded | None, str]]:
        return [self.read(piece) for piece in pieces]

    def read(self, piece: Piece) -> tuple[Decoded | None, str]:
        """The clip, or why there is none."""
        try:
            return decode(piece.row, piece.bucket, self.taste, HELD_OUT, piece.place), ""
        except BrokenError as error:
            return None, str(error)


class Encoding:
    """Encodes all clips that a recipe trains on, at the longest that its buckets take.

    Args:
        config: the recipe; `data.shards` and `buckets` say which clips.
        vae: what encodes, on the device where it does.
        out: the folder to write.
        text: what reads the captions, on its device; None: their features are not written.
        rank, world: which part of the shards this process writes, of how many.

    Raises:
        UsageError: there is nothing to encode, or the VAE is none of a DiT.
    """

    def __init__(
        self,
        config: Latents,
        vae: WanVAE,
        out: Path,
        text: TextEncoder | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if config.data.latents:
            raise UsageError(f"data.latents={config.data.latents}: latents are encoded from video")
        if config.buckets.zoom != 1 or config.buckets.flip:
            raise UsageError("latents are encoded as they are: buckets.zoom=1 buckets.flip=false")
        if vae.compression != (4, 8, 8):
            raise UsageError(f"vae={config.vae}: compresses by {vae.compression}, not by (4, 8, 8)")
        if min(config.cache.windows, config.cache.samples, config.cache.masks) < 1:
            raise UsageError("cache.windows, cache.samples and cache.masks want at least 1")
        if config.image_encoder:
            raise UsageError(
                f"image_encoder={config.image_encoder}: its tokens are not cached, so the model is "
                "trained on pixels; image_encoder=null encodes for one without image branch"
            )
        self.config, self.vae, self.out, self.rank, self.world = (
            config,
            vae.eval(),
            out,
            rank,
            world,
        )
        self.data = ShardData(config, "dit")
        self.device = next(vae.parameters()).device
        self.vae_sha256 = cache.fingerprint(vae)
        self.encoders = {"vae": {"sha256": self.vae_sha256, "config": vae.config}}
        self.features = None if text is None else Features(text)
        read = None if text is None else features.fingerprint(text)
        if text is not None:
            self.encoders["text"] = {"sha256": read, "name": text.name, "width": text.width}
        how = (self.vae_sha256, str(cache.DTYPE), config.buckets.fps, read)
        self.shares = cache.shares(config.objective.masks)
        self.masks = config.cache.masks if self.shares else 0  # of each video
        if self.masks:
            masks = {"count": self.masks, "shares": self.shares, "seed": config.seed}
            self.encoders["masks"] = masks
            how = (*how, masks)
        self.how = how
        self.shards = {split: self._shards(split) for split in SPLITS}
        self.tally = Tally(config.data.broken_share)
        self.took_s: float | None = None  # None: not run

    def _shards(self, split: str) -> list[Shard]:
        index = self.data.index if split == "train" else self.data.val_index
        pieces, size = self._pieces(index), self.config.cache.samples
        return [
            Shard(self.out / split, number, pieces[at : at + size], self.how)
            for number, at in enumerate(range(0, len(pieces), size))
        ]

    def _pieces(self, index: Index) -> list[Piece]:
        """What is encoded of each row, in the order of rows."""
        images, videos = self.data.pools(index)
        bucket_of = dict(zip(images.rows.tolist(), images.bucket.tolist(), strict=True))
        bucket_of |= zip(videos.rows.tolist(), videos.bucket.tolist(), strict=True)
        pieces, names = [], defaultdict(int)
        for number in sorted(bucket_of):
            row, bucket = index.row(number), self.data.buckets[bucket_of[number]]
            key = cache.safe(row.key.replace(":", "-"))
            names[key] += 1
            if names[key] > 1:  # a stranger's tars may use a name twice
                key = f"{key}-{names[key]}"
            has = int(np.ceil(float(index.duration[number]) * self.config.buckets.fps - 1e-3))
            windows = 1
            if not bucket.is_image:
                windows = min(self.config.cache.windows, max(1, has - bucket.frames + 1))
            # an epoch shows one of a clip's windows, as it does one part of a clip
            weight = float(index.weight[number]) / windows
            for window in range(windows):
                name = key if windows == 1 else f"{key}-w{window}"
                pieces.append(Piece(row, bucket, name, (window + 0.5) / windows, weight))
        return pieces

    def run(self) -> "Encoding":
        """Writes this process's shards that are not there yet, and the manifest if it is the last.

        Raises:
            BrokenDataError: too many clips can't be read.
            OSError: the disk is full.
        """
        began = time.monotonic()
        mine = [
            shard
            for shard in [*self.shards["train"], *self.shards["val"]][self.rank :: self.world]
            if not shard.finished()
        ]
        chunks = [(shard, chunk) for shard in mine for chunk in self._chunks(shard)]
        loader = self.data.loader([chunk for _, chunk in chunks], reader=Clips(self.data.taste))
        with no_main():
            clips = iter(loader)
        for count, shard in enumerate(mine):
            encoded = self._encoded(shard, clips)
            for one in cache.write(shard, encoded, self.config.buckets.fps):
                broken = [f"{one.piece.row.key} ({one.piece.row.place}): {one.error}"]
                self.tally.add(int(not one.error), broken if one.error else [])
            console.say(f"{shard.folder.name}/{shard.name}.tar, {count + 1} of {len(mine)}")
        for split in SPLITS:
            if self.shards[split]:
                fps = self.config.buckets.fps
                cache.finish(self.out / split, self.shards[split], self.encoders, fps)
        self.took_s = time.monotonic() - began
        return self

    def _chunks(self, shard: Shard) -> list[list[Piece]]:
        """What is encoded at once: pieces of one bucket, as many as a batch holds."""
        by_bucket = defaultdict(list)
        for piece in shard.pieces:
            by_bucket[piece.bucket].append(piece)
        chunks = []
        for bucket, pieces in by_bucket.items():
            size = max(1, self.config.buckets.tokens // bucket.tokens)
            chunks += [pieces[at : at + size] for at in range(0, len(pieces), size)]
        return chunks

    def _encoded(self, shard: Shard, clips: Iterator[list[tuple[Decoded | None, str]]]):
        for pieces in self._chunks(shard):
            found = list(zip(pieces, next(clips), strict=True))
            good = [(piece, sample) for piece, (sample, _) in found if sample is not None]
            posteriors = zip(*self._posterior([one for _, one in good]), strict=True)
            both = zip(posteriors, self._conditions(good), strict=True)
            for piece, (sample, error) in found:
                if sample is None:
                    yield Encoded(piece, None, error=error)
                else:
                    posterior, conditions = next(both)
                    yield Encoded(piece, sample, *posterior, self._text(sample), conditions)

    def _text(self, sample: Decoded) -> dict[str, torch.Tensor]:
        """Features of all its captions."""
        if self.features is None:
            return {}
        texts = cache.texts(sample)
        rows = self.features.rows(texts)
        return {features.name(text): row for text, row in zip(texts, rows, strict=True)}

    @torch.no_grad()
    def _posterior(self, samples: list[Decoded]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Mean and log-variance of each."""
        if not samples:
            return [], []
        parts = list(self.vae.encode_stream([self._video(samples)]))
        both = [(part.mean.float(), part.logvar.float()) for part in parts]
        return tuple(list(torch.cat(some, 2).cpu()) for some in zip(*both, strict=True))

    def _video(self, samples: list[Decoded]) -> torch.Tensor:
        """[B, 3, T, H, W] in -1..1."""
        return pixels(torch.stack([one.video for one in samples]).to(self.device))

    @torch.no_grad()
    def _conditions(self, some: list[tuple[Piece, Decoded]]) -> list[list[torch.Tensor]]:
        """Those of each clip, one a mask; none of an image, which is given nothing."""
        drawn = [
            [] if piece.bucket.is_image else [self._mask(piece, k) for k in range(self.masks)]
            for piece, _ in some
        ]
        # clips that are given the same frames go through the VAE together, and once each
        alike: dict[tuple[bool, ...], list[int]] = defaultdict(list)
        for at, masks in enumerate(drawn):
            for mask in dict.fromkeys(masks):
                alike[mask].append(at)
        told: dict[tuple[int, tuple[bool, ...]], torch.Tensor] = {}
        for mask, clips in alike.items():
            video = self._video([some[at][1] for at in clips])
            found = condition(self.vae, video, torch.tensor(mask)).float()
            found[:, MASK_CHANNELS:] = self.vae.denormalize(found[:, MASK_CHANNELS:])
            told |= {(at, mask): one for at, one in zip(clips, found.cpu(), strict=True)}
        return [[told[at, mask] for mask in masks] for at, masks in enumerate(drawn)]

    def _mask(self, piece: Piece, number: int) -> tuple[bool, ...]:
        """Which frames of a clip its condition of that number gives: always the same."""
        text = f"{self.config.seed}/{piece.key}/{number}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        return tuple(draw_mask(piece.bucket.frames, self.shares, generator).tolist())

    def table(self) -> Table:
        """What is there now, and before `run` what is not."""
        grid = Table(title="Encoded", title_justify="left", show_header=False, box=None)
        for split in SPLITS:
            shards = self.shards[split]
            done = [shard for shard in shards if shard.finished()]
            count = sum(len(shard.pieces) for shard in done)
            tars = [shard.folder / f"{shard.name}.tar" for shard in done]
            size = sum(tar.stat().st_size for tar in tars if tar.exists())
            text = f"{count:,} clips in {len(done)} of {len(shards)} shards, {size / 1e6:,.1f} MB"
            missing = sum(len(shard.pieces) for shard in shards) - count
            grid.add_row(split, text + (f"; {missing:,} clips to encode" if missing else ""))
        if self.took_s is not None:
            grid.add_row("broken", f"{self.tally.broken}")
            grid.add_row("took", duration(self.took_s))
        grid.add_row("vae", self.vae_sha256[:16])
        text = self.encoders.get("text")
        grid.add_row("text", f"{text['name']} {text['sha256'][:16]}" if text else "not encoded")
        if self.masks:
            grid.add_row("masks", f"{self.masks} a video: {cache.words(self.shares)}")
        grid.add_row("train", Text(f"python training/fit.py … data.latents={self.out}"))
        return grid


def ranks() -> tuple[int, int]:
    """Which process of torchrun's this is, of how many."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
