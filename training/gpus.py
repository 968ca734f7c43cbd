"""GPUs by name: how fast their arithmetic is at best, and how much memory they have.

Peaks are dense (NVIDIA's data sheets print twice as much, "with sparsity"), of products accumulated
in float32. Memory is what PyTorch reports as total, which is less than the box says.
"""

import re
from dataclasses import dataclass, replace

import torch

from recipes.load import UsageError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    gib: float  # total_memory / 2³⁰
    bfloat16: float  # FLOP/s of tensor cores
    float32: float  # FLOP/s, without TF32, as PyTorch computes by default


# Peaks: [S] the GPU's own data sheet; memory: [T] total capacity in PyTorch's messages
GPUS = (
    # NVIDIA A100 data sheet (1758950): BF16 312, FP32 19.5; [T] 39.39 and 79.15
    Gpu("a100-40", 39.4, 312e12, 19.5e12),
    Gpu("a100", 79.1, 312e12, 19.5e12),
    # NVIDIA H100 data sheet: BF16 1,979 (SXM), 1,671 (NVL), 1,513 (PCIe) with sparsity; [T] 79.1
    Gpu("h100", 79.1, 989.4e12, 66.9e12),
    Gpu("h100-nvl", 93.1, 835.5e12, 60e12),
    Gpu("h100-pcie", 79.1, 756.5e12, 51e12),
    # NVIDIA H200 data sheet: BF16 1,979 with sparsity, FP32 67; [T] 139.8
    Gpu("h200", 139.8, 989.4e12, 66.9e12),
    # NVIDIA Blackwell architecture brief, HGX B200: BF16 4,500 with sparsity, FP32 80; [T] 178.35,
    # pytorch/ao pull request 4002
    Gpu("b200", 178.3, 2250e12, 80e12),
    # NVIDIA L40S data sheet: BF16 362.05, FP32 91.6; [T] 44.42, Step-Video-T2V issue 8
    Gpu("l40s", 44.4, 362e12, 91.6e12),
    # NVIDIA Ada whitepaper 2.1, appendix A: 165.2 accumulated in FP32, FP32 82.6; [T] 23.5 to 23.7,
    # flux-webui issue 11
    Gpu("rtx4090", 23.5, 165.2e12, 82.6e12),
    # NVIDIA RTX 6000 Ada data sheet: FP8 1,457 with sparsity, a quarter of it; FP32 91.1; [T] 44.43
    # with ECC, MTVCrafter issue 21
    Gpu("rtx6000-ada", 44.4, 364.2e12, 91.1e12),
    # NVIDIA RTX Blackwell whitepaper, appendix A: 209.5 accumulated in FP32, FP32 104.8; 32,607 MiB
    Gpu("rtx5090", 31.3, 209.5e12, 104.8e12),
    # NVIDIA RTX A6000 data sheet: 309.7 with sparsity, FP32 38.7; 48 GB with ECC
    Gpu("a6000", 44.4, 154.8e12, 38.7e12),
    # NVIDIA L4 data sheet: BF16 242 with sparsity, FP32 30.3; 23,034 MiB
    Gpu("l4", 22.0, 121e12, 30.3e12),
)


def named(name: str) -> Gpu:
    """A GPU by the name that a person or CUDA gives it: h100, NVIDIA H100 80GB HBM3, rtx 4090.

    Raises:
        UsageError: none of that name here.
    """
    said = words(name)
    found = [gpu for gpu in GPUS if words(gpu.name) <= said]
    if not found:
        known = ", ".join(gpu.name for gpu in GPUS)
        raise UsageError(f"{name}: of this GPU speed and memory are not known here, of {known} are")
    return max(found, key=lambda gpu: len(words(gpu.name)))  # h100-pcie before h100


def words(name: str) -> set[str]:
    """What sets the variants apart: `NVIDIA A100-SXM4-40GB` is a100, sxm4, 40."""
    name = re.sub(r"rtx|geforce|nvidia|(?<=\d)gb\b", " ", name.lower())
    return set(re.findall(r"[a-z0-9]+", name))


def here() -> Gpu | None:
    """This machine's first GPU with the memory it really has; None where there is none.

    One that is not in the table has speed 0: it trains all the same.
    """
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    gib = properties.total_memory / GIB
    try:
        return replace(named(properties.name), gib=gib)
    except UsageError:
        return Gpu(properties.name, gib, 0.0, 0.0)
