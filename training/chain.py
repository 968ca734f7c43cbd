"""A chain of recipes, such as the published curriculum: each starts from the one before.

Every stage is a run of its own, runs/<recipe>/<name of the chain's run>, and takes what it starts
from, or its VAE, from the chain's own runs. All are planned before the first begins. Run again,
finished stages are passed over, and the one under way goes on.
"""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from recipes.load import RECIPES, UsageError, load
from recipes.training import DITS, VAES, Fit
from training import console
from training.runs import open_run, stages

# which a VAE has no use for
SHARED = ("compute.context", "compute.strategy", "compute.shard")
# of the chain itself; a stage has its own
OWN = ("recipe", "trains", "chain", "name", "resume", "expect")


def run(config: Fit, fit: Callable[[Fit], None], plan: Callable[[Fit], Any]) -> None:
    """Trains what is not finished.

    Args:
        config: keys of the command line hold for every stage; `model` for those that have such a
            size, how a network is shared by GPUs for the DiTs, and `starts_from` for the first.
        fit: trains one recipe.
        plan: refuses one that can't fit.

    Raises:
        UsageError: a stage is refused: it, and why.
    """
    asked = asked_of(config)
    if config.plan:
        return show(asked, fit)
    with open_run(replace(config, chain=[*asked])) as chain:
        for one in stages(chain):
            if not one.done:  # or weeks may pass before it is refused
                with naming(one.recipe):
                    plan(asked[one.recipe])
        for one in stages(chain):
            if one.done:
                console.say(f"{one.recipe}: done, {one.folder}")
                continue
            console.say(f"\n{one.recipe}")
            fit(replace(asked[one.recipe], name=chain.name, resume="auto"))
        chain.finish()
    return None


def show(asked: dict[str, Fit], fit: Callable[[Fit], None]) -> None:
    """The plans of all stages, also of those after one that is refused."""
    refused = []
    for recipe, one in asked.items():
        console.say(f"\n{recipe}")
        try:
            with naming(recipe):
                fit(one)
        except UsageError as error:
            console.say("refused")
            refused.append(str(error))
    if refused:
        raise UsageError("; ".join(refused))


@contextmanager
def naming(recipe: str) -> Iterator[None]:
    """Says of which stage a mistake is."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{recipe}: {error}") from error


def asked_of(config: Fit) -> dict[str, Fit]:
    """Its stages in order, each with the keys that were given to the chain."""
    given, found = given_to(config), {}
    for recipe in flat(config.chain):
        found[recipe] = stage(recipe, given)
        given.pop("starts_from", None)  # the later ones start from those before
    return found


def first(config: Fit) -> Fit:
    """The first of its stages."""
    return stage(flat(config.chain)[0], given_to(config))


def flat(chain: list[str], above: tuple[str, ...] = ()) -> list[str]:
    """Recipes, those of a chain in its place.

    Raises:
        UsageError: there are none, or a chain is part of itself.
    """
    found = []
    for recipe in chain:
        if recipe in above:
            raise UsageError(f"recipe={recipe}: this chain is part of itself")
        made = load(Fit, [f"recipe={recipe}"])
        found += flat(made.chain, (*above, recipe)) if made.trains == "chain" else [recipe]
    if not found:
        raise UsageError("chain=: wants recipes, to be run one after the other")
    return found


def recipe_of(name: str) -> str | None:
    """The recipe that makes what is called so, of a chain its last one; None: it is no recipe.

    Args:
        name: a file of recipes/, or a path that ends in .yaml.
    """
    ours = "/" not in name and (RECIPES / f"{name}.yaml").is_file()
    return flat([name])[-1] if ours or name.endswith((".yaml", ".yml")) else None


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
