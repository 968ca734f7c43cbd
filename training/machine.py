"""What a plan runs on: this machine's GPUs, others by name, or its CPU."""

import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from recipes.load import UsageError
from recipes.training import Fit
from training import gpus
from training.gpus import GIB, Gpu

CGROUP = Path("/sys/fs/cgroup/memory.max")  # what a container may take


@dataclass(frozen=True)
class Machine:
    """One kind of device and how many."""

    name: str
    cuda: bool
    memory: int  # bytes of one GPU, or of one process's share of this machine
    bfloat16: float  # FLOP/s at best, of one; 0: not known
    float32: float
    count: int = 1

    def peak(self, precision: str) -> float:
        return self.bfloat16 if precision == "bfloat16" else self.float32

    @property
    def words(self) -> str:
        return f"{self.count} × {self.name}" if self.count > 1 else self.name


def of_gpu(gpu: Gpu, count: int) -> Machine:
    return Machine(gpu.name, True, int(gpu.gib * GIB), gpu.bfloat16, gpu.float32, count)


def machine(config: Fit) -> Machine:
    """Where a recipe runs, or with plan=true and compute.gpu would run.

    Raises:
        UsageError: a GPU is wanted, and there is none; or one of an unknown name.
    """
    how = config.compute
    if config.plan and how.gpu:
        return of_gpu(gpus.named(how.gpu), max(1, how.devices) * how.nodes)
    gpu = None if how.device == "cpu" else gpus.here()
    if gpu:
        return of_gpu(gpu, (how.devices or torch.cuda.device_count()) * how.nodes)
    if how.device == "cuda":
        raise UsageError(
            "compute.device=cuda: PyTorch sees no CUDA GPU here (plan=true compute.gpu=h100 plans "
            "for one that is elsewhere)"
        )
    processes = max(1, how.devices)
    speed = cpu_peak() / processes
    return Machine("CPU", False, memory() // processes, speed, speed, processes * how.nodes)


def memory() -> int:
    """Bytes of this machine, or what its container allows."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(CGROUP.read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return physical


@lru_cache
def cpu_peak(side: int = 768, times: int = 3) -> float:
    """FLOP/s of this CPU in float32, measured on a matrix product: about 50 ms."""
    a, b = torch.ones(side, side), torch.ones(side, side)
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
