"""The learning benchmark's own wiring: what it encodes is what it trains on, at either scale."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from curation import synthetic
from recipes.load import load
from recipes.schema import Synthetic
from recipes.training import Fit, Latents
from tests.benchmarks import learning, poisoned
from tests.benchmarks.study import SCALES, Study
from training.buckets import buckets


class Told(Study):
    """Runs nothing; remembers what it was asked to run."""

    def command(self, script: str, *keys: str, ends: float | None = None) -> float:
        self.lines = [*getattr(self, "lines", []), (script, *keys)]
        return 0.0

    def configs(self, script: str, kind: type[Fit]) -> list[Fit]:
        return [load(kind, keys) for name, *keys in self.lines if name == script]


@pytest.mark.parametrize("scale", SCALES)
def test_what_is_encoded_is_what_is_trained_on(scale: str, tmp_path: Path, monkeypatch) -> None:
    study = Told(tmp_path, None, SCALES[scale], None, [])
    monkeypatch.setattr(learning, "judged", lambda study: {})
    monkeypatch.setattr(learning, "sampled", lambda *_: {})
    learning.t2v(study)
    (encoded,) = study.configs("training/latents.py", Latents)
    (trained,) = study.configs("training/fit.py", Fit)
    assert buckets(encoded.buckets) == buckets(trained.buckets)
    assert [one.width for one in buckets(trained.buckets)] == [SCALES[scale].size]
    assert encoded.compute.device == trained.compute.device
    assert encoded.cache.out == trained.data.latents


def test_half_of_the_poisoned_source_is_bad_and_says_how(tmp_path: Path) -> None:
    poisoned.render(tmp_path, 20, ["red-circle-left"], size=128)
    kinds = [path.stem.split("-")[1] for path in sorted(tmp_path.glob("*.mp4"))]
    assert kinds.count("clean") == 10
    assert sorted(set(kinds) - {"clean"}) == sorted(one.__name__ for one in poisoned.FAULTS)


@pytest.mark.parametrize("fault", poisoned.FAULTS, ids=lambda one: one.__name__)
def test_a_fault_is_one(fault) -> None:
    frames = synthetic.shapes(0, Synthetic(size=64, frames=9)).frames
    spoiled = fault(frames, np.random.RandomState(0))
    assert spoiled.shape == frames.shape
    assert spoiled.dtype == np.uint8
    moves = np.abs(np.diff(spoiled.astype(float), axis=0)).mean()
    moved = np.abs(np.diff(frames.astype(float), axis=0)).mean()
    holds = {
        "blurred": spoiled.std() < frames.std(),
        "frozen": moves == 0,
        "shaky": moves > 2 * moved,
        "letterboxed": not spoiled[:, :14].any() and not spoiled[:, -14:].any(),
        "copied": any(
            np.array_equal(np.roll(spoiled, (-y, -x), (1, 2)), frames)
            for y, x in itertools.product((-1, 0, 1), repeat=2)
            if (y, x) != (0, 0)
        ),
    }
    assert holds[fault.__name__]
