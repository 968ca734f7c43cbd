"""Planned steps to tensors: what a reader's process does, and the count of what can't be read.

A sample that can't be used is replaced by the next row of its bucket, told with its step, and
counted; where more of them fail than `data.broken_share` allows for, the run stops.
"""

import atexit
import math
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler, get_worker_info

from training.batch import MEDIA, Batch, Bucket, Step
from training.decode import BrokenError, Decoded, Taste, decode
from training.tars import Row

SEEN = 20  # samples before a share of them means anything
NAMED = 5  # broken samples that are named when a run stops


class BrokenDataError(Exception):
    """Too many samples can't be read; one line that names some."""


@dataclass(frozen=True)
class Wanted:
    """One batch to read."""

    bucket: Bucket
    number: int
    epoch: int
    rows: list[Row]
    spares: list[Row]
    repeat: bool = False


@dataclass(frozen=True)
class Request:
    """One rank's part of a step, for a reader's process."""

    number: int
    batches: list[Wanted]
    tokens: int
    samples: int
    state: dict[str, Any]


class Requests(Sampler):
    """What the readers are to do, in order."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


class Reader(Dataset):
    """Reads what is asked for; a request in, a step out."""

    def __init__(self, taste: Taste) -> None:
        self.taste = taste

    def __getitem__(self, request: Request) -> Step:
        step = Step(request.number, [], request.tokens, request.samples, request.state)
        for wanted in request.batches:
            step.batches.append(self.batch(wanted, step))
        return step

    def batch(self, wanted: Wanted, step: Step) -> Batch:
        """One batch. In the place of what is broken come spares and, when there are no more, others
        of the batch a second time: a small bucket's broken clip stops nothing if it has others."""
        bad: set[str] = set()
        spares, size = chain(wanted.spares, again(wanted.rows, bad)), len(wanted.rows)
        keys: list[str] = []
        samples: list[Decoded] = []
        stacks: dict[str, Tensor] = {}
        for row in wanted.rows:
            sample, row = self.sample(row, spares, wanted, stacks, step, bad)
            if sample is None:
                step.lost += 1
                continue
            for name in MEDIA:
                tensor = getattr(sample, name)
                if tensor is None:
                    continue
                if name not in stacks:
                    stacks[name] = shared((size, *tensor.shape), tensor.dtype)
                stacks[name][len(samples)] = tensor
                setattr(sample, name, None)  # its memory is free again
            keys.append(row.key)
            samples.append(sample)
        texts = [one.text for one in samples if one.text is not None]
        return Batch(
            bucket=wanted.bucket,
            keys=keys,
            prompts=[one.prompt for one in samples],
            tiers=[one.tier for one in samples],
            scores=[one.scores for one in samples],
            number=wanted.number,
            repeat=wanted.repeat,
            text=pad_sequence(texts, batch_first=True) if len(texts) == len(keys) > 0 else None,
            **{name: stack[: len(samples)] for name, stack in stacks.items()},
        )

    def sample(
        self,
        row: Row | None,
        spares: Iterator[Row],
        wanted: Wanted,
        stacks: dict[str, Tensor],
        step: Step,
        bad: set[str],
    ) -> tuple[Decoded | None, Row]:
        """A row's sample, or the first of the spares that can be read, or None.

        Args:
            bad: keys that couldn't be read; it adds to them.
        """
        while row is not None:
            if row.key not in bad:  # it may have failed in another's place
                try:
                    sample = decode(row, wanted.bucket, self.taste, wanted.epoch)
                    for name, stack in stacks.items():
                        found = getattr(sample, name)
                        if found is None or found.shape != stack.shape[1:]:
                            raise BrokenError(f"its {name} doesn't fit its batch")
                    return sample, row
                except BrokenError as error:
                    step.broken.append(f"{row.key} ({row.place}): {error}")
                    bad.add(row.key)
            row = next(spares, None)
        return None, wanted.rows[0]


def again(rows: list[Row], bad: set[str]) -> Iterator[Row]:
    """Rows over and over, but for the bad ones; ends when all are bad."""
    while any(row.key not in bad for row in rows):
        yield from (row for row in rows if row.key not in bad)


def allowed(share: float, seen: int) -> float:
    """How many of so many may be broken where the share is allowed for.

    Three deviations of a count whose mean is the share, so that bad luck stops nothing.
    """
    expected = share * seen
    return expected + 3 * math.sqrt(expected) + 1


def shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor that travels from a reader's process without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    count = math.prod(shape)
    size = count * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(size, device="cpu")
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)


def steadfast(number: int) -> None:
    """Reads on when training is told to stop: the signal goes to its readers too, and the step that
    they are at is still to be trained on and saved. They end when it ends, however it does."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    # PyTorch's own watch is over the parent, which is the fork server: that lives while they live
    Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(training: multiprocessing.process.BaseProcess) -> None:
    training.join()
    os._exit(1)


@atexit.register
def dismiss() -> None:
    """Ends the readers that are left when training exits. Python asks its daemons to end by a
    signal that they ignore, and would wait for them without end."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def whole(step: Step) -> Step:
    """A step is no list of samples that the loader would have to put together."""
    return step


@dataclass
class Tally:
    """How many samples were read, and which could not be."""

    share: float  # of broken ones, from which on the run stops
    seen: int = 0
    broken: int = 0
    named: list[str] = field(default_factory=list)  # the first few broken ones, and why

    def count(self, step: Step) -> None:
        """Adds a step.

        Raises:
            BrokenDataError: more are broken than the share allows for, chance included, or a batch
                could not be filled.
        """
        self.add(sum(map(len, step.batches)), step.broken, step.lost)

    def add(self, read: int, broken: list[str], lost: int = 0) -> None:
        """Adds samples that were read, those that could not be, and why; raises as `count` does."""
        self.broken += len(broken)
        self.named += [one for one in broken if one not in self.named]
        self.named = self.named[: NAMED + 1]
        self.seen += read + len(broken)
        if not lost and (self.seen < SEEN or self.broken <= allowed(self.share, self.seen)):
            return
        why = f"more than data.broken_share={self.share:g} allows"
        if lost:
            why = "and no other of their batch or bucket could stand in"
        some = "; ".join(self.named[:NAMED]) + ("; …" if len(self.named) > NAMED else "")
        raise BrokenDataError(f"{self.broken} of {self.seen} samples can't be read, {why}: {some}")
