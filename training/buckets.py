"""Buckets: which size and length each sample is trained at, and why the others are not.

    some = buckets(config.buckets)
    assignment = assign(index, some, config.buckets, captions=True)
    print(summary(index, assignment))                # what each gets, what is dropped and why

A sample goes to the largest size that it fills without being enlarged or cut too much, at the
aspect ratio nearest to its own, and there to the greatest length that it has. With `buckets.mixed`
it goes to any resolution that it fills, any length that it has: each as often, drawn by its key.
"""

import re
from dataclasses import dataclass

import numpy as np

from curation.shards import bucket_size
from recipes.load import UsageError
from recipes.training import Buckets
from training.batch import Bucket
from training.index import Index

ASPECTS = ("21x9", "16x9", "4x3", "1x1", "3x4", "9x16", "9x21")
CLASS = 0.7  # sizes whose areas are this near are one resolution at several aspect ratios
ROUNDING = 1.005  # enlarging by less is none: sizes are multiples of 16

KEPT, BROKEN, UNCAPTIONED, SMALL, CUT, SHORT, NO_IMAGES, NO_VIDEO, UNWEIGHTED, OTHER = range(10)
REASONS = {
    BROKEN: "can't be opened",
    UNCAPTIONED: "has no caption",
    SMALL: "smaller than every size (buckets.enlarge)",
    CUT: "of another shape than every size (buckets.cut)",
    SHORT: "shorter than every length (buckets.frames)",
    NO_IMAGES: "an image, and no length is 1 (buckets.frames)",
    NO_VIDEO: "a video, and every length is 1 (data.frames_as_images)",
    UNWEIGHTED: "its sampling weight is 0",
    OTHER: "cached at a size that is none of these (buckets.sizes)",
}


@dataclass
class Assignment:
    """Where each row of an index goes.

    Attributes:
        buckets: all there are.
        number: [rows], which of them, or −1.
        reason: [rows], KEPT or one of REASONS.
    """

    buckets: list[Bucket]
    number: np.ndarray
    reason: np.ndarray

    def __len__(self) -> int:
        return len(self.number)


def sizes(texts: list[str], key: str = "sizes") -> list[tuple[int, int]]:
    """All widths and heights that are meant, in order.

    Raises:
        UsageError: a size that is none.
    """
    found: list[tuple[int, int]] = []
    for text in texts:
        explicit = re.fullmatch(r"(\d+)x(\d+)", text)
        if explicit:
            width, height = int(explicit[1]), int(explicit[2])
            if width % 16 or height % 16 or not width * height:
                raise UsageError(f"buckets.{key}={text}: wants multiples of 16")
            found.append((width, height))
            continue
        try:
            found += [bucket_size(f"{text}-1f-{aspect}") for aspect in ASPECTS]
        except ValueError:
            raise UsageError(
                f"buckets.{key}={text}: wants 192p, 256p, 480p, 720p, or width x height as 832x480"
            ) from None
    return list(dict.fromkeys(found))


def lengths(config: Buckets) -> list[int]:
    """All lengths in frames, the shortest first.

    Raises:
        UsageError: none, or one that is not 4k + 1.
    """
    for frames in (*config.frames, *config.growth.values()):
        if frames < 1 or frames % 4 != 1:
            raise UsageError(f"buckets.frames={frames}: wants 4k+1, such as 1, 17 or 81")
    if not config.frames or not config.sizes:
        raise UsageError("buckets.sizes and buckets.frames want at least one entry each")
    return sorted(set(config.frames))


def buckets(config: Buckets) -> list[Bucket]:
    """All buckets of a configuration.

    Raises:
        UsageError: a size or length that is none, or one sample that exceeds buckets.tokens.
    """
    pictures = sizes(config.image_sizes, "image_sizes") or sizes(config.sizes)
    some = [
        Bucket(*size, frames)
        for frames in lengths(config)
        for size in (pictures if frames == 1 else sizes(config.sizes))
    ]
    most = max(some, key=lambda one: one.tokens)
    if most.tokens > config.tokens:
        raise UsageError(
            f"buckets.tokens={config.tokens}: one clip of {most.name} has {most.tokens}; allow as "
            "many, or leave out the size or the length"
        )
    return some


def phases(config: Buckets) -> list[tuple[int, int]]:
    """(step, longest clip from it on), in order; the first at step 0.

    Raises:
        UsageError: buckets.growth is no such thing.
    """
    try:
        found = sorted((int(step), longest) for step, longest in config.growth.items())
    except ValueError:
        raise UsageError(
            "buckets.growth: wants steps as names: growth.0=17 growth.20000=81"
        ) from None
    if not found:
        return [(0, max(lengths(config)))]
    if found[0][0] != 0:
        raise UsageError("buckets.growth: says nothing of the first step: growth.0=17")
    return found


def assign(
    index: Index,
    some: list[Bucket],
    config: Buckets,
    *,
    captions: bool,
    longest: int | None = None,
    as_images: bool = False,
) -> Assignment:
    """Each row's bucket, or the first reason why it has none.

    Args:
        captions: a sample without one is dropped.
        longest: only lengths up to this.
        as_images: videos go to the lengths of one frame, of which any is taken.
    """
    number = np.full(len(index), -1, np.int32)
    reason = np.zeros(len(index), np.int8)
    videos = sorted({one.frames for one in some if not one.is_image})
    allowed = [one for one in videos if one <= (longest or one)]
    has_images = any(one.is_image for one in some)
    single = index.is_image | (index.is_latent & (index.frames == 1))
    if as_images:
        single = np.ones(len(index), bool)

    shape = np.zeros((len(index), 2), np.int32)  # width and height of its bucket
    for rows, kind in ((single, True), (~single, False)):
        shapes = list(dict.fromkeys((b.width, b.height) for b in some if b.is_image == kind))
        if shapes and rows.any():
            shape[rows], reason[rows] = _shapes(index, np.flatnonzero(rows), shapes, config)
    # the last frame's own duration counts: 81 frames at 16 a second last 5.0625 s
    has = np.where(
        index.is_latent,
        index.frames,
        np.ceil(index.duration.astype(np.float64) * config.fps - 1e-3),
    )
    many = np.searchsorted(allowed, has, side="right")
    shorter = _drawn(index.draws[:, 1], many) if "frames" in config.mixed else 0
    # what is cached has its length from when it was encoded
    at = many - 1 - np.where(index.is_latent, 0, shorter)
    length = np.where(single, 1, np.array([*allowed, 0])[at])
    drop = [
        (index.width <= 0, BROKEN),
        (index.weight <= 0, UNWEIGHTED),
        (~index.captioned if captions else np.zeros(len(index), bool), UNCAPTIONED),
        (single & (not has_images), NO_IMAGES),
        (~single & (not allowed), NO_VIDEO),
        (~single & (length == 0), SHORT),
    ]
    for faulty, why in reversed(drop):
        reason[faulty] = why
    where = {bucket: at for at, bucket in enumerate(some)}
    kept_rows = np.flatnonzero(reason == KEPT)
    width, height = shape[kept_rows].T.astype(np.int64)
    wanted = (width << 40) | (height << 20) | length[kept_rows].astype(np.int64)
    kinds, inverse = np.unique(wanted, return_inverse=True)
    numbers = [where[Bucket(k >> 40, k >> 20 & 0xFFFFF, k & 0xFFFFF)] for k in kinds.tolist()]
    number[kept_rows] = np.array(numbers, np.int32)[inverse]
    return Assignment(some, number, reason)


def _shapes(
    index: Index, rows: np.ndarray, shapes: list[tuple[int, int]], config: Buckets
) -> tuple[np.ndarray, np.ndarray]:
    """[rows, 2] and [rows]: the width and height that each row goes to, and why to none."""
    groups, is_latent = classes(shapes), index.is_latent[rows]
    both = np.stack([index.width[rows], index.height[rows]], 1).astype(np.int64)
    code, inverse = np.unique(both[:, 0] << 32 | both[:, 1], return_inverse=True)
    some = np.zeros((len(code), len(groups)), np.int64)  # those that it fills, the largest first
    many, why = np.zeros((2, len(code)), np.int64)
    for at, one in enumerate(code.tolist()):
        size = one >> 32, one & 0xFFFFFFFF
        found, why[at] = filled(size, shapes, groups, config) if min(size) > 0 else ([], BROKEN)
        some[at, : len(found)], many[at] = found, len(found)
    which = _drawn(index.draws[rows, 0], many[inverse]) if "sizes" in config.mixed else 0
    shape = np.array(shapes, np.int32)[some[inverse, which]]
    why = why[inverse]
    if is_latent.any():  # what is cached can't be scaled
        exact = np.array([(one >> 32, one & 0xFFFFFFFF) in shapes for one in code.tolist()])
        shape = np.where(is_latent[:, None], both, shape)
        why = np.where(is_latent, np.where(exact[inverse], KEPT, OTHER), why)
    return shape, why


def classes(shapes: list[tuple[int, int]]) -> list[list[int]]:
    """Shapes of about the same area together, the largest first."""
    order = sorted(range(len(shapes)), key=lambda at: -shapes[at][0] * shapes[at][1])
    groups: list[list[int]] = []
    largest = 0
    for at in order:
        area = shapes[at][0] * shapes[at][1]
        if not groups or area < CLASS * largest:
            groups.append([])
            largest = area
        groups[-1].append(at)
    return groups


def _drawn(draws: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Which of so many each row has: 0 … many − 1, each as often; of none, 0."""
    return draws.astype(np.int64) * many >> 32


def filled(
    size: tuple[int, int],
    shapes: list[tuple[int, int]],
    groups: list[list[int]],
    config: Buckets,
) -> tuple[list[int], int]:
    """Of each resolution that a picture fills its shape, the largest first, and KEPT; or why none.

    Args:
        groups: as `classes` has them.
    """
    width, height = size
    found, why = [], SMALL
    for group in groups:
        # of what a shape covers when it is filled, the share that is not cut off
        shares = {at: kept(size, shapes[at]) for at in group}
        at = max(shares, key=shares.get)
        across, down = shapes[at]
        if shares[at] < 1 - config.cut:
            why = CUT
        elif max(across / width, down / height) <= config.enlarge * ROUNDING:
            found.append(at)
        else:
            why = SMALL
    return found, KEPT if found else why


def kept(size: tuple[int, int], shape: tuple[int, int]) -> float:
    """Share of a picture that remains when it is scaled to cover a shape and cut."""
    ratio = (size[0] / size[1]) / (shape[0] / shape[1])
    return min(ratio, 1 / ratio)
