"""Shards to steps through the real loader: by ids, over workers, ranks, restarts and faults."""

import io
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console

from recipes.load import UsageError
from tests import numbered
from training import tars
from training.batch import Step
from training.data import ShardData
from training.reader import BrokenDataError

TRAIN, IMAGES, VAL = 23, 6, 5
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("curated") / "tiny"
    clips = [numbered.clip(9 + k % 3, start=k) for k in range(TRAIN)]
    stills = [numbered.image(100 + k, ("png", "jpg")[k % 2]) for k in range(IMAGES)]
    numbered.curated(folder, [*clips, *stills], "train", samples=5)
    numbered.curated(folder, [numbered.clip(9, start=200 + k) for k in range(VAL)], "val")
    return folder


def loaded(profile: Path, *arguments: str, kind: str = "dit", rank=0, world=1) -> ShardData:
    given = ["buckets.batches=2", *arguments]
    return ShardData(numbered.config(*given, shards=profile), kind, rank, world)


def taken(data: ShardData, count: int) -> list[Step]:
    """So many steps from the state on."""
    return [step for _, step in zip(range(count), data.train_dataloader(), strict=False)]


def keys(steps: list[Step], images: bool | None = None) -> list[str]:
    return [
        key
        for step in steps
        for batch in step.batches
        if images in (None, batch.bucket.is_image)
        for key in batch.keys
    ]


def test_a_sample_is_what_its_key_says_and_its_caption_is_its_own(profile):
    for step in taken(loaded(profile), 10):
        for batch in step.batches:
            for key, prompt, video in zip(batch.keys, batch.prompts, batch.video, strict=True):
                number = int(key[:3])
                first = numbered.numbers(video)[0]
                start = number if number < TRAIN else 100 + number - TRAIN
                assert first in range(start, start + (3 if number < TRAIN else 1))
                assert key in prompt
            assert batch.video.shape[1:] == (3, batch.bucket.frames, 64, 64)
            assert batch.tiers == ["optimal"] * len(batch)
            assert batch.scores[0]["flow_mean"] == 0.25
        assert step.tokens == sum(batch.tokens for batch in step.batches)


def test_an_epoch_has_every_clip_once_and_every_image_once(profile):
    steps = taken(loaded(profile, "data.image_share=0.25"), 12)
    clips = Counter(keys(steps, images=False))
    seen = keys(steps, images=False)[:TRAIN]
    assert sorted(seen) == sorted(clips)
    assert len(clips) == TRAIN
    assert len(set(keys(steps, images=True)[:IMAGES])) == IMAGES


def test_from_a_saved_state_the_same_tensors_follow(profile):
    whole = taken(loaded(profile), 9)
    data = loaded(profile)
    taken(data, 4)
    saved = data.state_dict()
    again = loaded(profile)
    again.load_state_dict(saved)
    for one, two in zip(whole[4:], taken(again, 5), strict=True):
        assert (one.number, one.state) == (two.number, two.state)
        for a, b in zip(one.batches, two.batches, strict=True):
            assert (a.keys, a.prompts, a.number) == (b.keys, b.prompts, b.number)
            assert torch.equal(a.video, b.video)


def test_ranks_that_change_between_restarts_lose_nobody_and_show_nobody_twice(profile):
    state, seen = None, []
    for world, count in ((1, 1), (2, 1), (1, 1)):
        parts = []
        for rank in range(world):
            data = loaded(profile, "data.image_share=0", rank=rank, world=world)
            if state:
                data.load_state_dict(state)
            steps = taken(data, count)
            parts.append((keys(steps), data.state_dict()))
        state = parts[0][1]
        assert all(one == state for _, one in parts)
        seen += [key for some, _ in parts for key in some]
    assert len(seen) == len(set(seen)) == TRAIN  # 3 steps of 2 batches are an epoch


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(profile):
    alone = taken(loaded(profile), 7)
    for workers in (1, 2):
        data = loaded(profile, f"data.workers={workers}", "data.prefetch=2")
        for one, two in zip(alone, taken(data, 7), strict=True):
            assert one.state == two.state
            for a, b in zip(one.batches, two.batches, strict=True):
                assert a.keys == b.keys
                assert torch.equal(a.video, b.video)
        # what is read ahead is not taken
        assert data.state_dict()["state"]["step"] == 7


@pytest.mark.slow
def test_workers_may_change_in_the_midst_of_an_epoch(profile):
    state, seen = None, []
    for workers, count in ((2, 1), (0, 1), (1, 1)):
        data = loaded(profile, "data.image_share=0", f"data.workers={workers}")
        if state:
            data.load_state_dict(state)
        seen += keys(taken(data, count))
        state = data.state_dict()
    assert len(seen) == len(set(seen)) == TRAIN


@pytest.mark.slow
def test_no_reader_s_process_outlives_the_training(profile):
    data = loaded(profile, "data.workers=1")
    steps, held_out = iter(data.train_dataloader()), data.val_dataloader()
    next(steps)
    assert len(list(held_out)) == 2
    readers = [held_out.loader._iterator._workers[0]]
    readers += [steps.gi_frame.f_locals["steps"]._workers[0]]
    assert all(one.is_alive() for one in readers)
    data.teardown()
    for one in readers:
        one.join(20)
        assert not one.is_alive()
    assert len(list(held_out)) == 2  # and may be begun anew
    data.teardown()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit('stopped')"])
def test_readers_end_with_training_however_it_ends(profile, end):
    code = f"""
import os, sys
from tests import numbered
from training.data import ShardData
data = ShardData(numbered.config("data.workers=2", shards={str(profile)!r}), "dit")
steps = iter(data.train_dataloader())
next(steps)
print(*[one.pid for one in steps.gi_frame.f_locals["steps"]._workers], flush=True)
{end}
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    readers = [int(pid) for pid in done.stdout.split()]
    assert len(readers) == 2, done.stderr
    until = time.monotonic() + 30
    while any(map(alive, readers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, readers))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_a_reader_s_process_imports_neither_lightning_nor_the_training():
    """It starts in the time that PyTorch takes to import."""
    code = "import sys, training.reader; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert "torch" in names
    assert not {"lightning", "training.data", "training.module", "duckdb", "webdataset"} & {*names}


def test_held_out_clips_are_covered_once_by_all_ranks_together(profile):
    alone = list(loaded(profile).val_dataloader())
    everyone = [f"{k:03d}-val" for k in range(VAL)]
    assert sorted(key for batch in alone for key in batch.keys) == everyone
    for world in (2, 4):
        config = ["buckets.batches=4", "buckets.tokens=48"]  # one clip a batch
        parts = [
            list(loaded(profile, *config, rank=rank, world=world).val_dataloader())
            for rank in range(world)
        ]
        assert len({len(part) for part in parts}) == 1  # or ranks would wait for one another
        counted = [batch for part in parts for batch in part if not batch.repeat]
        assert sorted(key for batch in counted for key in batch.keys) == everyone
        assert len({batch.number for batch in counted}) == len(counted)


def test_held_out_clips_are_the_same_every_time_and_for_every_seed(profile):
    data = loaded(profile, "validate.clips=3")
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    other = list(loaded(profile, "validate.clips=3", "seed=5").val_dataloader())
    assert sum(map(len, first)) == 3
    for one in (second, other):
        for a, b in zip(first, one, strict=True):
            assert (a.keys, a.prompts) == (b.keys, b.prompts)
            assert torch.equal(a.video, b.video)


def test_videos_stand_in_for_images_where_they_are_told_to(profile, tmp_path):
    clips = numbered.curated(tmp_path / "clips", [numbered.clip(9, start=k) for k in range(4)])
    with pytest.raises(UsageError, match="no sample fits step 0: 4 a video, and every length is 1"):
        loaded(clips, "buckets.frames=1")
    data = loaded(clips, "buckets.frames=1", "data.frames_as_images=true")
    found = taken(data, 8)
    starts = {numbered.numbers(video)[0] for step in found for video in step.batches[0].video}
    assert found[0].batches[0].video.shape[2] == 1
    assert len(starts) > 5  # any of their frames
    shown = Console(file=io.StringIO(), width=200)
    shown.print(data.table())
    assert "0 of 4 samples are dropped" in shown.file.getvalue()
    # where there are images, they are taken
    mixed = loaded(profile, "data.frames_as_images=true", "data.image_share=1")
    assert {key[:3] >= f"{TRAIN:03d}" for key in keys(taken(mixed, 3))} == {True}


def test_a_vae_needs_no_caption_and_a_dit_does(tmp_path):
    numbered.curated(tmp_path / "tiny", [numbered.clip(9)] * 2, captions=())
    assert len(loaded(tmp_path / "tiny", kind="vae").assignment) == 2
    taken(loaded(tmp_path / "tiny", kind="vae"), 1)
    with pytest.raises(UsageError, match="2 has no caption"):
        loaded(tmp_path / "tiny", kind="dit")


def test_the_table_is_text(profile):
    out = io.StringIO()
    Console(file=out, width=100).print(loaded(profile).table())
    text = out.getvalue()
    assert "64x64x9" in text
    assert f"{VAL} held-out clips to validate with" in text
    assert f"0 of {TRAIN + IMAGES} samples are dropped" in text


def test_broken_samples_are_replaced_and_counted_and_too_many_stop_the_run(profile, tmp_path):
    clips = numbered.curated(tmp_path / "tiny", [numbered.clip(9, start=k) for k in range(20)])
    tar = clips / "train" / "00001.tar"
    whole = bytearray(tar.read_bytes())
    at = whole.index(b"mdat") + 40
    tar.write_bytes(whole[:at] + b"\0\1\2\3" + whole[at + 4 :])  # one of 20
    steps = taken(loaded(clips, "data.broken_share=0.2"), 10)
    broken = [one for step in steps for one in step.broken]
    assert {one.split()[0] for one in broken} == {"004-train"}
    assert "004-train" not in keys(steps)
    assert all(len(batch) == 4 for step in steps for batch in step.batches)
    tar.write_bytes(b"\0" * len(whole))  # four of 20
    with pytest.raises(BrokenDataError, match=r"broken_share=0.01 allows: 00[4-7]-train \(.*tar\)"):
        taken(loaded(clips), 40)
    tar.unlink()
    tars._opened.cache_clear()  # which still has it open
    with pytest.raises(BrokenDataError, match="No such file"):
        taken(loaded(clips), 40)


def test_broken_samples_are_counted_once_they_are_trained_on(tmp_path):
    folder = tmp_path / "tiny"
    numbered.curated(folder, [numbered.clip(9, start=k) for k in range(20)])
    numbered.curated(folder, [numbered.clip(9, start=k) for k in range(40, 43)], "val", samples=1)
    # one clip a batch, two a step; two are held out, the third may stand in
    given = ["data.broken_share=0.5", "buckets.tokens=48", "validate.clips=2"]
    held = int(loaded(folder, *given)._held_out()[0].rows[0].key[:3])
    for tar in (folder / "train" / "00001.tar", folder / "val" / f"{held:05d}.tar"):
        tar.write_bytes(tar.read_bytes().replace(b"mdat", b"mbad", 1))
    counts, data = [], loaded(folder, *given)
    for step in taken(data, 20):  # two epochs
        counts.append((counts or [0])[-1] + len(step.broken))
    assert data.broken == counts[-1] == 2
    at = 4 + counts[4:].index(1)  # stopped between the two
    first = loaded(folder, *given)
    taken(first, at + 1)
    saved = first.state_dict()
    assert first.broken == 1
    again = loaded(folder, *given)
    assert again.broken == 0
    again.load_state_dict(saved)
    assert again.broken == 0  # the module knows those before
    taken(again, 20 - at - 1)
    assert again.broken == 1
    # what Lightning has read ahead counts once it is trained on
    steps = iter(first.train_dataloader())
    one, two = next(steps), next(steps)
    two.state["broken"] = 7
    first.on_before_batch_transfer(one, 0)
    assert first.broken == 1 + len(one.broken)
    # held-out ones are the same at every validation
    for _ in range(2):
        assert sum(map(len, again.val_dataloader())) == 2
        assert again.broken == 2


def test_a_state_of_other_shards_is_refused(profile, tmp_path):
    data = loaded(profile)
    taken(data, 1)
    other = loaded(numbered.curated(tmp_path / "tiny", [numbered.clip(9)] * 3))
    other.load_state_dict(data.state_dict())
    with pytest.raises(UsageError, match="resume=never"):
        taken(other, 1)
    # the same shards elsewhere are the same
    (tmp_path / "moved").symlink_to(profile)
    moved = loaded(tmp_path / "moved")
    moved.load_state_dict(data.state_dict())
    taken(moved, 1)


@pytest.mark.parametrize("arguments", [["buckets.batches=3"], ["data.image_share=1.5"]])
def test_a_mistake_is_told_before_anything_is_read(profile, arguments):
    with pytest.raises(UsageError):
        loaded(profile, *arguments, world=2)
