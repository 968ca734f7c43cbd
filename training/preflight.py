"""What a recipe takes and costs, before anything runs; what can't fit is refused.

    plan = preflight(config)          # UsageError where it can't fit, with the change that makes it
    console.show(plan.table())

Nothing need be here, neither data nor weights nor the GPU. Memory is counted by running the modules
on tensors without memory (`training.footprint`); what is assumed of the data, `training.workload`
says; what is kept where, `training.memory`.
"""

from dataclasses import replace

from model.dit import WanDiT
from recipes.load import UsageError
from recipes.training import Fit
from training import console, footprint, frozen, memory, workload
from training.footprint import How
from training.machine import Machine, machine
from training.memory import Load, Spread, Weights
from training.parallel import check
from training.plan import Networks, Plan
from training.workload import Full

__all__ = ["Plan", "planned", "preflight"]


def preflight(config: Fit, on: Machine | None = None) -> Plan:
    """The plan of a recipe.

    Args:
        on: what it runs on; None: what the recipe says, or is here.

    With plan=true one that can't fit is shown before it is refused.

    Raises:
        UsageError: it can't fit, or is for GPUs and there is none: says the smallest change that
            helps.
    """
    from training.remedies import refusal  # which makes plans too

    plan = planned(config, on or machine(config))
    if line := refusal(plan):
        if config.plan:
            console.show(plan.table())
        raise UsageError(line)
    return plan


def planned(config: Fit, on: Machine, networks: Networks | None = None) -> Plan:
    """The plan, whether or not it fits."""
    networks = networks or networks_of(config)
    how = config.compute
    strategies = ["ddp", "fsdp"] if how.strategy == "auto" else [how.strategy]
    if how.strategy == "auto" and not networks.is_dit:
        strategies = ["ddp"]
    if how.strategy == "auto" and on.count == 1:
        strategies = ["single"]
    batch = workload.heaviest(config, networks.text)
    load = None
    for strategy in strategies:
        shard = min(how.shard or on.count, on.count) if strategy == "fsdp" else 1
        spread = Spread(strategy, on.count, shard, how.context)
        _check(config, networks, spread)
        load = load or _load(config, on, networks, batch)
        batches = config.buckets.batches // spread.readers
        held = memory.moments(replace(load, spread=spread, batches=batches))
        plan = Plan(config, on, networks, spread, batch, held)
        if plan.fits:
            break
    return plan


def _check(config: Fit, networks: Networks, spread: Spread) -> None:
    """That the processes, batches and heads can be divided as the recipe says."""
    check(config, spread)
    batches, context = config.buckets.batches, config.compute.context
    if batches < 1 or batches % spread.readers:
        raise UsageError(
            f"buckets.batches={batches}: wants a multiple of the {spread.readers} processes that "
            "read"
        )
    heads = networks.trained.config["num_heads"] if networks.is_dit else context
    if heads % context:
        raise UsageError(
            f"compute.context={context}: does not divide the {heads} heads of model={config.model}"
        )


def networks_of(config: Fit) -> Networks:
    trained = frozen.network(config)
    optimiser = frozen.optimiser(trained, config.optimizer)
    if not isinstance(trained, WanDiT):
        return Networks(trained, optimiser)
    vae = frozen.vae(config)
    return Networks(trained, optimiser, vae, tuple(frozen.still(config, trained, vae)))


def _load(config: Fit, on: Machine, networks: Networks, batch: Full) -> Load:
    """What one device holds, the weights not yet spread."""
    how, trained = config.compute, networks.trained
    bfloat16 = how.precision == "bfloat16"
    asked = How(bfloat16, on.cuda, how.recompute, how.recompute_blocks, how.context)
    encoding = sampling = 0
    if networks.is_dit:
        found = footprint.of_dit(trained.config, batch.bucket, batch.samples, asked)
        still = {"encoders": sum(one.bytes for one in networks.still)}
        if not config.data.latents:
            most = workload.heaviest(config)
            vae = networks.vae.config
            little = on.memory // 20
            encoding = footprint.encoding(vae, most.bucket, most.samples, little)
        if config.validate.sample_every:
            largest = max(workload.every(config), key=lambda one: one.tokens)
            vae = networks.vae.config
            sampling = footprint.sampling(trained.config, vae, largest, bfloat16)
    else:
        found = footprint.of_vae(trained.config, config.loss, batch.bucket, batch.samples, asked)
        still = {"loss's networks": footprint.judges_bytes(config.loss)}
    return Load(
        weights_of(networks),
        found,
        Spread("single"),
        config.buckets.batches,
        bfloat16,
        on.cuda,
        config.optimizer.ema > 0,
        still,
        encoding,
        sampling,
        readers=config.data.workers,
    )


def weights_of(networks: Networks) -> Weights:
    tensors = list(networks.trained.parameters())
    total = sum(one.numel() for one in tensors)
    blocks = networks.trained.blocks if networks.is_dit else [networks.trained]
    block = sum(one.numel() for one in blocks[0].parameters())
    return Weights(
        total,
        networks.optimiser,
        sum(one.numel() * one.element_size() for one in networks.trained.buffers()),
        max(one.numel() for one in tensors),
        block,
        total - len(blocks) * block,
    )
