"""What each bucket gets, and what is dropped and why: the table before a run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from recipes.training import Fit
from training.buckets import KEPT, REASONS, Assignment
from training.index import Index
from training.stream import Pool

EXAMPLES = 2  # dropped samples that are named for each reason


@dataclass
class Phase:
    """What holds from a step on."""

    step: int
    images: Pool
    videos: Pool


def table(
    index: Index,
    assignment: Assignment,
    phases: list[Phase],
    batches: int,
    image_share: float,
    held_out: int,
    mixed: Sequence[str] = (),
    cut_off: Sequence[str] = (),
) -> RenderableType:
    """The table, and a list of what is dropped.

    Args:
        assignment: with all lengths, those too that no phase lets in.
        batches: a step.
        held_out: clips that are validated with.
        mixed: `buckets.mixed`.
        cut_off: tars that can't be read to their end, and why.
    """
    words = f"each clip is drawn by its key among all {' and '.join(mixed)} that it fills"
    return Group(
        _buckets(phases),
        Text(""),
        *([Text(words)] if mixed else []),
        *_drops(index, assignment),
        *_cut_off(cut_off),
        Text(_steps(phases, batches, image_share)),
        Text(f"{held_out:,} held-out clips to validate with" if held_out else "no held-out clips"),
    )


def _buckets(phases: list[Phase]) -> Table:
    grid = Table(title="Buckets", title_justify="left", title_style="bold", box=None)
    grid.add_column("bucket")
    for name in ("a batch", "tokens"):
        grid.add_column(name, justify="right")
    for phase in phases:
        when = f" from step {phase.step:,}" if len(phases) > 1 else ""
        grid.add_column(f"samples{when}", justify="right")
        grid.add_column("an epoch", justify="right")
    some = phases[-1].videos.buckets
    empty = 0
    for number, bucket in enumerate(some):
        cells, capacity = [], 0
        for phase in phases:
            pool = phase.images if bucket.is_image else phase.videos
            chosen = pool.bucket == number
            count = int(chosen.sum())
            cells += [f"{count:,}", f"{pool.weight[chosen].sum():,.0f}"] if count else ["–", "–"]
            capacity = pool.capacity(number)
        if set(cells) == {"–"}:
            empty += 1
            continue
        grid.add_row(bucket.name, f"{capacity:,}", f"{capacity * bucket.tokens:,}", *cells)
    if empty:
        grid.add_row(f"{empty} others", "", "", *["–", "–"] * len(phases), style="dim")
    return grid


def _drops(index: Index, assignment: Assignment) -> list[RenderableType]:
    dropped = int((assignment.reason != KEPT).sum())
    total = max(1, len(index))
    lines: list[RenderableType] = [
        Text(f"{dropped:,} of {len(index):,} samples are dropped ({dropped / total:.1%})")
    ]
    grid = Table(box=None, show_header=False)
    for _ in range(4):
        grid.add_column(overflow="fold")
    for reason, words in REASONS.items():
        rows = np.flatnonzero(assignment.reason == reason)
        if len(rows):
            some = ", ".join(index.row(int(one)).key for one in rows[:EXAMPLES])
            grid.add_row(f"{len(rows):,}", f"{len(rows) / total:.1%}", words, f"e.g. {some}")
    return [*lines, grid] if dropped else lines


def _cut_off(tars: Sequence[str]) -> list[RenderableType]:
    """One line, if there are any."""
    some = "; ".join(tars[:EXAMPLES]) + ("; …" if len(tars) > EXAMPLES else "")
    what = "tar" if len(tars) == 1 else "tars"
    line = f"{len(tars):,} {what} can't be read to the end, what precedes it is used: {some}"
    return [Text(line)] if tars else []


def _steps(phases: list[Phase], batches: int, image_share: float) -> str:
    """How long an epoch is."""
    parts = []
    last = phases[-1]
    share = image_share if len(last.images) and len(last.videos) else float(bool(len(last.images)))
    for name, pool, part in (("images", last.images, share), ("videos", last.videos, 1 - share)):
        if len(pool) and part:
            count = _batches(pool)
            steps = count / (batches * part)
            parts.append(f"an epoch of {name}: {count:,} batches, {steps:,.0f} steps")
    return "; ".join(parts)


def _batches(pool: Pool) -> int:
    """About how many an epoch has."""
    weight = np.bincount(pool.bucket, pool.weight, len(pool.buckets))
    return sum(int(np.ceil(w / pool.capacity(n))) for n, w in enumerate(weight) if w)


def tokens(phase: Phase, config: Fit) -> float:
    """Mean tokens of a batch."""
    share = config.data.image_share
    if not len(phase.images) or not len(phase.videos):
        share = float(bool(len(phase.images)))
    total = 0.0
    for pool, part in ((phase.images, share), (phase.videos, 1 - share)):
        if len(pool) and part:
            weight = np.bincount(pool.bucket, pool.weight, len(pool.buckets))
            seen = sum(w * one.tokens for w, one in zip(weight, pool.buckets, strict=True))
            total += part * seen / _batches(pool)
    return total
