"""Which samples make up which step: planned from numbers alone, before anything is read.

    stream = Stream(index, pools, config, state)
    for step in stream: ...                          # endless; step.state goes on after it

An epoch is a function of (seed, epoch): which rows it has, in which order, in which batches. So a
state is a few integers, and from one the same steps follow on any number of workers and ranks.

- A sample of weight 0.25 is in every fourth epoch, one of weight 2 twice in each.
- Images and videos have epochs of their own; which of the two a batch is follows from its number.
- What doesn't fill a bucket's last batch is spread over all of that bucket's batches.
- Where longer clips are let in, the epoch of videos begins anew with their new buckets.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from recipes.load import UsageError
from training.batch import Bucket
from training.buckets import Assignment
from training.index import Index

SPARES = 8  # rows that may stand in for broken ones of a batch, besides one for each
STEP = 2.0**-24  # of the hash that decides which epochs a row is in: sums stay exact


@dataclass(frozen=True)
class Planned:
    """One batch to be read: rows of the index."""

    bucket: Bucket
    number: int  # which of its step's
    epoch: int
    rows: np.ndarray
    spares: np.ndarray


@dataclass(frozen=True)
class PlannedStep:
    """One step to be read, over all ranks."""

    number: int
    batches: list[Planned]
    state: dict[str, Any]

    @property
    def samples(self) -> int:
        return sum(len(one.rows) for one in self.batches)

    @property
    def tokens(self) -> int:
        return sum(len(one.rows) * one.bucket.tokens for one in self.batches)


@dataclass
class Pool:
    """Rows that are drawn from together: all images, or all videos of a phase.

    Attributes:
        rows: of the index.
        bucket: [rows], which of `buckets`.
        weight: [rows], how often an epoch has each.
    """

    name: str
    buckets: list[Bucket]
    rows: np.ndarray
    bucket: np.ndarray
    weight: np.ndarray
    tokens: int  # of a batch, at most

    def __len__(self) -> int:
        return len(self.rows)

    def capacity(self, bucket: int) -> int:
        """Samples of a full batch."""
        return max(1, self.tokens // self.buckets[bucket].tokens)

    def times(self, seed: int, epoch: int) -> np.ndarray:
        """[rows]: how often an epoch has each; over many epochs, exactly its weight."""
        shift = (mixed(seed, self.name, 0, self.rows) >> np.uint64(40)).astype(np.float64) * STEP
        weight = self.weight.astype(np.float64)
        times = np.floor((epoch + 1) * weight + shift) - np.floor(epoch * weight + shift)
        return times.astype(np.int64)


@dataclass
class Epoch:
    """One epoch's batches: batch k has order[starts[k]:ends[k]], all of one bucket."""

    order: np.ndarray
    bucket: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    first: np.ndarray = field(repr=False)  # where the bucket's own rows begin and end in `order`
    last: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.starts)


def pool(name: str, index: Index, assignment: Assignment, images: bool, tokens: int) -> Pool:
    """The rows of an assignment that are images, or that are not."""
    is_image = np.array([one.is_image for one in assignment.buckets] + [False])
    chosen = (assignment.number >= 0) & (is_image[assignment.number] == images)
    rows = np.flatnonzero(chosen)
    return Pool(name, assignment.buckets, rows, assignment.number[rows], index.weight[rows], tokens)


def mixed(seed: int, name: str, epoch: int, values: np.ndarray) -> np.ndarray:
    """64 random bits for each value: splitmix64 (Steele et al. 2014) with a hashed start."""
    text = f"{seed}/{name}/{epoch}".encode()
    start = np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
    with np.errstate(over="ignore"):
        z = (values.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + start
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def epoch_of(pool: Pool, seed: int, epoch: int) -> Epoch:
    """Everything that one epoch of a pool has, in order."""
    times = pool.times(seed, epoch)
    rows, bucket = np.repeat(pool.rows, times), np.repeat(pool.bucket, times)
    # copies of a row are told apart by their number
    copy = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
    draw = mixed(seed, pool.name, epoch + 1, rows + (copy << 40))
    sort = np.lexsort((draw, bucket))
    rows, bucket = rows[sort], bucket[sort]
    starts, ends, first, last = [], [], [], []
    edges = np.flatnonzero(np.diff(bucket, prepend=-1, append=-1))
    for low, high in itertools.pairwise(edges) if len(rows) else ():
        batches = -(-(high - low) // pool.capacity(int(bucket[low])))
        cuts = low + np.arange(batches + 1) * (high - low) // batches
        starts.append(cuts[:-1])
        ends.append(cuts[1:])
        first.append(np.full(batches, low))
        last.append(np.full(batches, high))
    if not starts:
        none = np.empty(0, np.int64)
        return Epoch(rows, none, none, none, none, none)
    parts = [np.concatenate(one) for one in (starts, ends, first, last)]
    shuffled = np.argsort(mixed(seed, f"{pool.name} batches", epoch, parts[0]), kind="stable")
    parts = [one[shuffled] for one in parts]
    return Epoch(rows, bucket[parts[0]], *parts)


class Stream:
    """Endless steps, from a state on.

    Args:
        images: the pool of images; may be empty.
        videos: (step, pool) a phase: from which step on which pool is drawn from.
        image_share: of the batches, where there are both.
        batches: a step.
        data: what identifies the samples, so that a state of others is refused.

    Raises:
        UsageError: the state belongs to other data.
    """

    def __init__(
        self,
        images: Pool,
        videos: Sequence[tuple[int, Pool]],
        image_share: float,
        batches: int,
        seed: int,
        data: str = "",
        state: dict[str, Any] | None = None,
    ) -> None:
        self.images, self.videos, self.batches, self.seed = images, videos, batches, seed
        self.share = Fraction(image_share).limit_denominator(10**6)
        fresh = {"step": 0, "batch": 0, "phase": 0, "phase_batch": 0, "data": data}
        self.state = dict(
            state or fresh | {f"{n}_{w}": 0 for n in KINDS for w in ("epoch", "next")}
        )
        if self.state["data"] != data:
            raise UsageError(
                "the data are not those that this run was reading: give it the same shards and "
                "buckets, or resume=never"
            )
        self._epochs: dict[str, tuple[Any, Epoch]] = {}

    def __iter__(self) -> Iterator[PlannedStep]:
        while True:
            yield self.step()

    def step(self) -> PlannedStep:
        """The next step; `state` is then that after it."""
        state = self.state
        phase = max(n for n, (first, _) in enumerate(self.videos) if first <= state["step"])
        if phase != state["phase"]:
            state |= {"phase": phase, "phase_batch": state["batch"]}
            state |= {"video_epoch": state["video_epoch"] + 1, "video_next": 0}
        number = state["step"]
        planned = [self._batch(place) for place in range(self.batches)]
        state["step"] += 1
        return PlannedStep(number, planned, dict(state))

    def _batch(self, place: int) -> Planned:
        state = self.state
        videos = self.videos[state["phase"]][1]
        at = state["batch"] - state["phase_batch"]
        # evenly spaced: after n batches of a phase, n · share rounded down were images
        wants_image = (at + 1) * self.share // 1 > at * self.share // 1
        is_image = len(self.images) > 0 and (wants_image or not len(videos))
        kind, pool = ("image", self.images) if is_image else ("video", videos)
        if not len(pool):
            raise UsageError(f"no sample fits step {state['step']}; plan=true says why")
        epoch = self._epoch(kind, pool)
        while state[f"{kind}_next"] >= len(epoch):
            state |= {f"{kind}_epoch": state[f"{kind}_epoch"] + 1, f"{kind}_next": 0}
            epoch = self._epoch(kind, pool)
        k = state[f"{kind}_next"]
        state |= {f"{kind}_next": k + 1, "batch": state["batch"] + 1}
        start, end = int(epoch.starts[k]), int(epoch.ends[k])
        low, high = int(epoch.first[k]), int(epoch.last[k])
        others = min(SPARES + end - start, high - low - (end - start))
        after = low + (end - low + np.arange(others)) % (high - low)
        return Planned(
            pool.buckets[epoch.bucket[k]],
            place,
            state[f"{kind}_epoch"],
            epoch.order[start:end],
            epoch.order[after],
        )

    def _epoch(self, kind: str, pool: Pool) -> Epoch:
        """The running epoch, planned once."""
        want = (self.state[f"{kind}_epoch"], id(pool))
        if self._epochs.get(kind, (None,))[0] != want:
            self._epochs[kind] = (want, epoch_of(pool, self.seed, want[0]))
        return self._epochs[kind][1]


KINDS = ("image", "video")
