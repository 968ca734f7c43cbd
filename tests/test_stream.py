"""Which samples make up which step: nobody twice, nobody lost, whatever happens to the run."""

import json

import numpy as np
import pytest

from recipes.load import UsageError, load
from recipes.training import Buckets
from tests.rows_of import index
from training import buckets
from training.buckets import assign
from training.index import Index
from training.stream import PlannedStep, Pool, Stream, epoch_of, mixed, pool


def settings(*arguments: str) -> Buckets:
    given = ["sizes=64x64", "frames=1,9,17", "tokens=480"]  # 10 clips of 9 frames, 6 of 17
    return load(Buckets, [*given, *arguments])


def pools(rows: Index, config: Buckets, longest: int | None = None, **how) -> tuple[Pool, Pool]:
    some = buckets.buckets(config)
    found = assign(rows, some, config, captions=True, longest=longest, **how)
    return tuple(pool(n, rows, found, n == "image", config.tokens) for n in ("image", "video"))


def stream(rows: Index, config: Buckets | None = None, seed: int = 0, state=None, **how) -> Stream:
    config = config or settings()
    share, batches = how.get("image_share", 0.2), how.get("batches", 1)
    some = [(at, pools(rows, config, longest)) for at, longest in buckets.phases(config)]
    videos = [(at, one[1]) for at, one in some]
    return Stream(some[0][1][0], videos, share, batches, seed, how.get("data", ""), state)


def steps(some: Stream, count: int) -> list[PlannedStep]:
    return [some.step() for _ in range(count)]


def epoch(some: Stream, kind: str = "video") -> list[int]:
    """The rows of one epoch from the state on."""
    first, found = some.state[f"{kind}_epoch"], []
    while True:
        step = some.step()
        for batch in step.batches:
            if batch.bucket.is_image == (kind == "image"):
                if batch.epoch != first:
                    return found
                found += batch.rows.tolist()


LENGTHS = (9, 9, 9, 17, 20, 40)


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("seed", [0, 7])
def test_an_epoch_has_everyone_once(batches, seed):
    many = index(1003, frames=LENGTHS)
    found = epoch(stream(many, seed=seed, batches=batches))
    assert sorted(found) == list(range(1003))
    assert found != sorted(found)


def test_an_epoch_is_shuffled_anew_and_seeds_differ():
    many = index(200)
    first = stream(many)
    one, two = epoch(first), epoch(stream(many, seed=1))
    assert sorted(one) == sorted(two)
    assert one != two
    later = epoch_of(first.videos[0][1], 0, 1).order.tolist()
    assert sorted(later) == sorted(one)
    assert later != one


def test_a_batch_is_of_one_bucket_and_never_above_its_tokens():
    many = index(500, frames=(*LENGTHS, 1), media=(*["mp4"] * 6, "jpg"))
    config = settings("sizes=64x64,128x64")
    lengths = {}
    for step in steps(stream(many, config, image_share=0.3), 120):
        for batch in step.batches:
            assert 0 < batch.bucket.tokens * len(batch.rows) <= config.tokens
            assert all(many.frames[batch.rows] >= batch.bucket.frames)
            lengths.setdefault(batch.bucket, set()).add(len(batch.rows))
        assert step.tokens == sum(len(one.rows) * one.bucket.tokens for one in step.batches)
    assert len(lengths) == 3
    # what is over is spread: no batch is more than one sample short of another
    assert all(max(some) - min(some) <= 1 for some in lengths.values())


def test_from_any_state_the_same_steps_follow():
    many = index(90, frames=(*LENGTHS, 1), media=(*["mp4"] * 6, "jpg"), weight=(1, 0.5, 2))
    config = settings("growth.0=9", "growth.20=17")
    whole = steps(stream(many, config, batches=2), 60)
    for at in (0, 1, 7, 19, 20, 21, 41, 59):
        state = json.loads(json.dumps(whole[at - 1].state)) if at else None
        again = steps(stream(many, config, state=state, batches=2), 60 - at)
        for one, two in zip(whole[at:], again, strict=True):
            assert (one.number, one.state) == (two.number, two.state)
            for a, b in zip(one.batches, two.batches, strict=True):
                assert (a.bucket, a.number, a.epoch) == (b.bucket, b.number, b.epoch)
                assert a.rows.tolist() == b.rows.tolist()
                assert a.spares.tolist() == b.spares.tolist()


def test_a_run_whose_ranks_change_in_the_midst_of_an_epoch_shows_everyone_once():
    many = index(437, frames=LENGTHS)
    seen, state = [], None
    for world, count in ((1, 3), (4, 5), (2, 2), (8, 100)):
        some = stream(many, state=state, batches=8)
        for _ in range(count):
            if some.state["video_epoch"]:
                break
            step = some.step()
            parts = [step.batches[rank::world] for rank in range(world)]
            assert {len(part) for part in parts} == {8 // world}
            mine = [batch for part in parts for batch in part if batch.epoch == 0]
            seen += [row for batch in mine for row in batch.rows.tolist()]
            state = step.state
    assert sorted(seen) == list(range(437))


def test_a_weight_is_the_share_of_epochs_that_have_a_sample():
    weights = (0.25, 1.0, 0.1, 2.0, 0.0, 1.5, 1 / 3)
    many = index(70, weight=weights)
    some = stream(many).videos[0][1]
    counts = np.zeros(70, int)
    runs = []
    for number in range(120):
        order = epoch_of(some, 0, number).order
        times = np.bincount(order, minlength=70)
        runs.append(times)
        counts += times
    expected = np.array(weights * 10) * 120
    assert np.abs(counts - expected).max() <= 1
    # spread evenly: of any four epochs, one has a sample of weight a quarter
    quarters = np.stack(runs)[:, ::7]
    windows = np.stack([quarters[k : k + 4].sum(0) for k in range(117)])
    assert (windows == 1).all()
    # not all of them in the same epoch
    assert quarters.sum(1).max() < 10


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 1 / 3, 0.5, 0.75, 1.0])
def test_the_share_of_images_is_exact_at_every_moment(share):
    many = index(100, frames=(9, 1), media=("mp4", "jpg"))
    some = stream(many, image_share=share, batches=3)
    images = 0
    for count, step in enumerate(steps(some, 60)):
        for at, batch in enumerate(step.batches):
            images += batch.bucket.is_image
            assert images == int((count * 3 + at + 1) * share + 1e-9)


def test_images_and_videos_have_epochs_of_their_own():
    many = index(300, frames=(9, 9, 1), media=("mp4", "mp4", "png"))
    is_image = many.is_image
    first = stream(many, image_share=0.5)
    assert sorted(epoch(first, "image")) == np.flatnonzero(is_image).tolist()
    assert sorted(epoch(stream(many, image_share=0.5))) == np.flatnonzero(~is_image).tolist()


@pytest.mark.parametrize("media", ["mp4", "jpg"])
def test_where_there_is_one_kind_alone_every_batch_is_of_it(media):
    many = index(30, frames=(9 if media == "mp4" else 1,), media=(media,))
    found = steps(stream(many, image_share=0.5), 8)
    assert {batch.bucket.is_image for one in found for batch in one.batches} == {media == "jpg"}


def test_longer_clips_are_let_in_from_their_step_on():
    many = index(200, frames=(9, 17, 40, 1), media=("mp4", "mp4", "mp4", "jpg"))
    config = settings("growth.0=1", "growth.6=9", "growth.12=17")
    found = steps(stream(many, config, image_share=0.25), 40)
    longest = [max(batch.bucket.frames for batch in one.batches) for one in found]
    assert set(longest[:6]) == {1}
    assert set(longest[6:12]) == {1, 9}
    assert set(longest[12:]) == {1, 9, 17}
    # images go on with their epoch
    images = [b for one in found for b in one.batches if b.bucket.is_image and b.epoch == 0]
    rows = [row for batch in images for row in batch.rows.tolist()]
    assert len(rows) == len(set(rows))


def test_after_growth_an_epoch_has_everyone_once():
    many = index(60, frames=(9, 17))
    config = settings("growth.0=9", "growth.3=17")
    some = stream(many, config)
    before, (step,) = steps(some, 3), steps(some, 1)
    found = step.batches[0].rows.tolist() + epoch(some)
    assert sorted(found) == list(range(60))
    assert {batch.bucket.frames for one in before for batch in one.batches} == {9}


def test_spares_are_the_next_rows_of_the_same_bucket():
    many = index(100, frames=LENGTHS)
    for step in steps(stream(many), 12):
        for batch in step.batches:
            taken = batch.rows.tolist()
            assert not set(taken) & set(batch.spares.tolist())
            assert len(set(batch.spares.tolist())) == len(batch.spares)
            assert all(many.frames[batch.spares] >= batch.bucket.frames)
    lonely = stream(index(3)).step().batches[0]
    assert len(lonely.rows) == 3
    assert len(lonely.spares) == 0


def test_the_state_of_other_data_is_refused():
    state = stream(index(20), data="these").step().state
    with pytest.raises(UsageError, match="resume=never"):
        stream(index(20), data="those", state=state)


def test_the_hash_is_even_and_its_rows_are_independent():
    bits = mixed(0, "video", 3, np.arange(100_000))
    assert len(np.unique(bits)) == 100_000
    means = [float((bits >> np.uint64(k) & np.uint64(1)).mean()) for k in range(64)]
    assert max(abs(one - 0.5) for one in means) < 0.01
    steps = np.corrcoef(bits[:-1].astype(float), bits[1:].astype(float))[0, 1]
    assert abs(steps) < 0.02
    assert not np.array_equal(bits, mixed(0, "video", 4, np.arange(100_000)))
    assert not np.array_equal(bits, mixed(0, "image", 3, np.arange(100_000)))
