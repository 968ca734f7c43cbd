"""What one GPU (or process) holds at each moment of a step, by kind.

Parameters, gradients, EMA and the optimiser's moments are float32 whatever the arithmetic is; in
bfloat16 autocast keeps a copy of the weights beside them until the step is over.
"""

from dataclasses import dataclass, field

from training.ledger import Footprint

GIB = 2**30
FLOAT, HALF = 4, 2  # bytes

# CUDA's context and libraries, and what kernels take for themselves; a process that has imported
# PyTorch and Lightning. Both ours, rounded up
CUDA, PROCESS, READER = int(1.0 * GIB), int(0.7 * GIB), int(0.4 * GIB)
FRAGMENTED = 0.04  # share of what is allocated that lies idle in between; ours


@dataclass(frozen=True)
class Weights:
    """Of the trained network."""

    parameters: int
    optimiser: int  # bytes of its state
    buffers: int  # bytes
    largest: int  # parameters of the largest tensor
    block: int  # parameters of a block, which FSDP gathers when it is its turn
    rest: int  # parameters outside blocks, which it gathers for the whole step


@dataclass(frozen=True)
class Spread:
    """How a run lies over GPUs."""

    strategy: str  # single, ddp or fsdp
    world: int = 1
    shard: int = 1  # GPUs that hold one copy of weights, gradients and optimiser
    context: int = 1  # GPUs that share a sequence

    @property
    def readers(self) -> int:
        """How many read different batches."""
        return max(1, self.world // self.context)


@dataclass(frozen=True)
class Moment:
    """What is held at one moment, in bytes by kind."""

    name: str
    kinds: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.kinds.values())


@dataclass(frozen=True)
class Load:
    """What is to be held."""

    weights: Weights
    footprint: Footprint  # of the batch that takes most
    spread: Spread
    batches: int  # of one rank, a step
    bfloat16: bool
    cuda: bool
    ema: bool
    frozen: dict[str, int] = field(default_factory=dict)  # encoders, or what judges a VAE: bytes
    encoding: int = 0  # bytes, at most, while a batch is encoded
    sampling: int = 0  # and while a sample video is made
    readers: int = 0  # processes that read data, in the same memory


def moments(load: Load) -> list[Moment]:
    """Everything that is held while a batch is encoded, learned from, and the weights updated.

    Before the first batch of a step there are no gradients, so where a rank has only one batch they
    take the place that activations leave: both are never whole at the same time.
    """
    weights, spread = load.weights, load.spread
    count, parts = weights.parameters, spread.shard
    steady = {
        "weights": _part(FLOAT * count, parts) + weights.buffers,
        "optimiser": _part(weights.optimiser, parts),
        "EMA": (_part(FLOAT * count, parts) + weights.buffers) if load.ema else 0,
    } | load.frozen
    gradients = _part(FLOAT * count, parts)
    copies, gathered = load.footprint.copies, 0
    if spread.strategy == "fsdp":
        # training.parallel: the block that computes and the next one on its way; a block's whole
        # gradient, and that in float32 to be averaged
        size = HALF if load.bfloat16 else FLOAT
        copies, gathered = size * weights.rest, (3 * size + FLOAT) * weights.block
    several = load.batches > 1 or spread.strategy == "ddp"  # whose buckets are always there
    copy = {"gathered" if spread.strategy == "fsdp" else "bfloat16 copies": copies}
    before = copy | {"gradients": gradients} if several else {}
    working, activations = load.footprint.working, load.footprint.activations
    # AdamW on CUDA makes one list of all square roots; on a CPU, two of one tensor's
    roots = _part(FLOAT * count, parts) if load.cuda else 2 * FLOAT * weights.largest
    each = {
        "encoding": before | {"working": load.encoding},
        "backward": copy | before | {"activations": activations, "working": working + gathered},
        # of all but the first block
        "end of backward": copy
        | {"gradients": gradients - _part(FLOAT * weights.block, parts)}
        | {"working": working + gathered},
        "update": copy | {"gradients": gradients, "working": roots},
        "samples": {"working": load.sampling},
    }
    return [_with_reserve(load, name, steady | kinds) for name, kinds in each.items()]


def _with_reserve(load: Load, name: str, kinds: dict[str, int]) -> Moment:
    fixed = CUDA if load.cuda else PROCESS + READER * load.readers
    reserve = fixed + int(FRAGMENTED * sum(kinds.values()))
    return Moment(name, {kind: size for kind, size in kinds.items() if size} | {"reserve": reserve})


def _part(size: int, parts: int) -> int:
    return -(-size // parts)
