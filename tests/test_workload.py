"""What a plan takes a recipe's batches to be is what comes of clips that fill them."""

from collections import Counter

import pytest

from recipes.load import load
from recipes.training import Fit
from tests.rows_of import index
from training import workload
from training.buckets import assign
from training.stream import epoch_of, pool

KEYS = ("buckets.sizes=64x64,128x64,256p", "buckets.frames=1,5,9,33", "buckets.tokens=9000")


@pytest.mark.parametrize("mixed", ["", "sizes", "frames", "sizes,frames"])
@pytest.mark.parametrize("media", ["mp4", "jpg"])
def test_the_shares_of_a_plan_are_those_of_the_batches(mixed, media):
    share = int(media == "jpg")
    config = load(Fit, [*KEYS, f"buckets.mixed={mixed}", f"data.image_share={share}"])
    rows = index(60_000, sizes=[(1280, 720)], frames=(40,), media=(media,))
    known = workload.every(config)
    found = assign(rows, known, config.buckets, captions=True)
    clips = pool("x", rows, found, media == "jpg", config.buckets.tokens)
    epoch = epoch_of(clips, 0, 0)
    counts = Counter(workload.full(config, known[number]).name for number in epoch.bucket)
    planned = {load.name: part for load, part in workload.mix(config).items()}
    assert planned.keys() == counts.keys()
    assert sum(planned.values()) == pytest.approx(1)
    for name, count in counts.items():
        assert count / len(epoch) == pytest.approx(planned[name], rel=0.05, abs=0.002), name
