"""The real training command on networks of a few thousand weights, in this process."""

from pathlib import Path

import pytest

from model.presets import PRESETS, VAES
from recipes.load import main
from recipes.training import Fit
from training.fit import fit

# Lightning's own: of its use of PyTorch, and of a loader that it can't look into
QUIET = pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*in eval mode")
DIT = {"width": 64, "ffn_width": 64, "num_heads": 2, "num_layers": 1}
DIT |= {"text_width": 16, "text_length": 64}
KEYS = {
    "buckets.sizes": "64x64",
    "buckets.image_sizes": "64x64",
    "buckets.tokens": "64",
    "buckets.batches": "1",
    "optimizer.steps": "2",
    "optimizer.warmup": "1",
    "validate.clips": "2",
    "validate.timesteps": "2",
    "validate.sample_every": "0",
    "text_encoder": "bytes",
    "image_encoder": "null",
    "data.workers": "0",
    "compute.device": "cpu",
    "compute.precision": "float32",
    "compute.recompute": "none",
}


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size as small as its parts allow."""
    for name, size in PRESETS.items():
        own = {key: value for key, value in size.items() if key not in DIT}
        monkeypatch.setitem(PRESETS, name, own | DIT)
    for name in VAES:
        monkeypatch.setitem(VAES, name, {"width": 4, "blocks": 1})


def train(recipe: str, shards: Path, runs: Path, **keys: object) -> int:
    """One command; the exit status. Keys are written with __ for a dot."""
    given = {key.replace("__", "."): value for key, value in keys.items()}
    given = KEYS | {"data.shards": shards, "data.weights": "1", "runs": runs} | given
    return main(Fit, fit, [f"recipe={recipe}", *(f"{k}={v}" for k, v in given.items())])
