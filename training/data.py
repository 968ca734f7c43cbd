"""Shards to steps: a Lightning data module whose order is planned, its state a few integers.

    data = ShardData(config, "dit", rank, world)
    print(data.table())                          # what each bucket gets, what is dropped and why
    for step in data.train_dataloader(): ...     # training.batch.Step, endless
    for batch in data.val_dataloader(): ...      # training.batch.Batch: held out, always the same

Reader processes are handed rows, not the index, so they start at once and hold nothing. They come
from a fork server, which has no threads and no GPU of the training's to inherit.
"""

import hashlib
import multiprocessing
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from rich.console import RenderableType
from torch.utils.data import DataLoader, Dataset

from model.text import TextEncoder
from model.vae import WanVAE
from recipes.load import UsageError
from recipes.training import Fit
from training import allotment, buckets, cache
from training.batch import Batch, Step
from training.buckets import Assignment, assign
from training.decode import HELD_OUT, Taste
from training.index import Index, gather
from training.reader import Reader, Request, Requests, Tally, Wanted, steadfast, whole
from training.stream import SPARES, Planned, Pool, Stream, mixed, pool

HELD_OUT_DRAW = 0  # seed of which held-out clips are taken: the same whatever the run's seed


class ShardData(LightningDataModule):
    """All data of one recipe.

    Args:
        config: the recipe.
        kind: dit (whose samples need a caption) or vae.
        rank, world: which part of each step this process reads, of how many. Processes that share a
            sequence have the same rank here.

    Raises:
        UsageError: sources are missing, or no sample fits.
    """

    def __init__(self, config: Fit, kind: str, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        self.config, self.kind, self.rank, self.world = config, kind, rank, world
        if config.buckets.batches % world or config.buckets.batches < 1:
            raise UsageError(
                f"buckets.batches={config.buckets.batches}: wants a multiple of the {world} "
                "processes that read"
            )
        conditions = bool(config.data.latents) and any(config.objective.masks.values())
        if config.data.latents and (kind == "vae" or config.image_encoder):
            why = "a VAE is" if kind == "vae" else "CLIP's tokens are not cached, so it is"
            what = "" if kind == "vae" else f" with image_encoder={config.image_encoder}"
            raise UsageError(
                f"data.latents={config.data.latents}{what}: {why} trained on pixels; leave it out"
            )
        if config.data.latents and (config.buckets.zoom != 1 or config.buckets.flip):
            raise UsageError(
                f"data.latents={config.data.latents}: what is encoded can't be zoomed or mirrored; "
                "leave it out, or buckets.zoom and buckets.flip"
            )
        if config.buckets.zoom < 1:
            raise UsageError(f"buckets.zoom={config.buckets.zoom}: wants at least 1")
        if not 0 <= config.data.image_share <= 1:
            raise UsageError(f"data.image_share={config.data.image_share}: wants 0 to 1")
        self.buckets = buckets.buckets(config.buckets)
        if config.data.latents:
            cache.check_made(config)
        if conditions:
            cache.check_conditions(config)
        self.index = gather(config.data, "train")
        self.val_index = gather(config.data, "val")
        self.phases = [
            allotment.Phase(step, *self.pools(self.index, longest))
            for step, longest in buckets.phases(config.buckets)
        ]
        self.assignment = self._shown(self.index)
        for phase in self.phases:
            if not len(phase.images) and not len(phase.videos):
                raise UsageError(f"no sample fits step {phase.step}: {self._why()}")
        self.taste = Taste(
            config.buckets.fps,
            config.data.captions,
            kind == "dit",
            config.seed,
            config.buckets.zoom,
            config.buckets.flip,
            conditions,
        )
        self.state: dict[str, Any] | None = None
        self._reading: WeakSet[Generator] = WeakSet()
        self._held: WeakSet[HeldOut] = WeakSet()
        self._unread: set[str] = set()  # held-out samples, and why

    # --- what there is -------------------------------------------------------------------------

    def _assigned(self, index: Index, longest: int | None = None, **how: bool) -> Assignment:
        captions = self.kind == "dit"
        return assign(
            index, self.buckets, self.config.buckets, captions=captions, longest=longest, **how
        )

    def _shown(self, index: Index) -> Assignment:
        """Where each row goes; single frames of videos too, where they stand in for images."""
        assigned = self._assigned(index)
        kept = np.unique(assigned.number[assigned.number >= 0])
        if self.config.data.frames_as_images and not any(self.buckets[k].is_image for k in kept):
            frames = self._assigned(index, as_images=True)
            rest = assigned.number < 0
            assigned.number[rest], assigned.reason[rest] = frames.number[rest], frames.reason[rest]
        return assigned

    def pools(self, index: Index, longest: int | None = None) -> tuple[Pool, Pool]:
        """Images and videos of an index."""
        tokens = self.config.buckets.tokens
        assigned = self._assigned(index, longest)
        images = pool("image", index, assigned, True, tokens)
        if not len(images) and self.config.data.frames_as_images:
            images = pool("image", index, self._assigned(index, as_images=True), True, tokens)
        return images, pool("video", index, assigned, False, tokens)

    def _why(self) -> str:
        reasons, counts = np.unique(self.assignment.reason, return_counts=True)
        parts = [
            f"{count:,} {buckets.REASONS[reason]}"
            for reason, count in zip(reasons.tolist(), counts.tolist(), strict=True)
            if reason != buckets.KEPT
        ]
        return "; ".join(parts) or "only lengths beyond buckets.growth"

    def table(self) -> RenderableType:
        """What each bucket gets, and what is dropped and why."""
        config = self.config
        held_out = sum(len(one.rows) for one in self._held_out(repeats=False))
        return allotment.table(
            self.index,
            self.assignment,
            self.phases,
            config.buckets.batches,
            config.data.image_share,
            held_out,
            config.buckets.mixed,
            list(dict.fromkeys([*self.index.cut_off, *self.val_index.cut_off])),
        )

    @property
    def tokens_per_step(self) -> float:
        """Mean over the steps of the last phase, over all ranks."""
        return allotment.tokens(self.phases[-1], self.config) * self.config.buckets.batches

    # --- training ------------------------------------------------------------------------------

    def stream(self, state: dict[str, Any] | None = None) -> Stream:
        """The planned steps, from a state on."""
        return Stream(
            self.phases[0].images,
            [(phase.step, phase.videos) for phase in self.phases],
            self.config.data.image_share,
            self.config.buckets.batches,
            self.config.seed,
            self._fingerprint(),
            state,
        )

    def _fingerprint(self) -> str:
        """Of each sample's range in its tar, its weight and its bucket; not of where the tars lie:
        what is moved is the same."""
        digest = hashlib.sha256()
        for phase in self.phases:
            for one in (phase.images, phase.videos):
                for column in (one.rows, one.bucket, one.weight):
                    digest.update(np.ascontiguousarray(column).tobytes())
        for column in (self.index.start, self.index.stop, self.index.source):
            digest.update(column.tobytes())
        some = [self.index.row(0).name, self.index.row(len(self.index) - 1).name]
        digest.update(repr([some, self.buckets]).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    def train_dataloader(self) -> "Steps":
        return Steps(self)

    def requests(self) -> Iterator[Request]:
        """What this rank's readers are to do, from the state on."""
        for step in self.stream(self.state):
            mine = step.batches[self.rank :: self.world]
            batches = [self._wanted(self.index, one) for one in mine]
            yield Request(step.number, batches, step.tokens, step.samples, step.state)

    @staticmethod
    def _wanted(index: Index, planned: Planned) -> Wanted:
        rows, spares = ([index.row(one) for one in some] for some in (planned.rows, planned.spares))
        return Wanted(planned.bucket, planned.number, planned.epoch, rows, spares)

    def loader(
        self, requests: Any, keep: bool = False, reader: Dataset | None = None
    ) -> DataLoader:
        """Runs requests in reader processes; what is read comes in the order of the requests."""
        workers = self.config.data.workers
        on_gpu = self.config.compute.device != "cpu" and torch.cuda.is_available()
        options: dict[str, Any] = {}
        if workers:
            options = {
                "prefetch_factor": max(1, self.config.data.prefetch),
                "multiprocessing_context": fork_server(),
                "persistent_workers": keep,
            }
        return DataLoader(
            reader or Reader(self.taste),
            batch_size=None,
            sampler=Requests(requests),
            num_workers=workers,
            collate_fn=whole,
            worker_init_fn=steadfast,
            pin_memory=on_gpu,
            **options,
        )

    @property
    def has_text(self) -> bool:
        """Whether the captions' features are cached too."""
        latents = self.config.data.latents
        return bool(latents) and cache.has_text(latents)

    def check(self, vae: WanVAE, text: TextEncoder | None = None) -> None:
        """Refuses latents that another VAE encoded, and features of another text encoder.

        Raises:
            UsageError: they are another's.
        """
        if self.config.data.latents:
            cache.check(self.config.data.latents, vae, text)

    def setup(self, stage: str) -> None:
        """Lightning's: before anything is trained, on what latents it would be."""
        module = getattr(self.trainer, "lightning_module", None)
        if getattr(module, "vae", None) is not None:
            self.check(module.vae, module.features.encoder)

    def taken(self, step: Step) -> None:
        """A step that was trained on: from here on a checkpoint goes on."""
        self.state = step.state

    @property
    def broken(self) -> int:
        """How many samples this process could not read since it was started."""
        return (self.state or {}).get("broken", 0) + len(self._unread)

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state["state"] and state["state"] | {"broken": 0}  # another process's

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, Step):
            # Lightning has the next step read ahead; this is the one about to be trained on
            self.taken(batch)
        return batch

    # --- validation ----------------------------------------------------------------------------

    def val_dataloader(self) -> "HeldOut":
        return HeldOut(self)

    def _held_out(self, repeats: bool = True) -> list[Wanted]:
        """This rank's held-out batches: of each bucket the same clips, whatever the seed.

        Every rank has as many; those that only make up for it are marked as repeats.
        """
        planned: list[Wanted] = []
        for one in self.pools(self.val_index):
            draw = mixed(HELD_OUT_DRAW, "held out", 0, one.rows)
            for number, bucket in enumerate(one.buckets):
                mine = np.flatnonzero(one.bucket == number)
                order = one.rows[mine[np.argsort(draw[mine], kind="stable")]]
                chosen, rest = np.split(order, [self.config.validate.clips])
                size = one.capacity(number)
                for at in range(0, len(chosen), size):
                    rows = [self.val_index.row(int(row)) for row in chosen[at : at + size]]
                    spares = [self.val_index.row(int(row)) for row in rest[:SPARES]]
                    planned.append(Wanted(bucket, len(planned), HELD_OUT, rows, spares))
        if not repeats:
            return planned
        short = -len(planned) % self.world
        again = [
            Wanted(one.bucket, one.number, one.epoch, one.rows, one.spares, repeat=True)
            for one in (planned * self.world)[:short]
        ]
        return [*planned, *again][self.rank :: self.world]

    def teardown(self, stage: str | None = None) -> None:
        """Ends all readers' processes, whoever still holds a loader."""
        for generator in list(self._reading):
            generator.close()
        for held in list(self._held):
            held.loader = None


class Steps:
    """Endless steps; `len` is that of the whole recipe, so that nothing is read in vain."""

    def __init__(self, data: ShardData) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.config.optimizer.steps

    def __iter__(self) -> Iterator[Step]:
        walk = self._walk()
        self.data._reading.add(walk)
        return walk

    def _walk(self) -> Generator[Step, None, None]:
        tally = Tally(self.data.config.data.broken_share)
        broken = (self.data.state or {}).get("broken", 0)
        with no_main():
            steps = iter(self.data.loader(self.data.requests()))
        for step in steps:
            tally.count(step)
            broken += len(step.broken)
            step.state["broken"] = broken
            self.data.taken(step)
            yield step


class HeldOut:
    """The held-out batches of a rank; its readers wait for the next validation."""

    def __init__(self, data: ShardData) -> None:
        self.data = data
        self.wanted = data._held_out()
        self.loader: DataLoader | None = None
        data._held.add(self)

    def __len__(self) -> int:
        return len(self.wanted)

    def __iter__(self) -> Iterator[Batch]:
        if self.loader is None:
            requests = [Request(0, [one], 0, 0, {}) for one in self.wanted]
            self.loader = self.data.loader(requests, keep=True)
        tally = Tally(self.data.config.data.broken_share)
        with no_main():
            steps = iter(self.loader)
        for step in steps:
            tally.count(step)
            self.data._unread.update(step.broken)
            yield step.batches[0]


def fork_server() -> Any:
    """How readers are started: from a process that has imported what they need, and no more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.reader"])
    return context


@contextmanager
def no_main() -> Iterator[None]:
    """A process started here doesn't import the command's own file, and all that it imports."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
