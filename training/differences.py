"""In what two configurations differ that changes what is learned."""

import json
from typing import Any

import yaml

from recipes.keys import keys
from recipes.load import to_yaml
from recipes.training import Fit

# What may differ when a run goes on, since it does not change what is learned. Of `validate` only
# what is shown and advised: by what is measured the rate is lowered, and a checkpoint the best.
SHOWN = ("sample_every", "prompts", "samples", "steps", "guidance", "shift", "solver")
FREE = ("compute", "save", "data.workers", "data.prefetch", "data.broken_share")
FREE += tuple(f"validate.{one}" for one in SHOWN)
# This does change it, but a run that its guard stops at the same step each time has no other way on
FREE += ("optimizer.spike", "optimizer.give_up")
NAMES = ("recipe", "runs", "name", "resume", "plan", "expect")


def differences(there: dict, here: dict) -> list[str]:
    """Keys that change what is learned and differ, each with both values."""
    default = yaml.safe_load(to_yaml(Fit()))  # of keys that the run is older than
    decays = [_value(one, "optimizer.decay", Fit().optimizer.decay) for one in (there, here)]
    found = []
    for path in keys(Fit):
        if path in NAMES or any(path == one or path.startswith(f"{one}.") for one in FREE):
            continue
        if path == "optimizer.steps" and not any(decays):
            continue  # no step before the last knows how many there are
        was, wanted = (_value(one, path, _value(default, path)) for one in (there, here))
        if was != wanted:
            found.append(f"{path}={_short(was)} there, {_short(wanted)} now")
    return found


def _value(tree: Any, path: str, missing: Any = None) -> Any:
    for part in path.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return missing
        tree = tree[part]
    return tree


def _short(value: Any) -> str:
    return "null" if value is None else json.dumps(value, ensure_ascii=False).strip('"')
