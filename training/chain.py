"""A chain of recipes, such as the published curriculum: each starts from the one before.

Every stage is a run of its own, runs/<recipe>/<name of the chain's run>. Run again, finished stages
are passed over, and the one under way goes on.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from recipes.load import load
from recipes.training import DITS, VAES, Fit
from training import console
from training.runs import open_run, stages

# which a VAE has no use for
SHARED = ("compute.context", "compute.strategy", "compute.shard")
# of the chain itself; a stage has its own
OWN = ("recipe", "trains", "chain", "name", "resume", "expect")


def run(config: Fit, fit: Callable[[Fit], None]) -> None:
    """Trains what is not finished.

    Args:
        config: keys of the command line hold for every stage; `model` for those that have such a
            size, and how a network is shared by GPUs for the DiTs.
        fit: trains one recipe.
    """
    given = given_to(config)
    if config.plan:
        for recipe in config.chain:
            console.say(f"\n{recipe}")
            fit(stage(recipe, given))
        return
    with open_run(config) as chain:
        for one in stages(chain):
            if one.done:
                console.say(f"{one.recipe}: done, {one.folder}")
                continue
            console.say(f"\n{one.recipe}")
            fit(replace(stage(one.recipe, given), name=chain.name, resume="auto"))
        chain.finish()


def first(config: Fit) -> Fit:
    """The first of its recipes."""
    return stage(config.chain[0], given_to(config))


def given_to(config: Fit) -> dict[str, Any]:
    """Keys that were given to the chain, for every stage, by their dotted paths."""
    return {path: value_at(config, path) for path in config.command_line if path not in OWN}


def value_at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


def stage(recipe: str, given: dict[str, Any]) -> Fit:
    """A recipe with the keys that were given for all."""
    trains = load(Fit, [f"recipe={recipe}"]).trains
    sizes = {"vae": VAES, "dit": DITS}[trains]
    mine = {name: value for name, value in given.items() if name != "model" or value in sizes}
    if trains == "vae":
        mine = {name: value for name, value in mine.items() if name not in SHARED}
    return load(Fit, [f"recipe={recipe}", *(f"{k}={written(v)}" for k, v in mine.items())])


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        row = io.StringIO()
        csv.writer(row).writerow(value)
        return f"[{row.getvalue().strip()}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
