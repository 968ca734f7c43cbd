"""What a step's batches are, as far as a recipe tells before its data are read.

Batches are taken to be full, and clips to fill every size and to have every length that the recipe
lets in at the time: all are of the largest and longest, or, where `buckets.mixed` says so, of all
equally often. So a plan is rather too dear than too cheap.
"""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import lru_cache

from recipes.training import Buckets, Fit
from training.batch import Bucket
from training.buckets import buckets, classes, phases

TEXT = 0.1  # of what a token of the video takes, a token of the text takes; only to compare


@dataclass(frozen=True)
class Full:
    """A full batch of one bucket."""

    bucket: Bucket
    samples: int

    @property
    def tokens(self) -> int:
        return self.samples * self.bucket.tokens

    @property
    def pixels(self) -> int:
        return self.samples * self.bucket.frames * self.bucket.height * self.bucket.width

    @property
    def name(self) -> str:
        return f"{self.samples} × {self.bucket.name}"


def full(config: Fit, bucket: Bucket) -> Full:
    return Full(bucket, max(1, config.buckets.tokens // bucket.tokens))


def every(config: Fit) -> list[Bucket]:
    """All buckets; they are asked for again and again, and their sizes are searched for.

    Raises:
        UsageError: sizes or lengths that are none, or a clip that exceeds buckets.tokens.
    """
    return _every(json.dumps(asdict(config.buckets)))


@lru_cache(maxsize=64)
def _every(config: str) -> list[Bucket]:
    return buckets(Buckets(**json.loads(config)))


def loads(config: Fit) -> list[Full]:
    """A full batch of each bucket."""
    return [full(config, bucket) for bucket in every(config)]


def heaviest(config: Fit, text: int = 0) -> Full:
    """The batch that takes most memory to train on.

    Args:
        text: a DiT's tokens of text and image beside each sample; 0: a VAE, which pixels weigh on.
    """

    def weight(load: Full) -> float:
        return load.tokens + TEXT * text * load.samples if text else load.pixels

    return max(loads(config), key=lambda one: (weight(one), -_oddness(one.bucket)))


def mix(config: Fit) -> dict[Full, float]:
    """Which batches are trained on, each with its share of all; they add up to one."""
    known, steps = every(config), config.optimizer.steps
    images = [one for one in known if one.is_image]
    starts = phases(config.buckets)
    ends = [*(step for step, _ in starts[1:]), steps]
    found: dict[Full, float] = defaultdict(float)
    for (start, longest), end in zip(starts, ends, strict=True):
        part = max(0, min(end, steps) - start) / steps
        videos = [one for one in known if not one.is_image and one.frames <= longest]
        share = config.data.image_share if images and videos else float(not videos)
        for pool, weight in ((images, share), (videos, 1 - share)):
            some = [full(config, one) for one in _seen(pool, config.buckets.mixed)]
            # of equally many clips those make more batches of which a batch holds fewer
            batches = sum(1 / one.samples for one in some)
            for one in some:
                found[one] += part * weight / one.samples / batches
    return {load: share for load, share in found.items() if share}


def _seen(some: list[Bucket], mixed: list[str]) -> list[Bucket]:
    """Where clips go that fill every size and have every length."""
    lengths = sorted({one.frames for one in some}, reverse=True)
    found = []
    for frames in lengths if "frames" in mixed else lengths[:1]:
        sizes = _sizes([one for one in some if one.frames == frames])
        found += sizes if "sizes" in mixed else sizes[:1]
    return found


def _sizes(some: list[Bucket]) -> list[Bucket]:
    """Of each resolution, the largest first, the aspect ratio with the most pixels."""
    shapes = [(one.width, one.height) for one in some]
    groups = [[some[at] for at in group] for group in classes(shapes)]
    return [max(group, key=lambda one: (one.tokens, -_oddness(one))) for group in groups]


def _oddness(bucket: Bucket) -> float:
    """How far from 16:9, the aspect ratio that is named among equals."""
    return abs(bucket.width / bucket.height - 16 / 9)
