"""Two sides of a comparison: in turns in one process for time, in a fresh process each for memory.

A side is a function that prepares and returns the work; only the work is measured. A benchmark that
imports this has put the project's root on the path.
"""

import gc
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

SIDES = ("ours", "diffusers")
Work = Callable[[], object]
Make = Callable[..., Work]  # (side, …) → its work


def compare(make: Make, *arguments: object, turns: int) -> dict[str, float]:
    """Median seconds of both sides and the median of the turns' ratios; peaks and their ratio.

    Within a turn both run once, in an order that alternates.
    """
    works = {side: make(side, *arguments) for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for work in works.values():
        work()  # warm
    for turn in range(turns):
        for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
            began = time.perf_counter()
            works[side]()
            seconds[side].append(time.perf_counter() - began)
    works.clear()
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    row = {f"{side}_s": statistics.median(times) for side, times in seconds.items()}
    row |= {"time_ratio": statistics.median(ratios), "turns": turns}
    for side in SIDES:
        row[f"{side}_peak_mib"] = peak(make, side, *arguments)
    return row | {"peak_ratio": row["ours_peak_mib"] / row["diffusers_peak_mib"]}


def peak(make: Make, *arguments: object) -> float:
    """MiB that two calls take at their height over what their process, or its GPU, held before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (make, arguments, torch.get_num_threads()))


def _peak(make: Make, arguments: tuple, threads: int) -> float:
    torch.set_num_threads(threads)
    work = make(*arguments)
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    work()
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before


def shown(name: str, row: dict[str, float], target: str) -> dict[str, float]:
    """Prints a row, and hands it on."""
    print(
        f"{name:16} {row['ours_s']:6.2f} s, diffusers {row['diffusers_s']:6.2f} s: "
        f"{row['time_ratio']:.2f} ({target}); peak {row['ours_peak_mib']:.0f} MiB, "
        f"{row['diffusers_peak_mib']:.0f} MiB: {row['peak_ratio']:.2f}",
        flush=True,
    )
    return row
