"""What can't be read is replaced, counted and named; where it is too much, the run stops."""

from pathlib import Path

import pytest
import torch

from tests import numbered
from training import reader
from training.batch import Bucket, Step
from training.decode import Taste
from training.reader import BrokenDataError, Reader, Request, Tally, Wanted
from training.tars import Row

NINE = Bucket(64, 64, 9)


def row(place: Path, key: str) -> Row:
    return Row(key, key, str(place), 0, place.stat().st_size, "mp4", 0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Row]:
    folder = tmp_path_factory.mktemp("clips")
    found = {}
    for k in range(4):
        media = {f"k{k}.mp4": numbered.clip(9, start=k), f"k{k}.txt": f"clip {k}"}
        found[f"k{k}"] = row(numbered.tar(folder / f"{k}.tar", media), f"k{k}")
    whole = numbered.clip(9)
    bad = {
        "cut": {"cut.mp4": whole[: len(whole) // 2], "cut.txt": "x"},
        "mute": {"mute.mp4": whole},
        "none": {"none.txt": "x"},
    }
    for name, members in bad.items():
        found[name] = row(numbered.tar(folder / f"{name}.tar", members), name)
    found["gone"] = Row("gone", "gone", str(folder / "gone.tar"), 0, 512, "mp4", 0)
    return found


def asked(clips, rows: list[str], spares: list[str]) -> Step:
    rows, spares = ([clips[name] for name in some] for some in (rows, spares))
    wanted = Wanted(NINE, 0, 0, rows, spares)
    return Reader(Taste())[Request(5, [wanted], len(rows) * NINE.tokens, len(rows), {"step": 6})]


def test_a_batch_holds_its_samples_in_their_order(clips):
    step = asked(clips, ["k2", "k0", "k3"], [])
    batch = step.batches[0]
    assert (step.number, step.state, step.broken, step.lost) == (5, {"step": 6}, [], 0)
    assert batch.keys == ["k2", "k0", "k3"]
    assert batch.prompts == ["clip 2", "clip 0", "clip 3"]
    assert batch.video.shape == (3, 3, 9, 64, 64)
    assert batch.video.dtype == torch.uint8
    assert batch.video.is_contiguous()
    assert [numbered.numbers(one)[0] for one in batch.video] == [2, 0, 3]
    assert batch.tokens == step.tokens


@pytest.mark.parametrize("bad", ["cut", "mute", "none", "gone"])
def test_a_broken_sample_is_replaced_by_the_next_of_its_bucket_and_named(clips, bad):
    step = asked(clips, ["k0", bad, "k1"], ["k2", "k3"])
    assert step.batches[0].keys == ["k0", "k2", "k1"]
    assert [numbered.numbers(one)[0] for one in step.batches[0].video] == [0, 2, 1]
    assert len(step.broken) == 1
    assert step.broken[0].startswith(f"{bad} (")
    assert step.lost == 0


def test_a_broken_spare_is_passed_over(clips):
    step = asked(clips, ["cut", "gone"], ["mute", "k3", "none", "k1"])
    assert step.batches[0].keys == ["k3", "k1"]
    assert len(step.broken) == 4


def test_where_no_spare_is_left_others_of_the_batch_are_read_twice(clips):
    step = asked(clips, ["cut", "k0", "none", "k1", "gone"], ["mute"])
    assert sorted(step.batches[0].keys) == ["k0", "k0", "k0", "k1", "k1"]
    assert step.lost == 0
    assert len(step.broken) == 4
    Tally(1.0).count(step)


def test_where_nothing_of_the_batch_can_be_read_the_run_stops(clips):
    step = asked(clips, ["cut", "none"], ["mute"])
    assert step.batches[0].keys == []
    assert (step.lost, len(step.broken)) == (2, 3)
    with pytest.raises(BrokenDataError, match=r"cut \("):
        Tally(1.0).count(step)


def counted(share: float, broken: int, seen: int) -> None:
    """A run of 10 a step whose broken samples come first."""
    tally = Tally(share)
    for at in range(0, seen, 10):
        some = min(10, max(0, broken - at))
        step = Step(
            0, [[None] * (10 - some)], 0, 0, {}, [f"key{k} (tar): why" for k in range(some)]
        )
        tally.count(step)


@pytest.mark.parametrize(
    ("share", "broken", "seen"),
    [(0.01, 1, 20), (0.01, 2, 100), (0.0, 0, 1000), (0.1, 3, 100), (1.0, 500, 500)],
)
def test_a_run_goes_on_while_the_share_is_what_is_allowed(share, broken, seen):
    counted(share, broken, seen)


@pytest.mark.parametrize(
    ("share", "broken", "seen"), [(0.01, 20, 20), (0.01, 50, 1000), (0.0, 2, 20), (0.1, 90, 200)]
)
def test_a_run_stops_past_the_share_and_names_some(share, broken, seen):
    with pytest.raises(BrokenDataError, match=r"broken_share=.*: key0 \(tar\): why; key1"):
        counted(share, broken, seen)


def test_one_broken_sample_in_the_first_step_stops_nothing():
    tally = Tally(0.0)
    tally.count(Step(0, [[None] * 9], 0, 0, {}, ["one (tar): why"]))


def test_a_rate_below_the_share_hardly_ever_stops_a_run_and_one_above_it_always_does():
    generator = torch.Generator().manual_seed(0)

    def stops(rate: float) -> bool:
        tally = Tally(0.01)
        for _ in range(400):
            broken = int((torch.rand(32, generator=generator) < rate).sum())
            step = Step(0, [[None] * (32 - broken)], 0, 0, {}, ["k (tar): why"] * broken)
            try:
                tally.count(step)
            except BrokenDataError:
                return True
        return False

    assert sum(stops(0.005) for _ in range(40)) <= 1
    assert all(stops(0.03) for _ in range(20))


def test_memory_that_travels_holds_what_was_put_in():
    found = reader.shared((2, 3), torch.float32)
    found.fill_(7)
    assert found.tolist() == [[7.0] * 3] * 2
