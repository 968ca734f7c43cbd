"""A DiT whose blocks compute in 8 bits, by torchao: what the report calls FP8 GEMM, and its kin.

    quantize(dit, "int8-weights")   # in place; embeddings, head and modulation stay as they are

Quantised are the products of the blocks, as in the report's inference (FP8, weights per tensor,
activations per token); scales here are per output channel and per token, which is finer.
"""

import importlib.util
from collections.abc import Iterator

import torch
from torch import Tensor, nn

KINDS = {
    "int8": "weights and activations in int8",
    "int8-weights": "weights in int8, arithmetic as before",
    "float8": "weights and activations in float8 (e4m3), on GPUs that multiply it",
    "float8-weights": "weights in float8 (e4m3), arithmetic as before",
}


def check(kind: str, device: torch.device) -> None:
    """Raises a ValueError, of one line, where a kind of `KINDS` can't be had."""
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(f"{kind} needs torchao: pip install torchao")
    if kind == "float8" and (
        device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)
    ):
        raise ValueError(
            "products of float8 want a GPU of compute capability 8.9 or more; float8-weights only "
            "stores it, and runs anywhere"
        )


def quantize(dit: nn.Module, kind: str) -> None:
    """Makes the products of a DiT's blocks those of a kind of `KINDS`, in place."""
    from torchao import quantization as ao

    how = {
        "int8": ao.Int8DynamicActivationInt8WeightConfig,
        "int8-weights": ao.Int8WeightOnlyConfig,
        "float8": lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow()),
        "float8-weights": ao.Float8WeightOnlyConfig,
    }
    ao.quantize_(dit.blocks, how[kind]())


def weight_bytes(network: nn.Module) -> int:
    """Of its weights, a quantised one's scales included."""
    return sum(one.nbytes for weight in network.parameters() for one in _stored(weight))


def _stored(weight: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of."""
    if not hasattr(weight, "__tensor_flatten__"):
        yield weight
        return
    for name in weight.__tensor_flatten__()[0]:
        yield from _stored(getattr(weight, name))
