"""The names and shapes of the public Wan 2.1 checkpoints.

`published.json` holds what a model has once, and what each of its blocks has.
"""

import json
from pathlib import Path

TABLE = json.loads(Path(__file__).with_suffix(".json").read_text())
MODELS = ("vae", "t2v_1_3B", "t2v_14B", "i2v_14B", "flf2v_14B")


def names(model: str) -> dict[str, list[int]]:
    """Name → shape of every tensor of one of MODELS."""
    entry = TABLE[model]
    blocks = {
        f"blocks.{layer}.{name}": shape
        for layer in range(entry.get("layers", 0))
        for name, shape in entry["block"].items()
    }
    return entry["names"] | blocks
