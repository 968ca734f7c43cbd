"""Why a plan is refused, and the smallest change that would make it fit.

Changes are tried in the order of what they cost: computing more again, fewer samples a batch,
weights spread over the GPUs that are there, sequences too, more GPUs, larger ones, shorter clips.
Each is reckoned like the plan itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from recipes.load import UsageError
from recipes.training import RECOMPUTE, Fit
from training import workload
from training.buckets import lengths
from training.gpus import GPUS
from training.machine import Machine, of_gpu
from training.plan import Plan, gib, span
from training.runs import label

LONGEST = 100.0  # days on a CPU from which on a recipe is one for GPUs; ours
GPU, LATENTS = "compute.gpu", "data.latents"  # keys that don't make their change by themselves
NEAR = 1.1  # of the memory there is: of two changes, the dearer may take a little more


@dataclass(frozen=True)
class Change:
    """Keys to give, and another machine where the change is one."""

    keys: dict[str, Any]
    on: Machine

    @property
    def words(self) -> str:
        return " ".join(f"{name}={written(value)}" for name, value in self.keys.items())


def refusal(plan: Plan) -> str | None:
    """One line: why it can't run and what would; None where it can."""
    config, on = plan.config, plan.machine
    if not plan.fits:
        peak = plan.peak
        large = {kind: size for kind, size in peak.kinds.items() if size > 0.03 * peak.total}
        kinds = ", ".join(f"{kind} {gib(size)}" for kind, size in large.items())
        where = on.name if on.cuda else "each process" if on.count > 1 else "this machine"
        line = f"{plan.name}: takes {gib(peak.total)} ({kinds}), and {where} has {gib(on.memory)}"
        found = smallest(plan)
        if found is None:
            return f"{line}; no change of recompute, tokens, GPUs or lengths is enough"
        return f"{line}; {advice(plan, *found)}"
    if not on.cuda and config.compute.device == "auto" and plan.days > LONGEST:
        return (
            f"{plan.name}: on this CPU {config.optimizer.steps:,} steps take {span(plan.days)}: it "
            "is a recipe for GPUs, and PyTorch sees none here; plan=true compute.gpu=h100 plans "
            "for one, compute.device=cpu trains here nonetheless"
        )
    return None


def advice(plan: Plan, change: Change, found: Plan) -> str:
    """What would fit, in the words of the command line."""
    takes = f"takes {gib(found.peak.total)}"
    if LATENTS in change.keys:
        wrote = f"once python training/latents.py recipe={plan.config.recipe} has written it"
        return f"{change.words} {takes}, {wrote}"
    if change.on == plan.machine:
        return f"{change.words} {takes}"
    # where there are such GPUs the command finds them by itself; here they can only be planned with
    there = Change({key: one for key, one in change.keys.items() if key != GPU}, change.on).words
    where = f"on {change.on.words}{f' with {there}' if there else ''}"
    kind = "" if plan.machine.cuda else "it is a recipe for GPUs: "
    return f"{kind}{where} it {takes} (plan=true {change.words} says more)"


def smallest(plan: Plan) -> tuple[Change, Plan] | None:
    """The first change that fits, and its plan."""
    from training.preflight import planned

    def tried(change: Change) -> Plan | None:
        try:
            config = changed(plan.config, change.keys)
            return planned(config, change.on, plan.networks)
        except UsageError:
            return None

    for group in groups(plan):
        last = tried(group[-1]) if group else None
        # where the most frugal is far from fitting, the others are not looked at
        if last and last.peak.total < NEAR * last.machine.memory:
            for change in group:
                found = tried(change)
                if found and found.fits:
                    return change, found
    return None


def groups(plan: Plan) -> Iterator[list[Change]]:
    """Changes that belong together, the dearest first within each; groups in order of cost."""
    config, on = plan.config, plan.machine
    how = config.compute
    again = modes(plan)
    if plan.peak.name == "samples":
        yield [Change({"validate.sample_every": 0}, on)]
    yield [Change(keys, on) for keys in again]
    if plan.peak.name == "encoding" and config.recipe and not config.image_encoder:
        # where `python training/latents.py recipe=…` writes to by itself
        yield [Change({LATENTS: f"{config.runs}/latents/{label(config.recipe)}"}, on)]
    yield [Change(few | keys, on) for few in fewer(config) for keys in [{}, *again]]
    frugal = again[-1] if again else {}
    if on.count > 1 and plan.networks.is_dit:
        spread = {} if how.strategy == "auto" else {"compute.strategy": "fsdp"}
        shards = [{}]
        if how.shard and how.shard < on.count:
            shards = [{"compute.shard": n} for n in doubled(how.shard, on.count)]
        yield [Change(spread | one | keys, on) for one in shards for keys in [{}, *again]]
        yield [Change(spread | one | frugal, on) for one in shared(plan, on.count)]
    if on.cuda:
        more = [n for n in (2, 4, 8) if n > on.count]
        for count in more:
            bigger = replace(on, count=count)
            keys = {"compute.devices": count} | batches(config, count)
            yield [Change(keys | one, bigger) for one in [{}, *again]]
            yield [Change(keys | one | frugal, bigger) for one in shared(plan, count)]
    larger = sorted((gpu for gpu in GPUS), key=lambda gpu: gpu.gib)
    for count in (1, 8) if on.count == 1 else (on.count,):
        for gpu in larger:
            other = of_gpu(gpu, count)
            if not on.cuda or other.memory > on.memory:
                keys = {GPU: gpu.name} | batches(config, count)
                keys |= {"compute.devices": count} if count > 1 else {}
                yield [Change(keys | one, other) for one in [{}, *again]]
    yield [Change(one | frugal, on) for one in shorter(config)]


def modes(plan: Plan) -> list[dict[str, Any]]:
    """Ways of computing more again than the recipe does."""
    how = plan.config.compute
    known = RECOMPUTE if plan.networks.is_dit else ("none", "full")
    later = RECOMPUTE[RECOMPUTE.index(how.recompute) + 1 :]
    every = {} if how.recompute_blocks is None else {"compute.recompute_blocks": None}
    found = [{"compute.recompute": mode} | every for mode in later if mode in known]
    return [every, *found] if every and how.recompute != "none" else found


def fewer(config: Fit) -> list[dict[str, Any]]:
    """Fewer samples a batch, and as many more batches."""
    most = max(one.tokens for one in workload.every(config))
    samples, found = config.buckets.tokens // most, []
    while samples > 1:
        samples //= 2
        times = -(-config.buckets.tokens // (samples * most))
        keys = {"buckets.tokens": samples * most}
        found.append(keys | {"buckets.batches": config.buckets.batches * times})
    return found


def shared(plan: Plan, count: int) -> list[dict[str, Any]]:
    """Sequences over more GPUs: a number that divides them and the heads."""
    if not plan.networks.is_dit:
        return []
    heads, now = plan.networks.trained.config["num_heads"], plan.config.compute.context
    some = [n for n in doubled(now, 8) if not count % n and not heads % n]
    return [{"compute.context": n} for n in some]


def batches(config: Fit, count: int) -> dict[str, Any]:
    """As many batches that each of more GPUs has one."""
    readers = max(1, count // config.compute.context)
    wanted = -(-config.buckets.batches // readers) * readers
    return {} if wanted == config.buckets.batches else {"buckets.batches": wanted}


def shorter(config: Fit) -> list[dict[str, Any]]:
    """Without the longest clips."""
    known = lengths(config.buckets)
    return [{"buckets.frames": known[:n]} for n in range(len(known) - 1, 0, -1)]


def doubled(first: int, last: int) -> list[int]:
    found = []
    while first < last:
        first = min(2 * first, last)
        found.append(first)
    return found


def changed(config: Any, keys: dict[str, Any]) -> Any:
    """The configuration with other values of some dotted keys."""
    mine: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            inner = {
                name.removeprefix(f"{field.name}."): one
                for name, one in keys.items()
                if name.startswith(f"{field.name}.")
            }
            if inner:
                mine[field.name] = changed(value, inner)
        elif field.name in keys:
            mine[field.name] = keys[field.name]
    return replace(config, **mine)


def written(value: Any) -> str:
    """A value as it is given on the command line."""
    if value is None:
        return "null"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
