"""Trains: shards in, a run with checkpoints, TensorBoard and samples out.

    python training/fit.py recipe=720p                  a recipe of recipes/, on what is here
    python training/fit.py recipe=720p plan=true        what it takes and costs; trains nothing
    python training/fit.py recipe=curriculum            every stage, one after the other

Killed at any moment, the same command goes on where it stopped. `--help` lists every key.
"""

import sys
import time

from recipes.load import main
from recipes.training import Fit


def fit(config: Fit) -> int | None:
    """One recipe, or a chain of them, in as many processes as it asks for."""
    from training import parallel  # this takes seconds to import, and --help should not

    return parallel.run(train, config)


def train(config: Fit) -> None:
    """What each process does."""
    from training import chain, console, parallel
    from training.data import ShardData
    from training.parts import assemble
    from training.preflight import preflight
    from training.runs import open_run
    from training.trainer import trainer_of

    if config.trains == "chain":
        return chain.run(config, train, preflight)
    plan = preflight(config)
    console.show(plan.table())
    if config.plan:
        return None
    began = time.monotonic()
    ranks = parallel.here(config, plan.spread)
    data = ShardData(config, config.trains, ranks.reader, ranks.spread.readers)
    console.show(data.table())
    with open_run(config) as run:
        if run.done:
            console.say(f"{run.folder}: done already; resume=never begins another")
            return None
        module, parts = assemble(config, run, ranks)
        trainer = trainer_of(config, run, module, parts, plan, ranks)
        trainer.fit(module, datamodule=data, ckpt_path=run.resume_path(), weights_only=True)
        module.finish(data)
        run.finish(module)
    return console.closing(run, module, time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main(Fit, fit))
