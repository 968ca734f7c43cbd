"""The DiT beside diffusers' WanTransformer3DModel, and, with CUDA, how near it comes to the chip.

    python tests/benchmarks/dit.py                        all that this machine can
    python tests/benchmarks/dit.py only=768 turns=9 out=FILE
    python tests/benchmarks/dit.py only=step backend=cudnn recompute=attention

Rows on a CPU, same weights (tests/benchmarks/pairs.py says how): forward and backward of two blocks
at 1.3B's width, float32, at 768 and 4096 tokens. `caption`: the text is one of 120 tokens, zero
beyond, which diffusers takes whole and ours as training hands it over, cut to 128; `full`: it fills
all 512, so that there is nothing to leave out.

Rows on a GPU, bfloat16: `step`, a training step of the 1.3B (float32 parameters, autocast, fused
AdamW) at 32,760 tokens, eager and compiled block by block; `stack`, forward and backward of as many
14B blocks as fit, bfloat16 parameters, everything recomputed, at 32,760 and 75,600 tokens. A share
of peak counts matrix products and attention of the forward pass as torch.utils.flop_counter finds
them, three times; what checkpointing computes again is not counted.
"""

import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

# a script's own folder leads the path, and here it has a curation.py; tests.twins is at the root
HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), *(one for one in sys.path if Path(one).resolve() != HERE)]

from model.attention import Context  # noqa: E402
from model.dit import PRESETS, WanDiT  # noqa: E402
from model.recompute import Recompute  # noqa: E402
from tests.benchmarks.pairs import Work, compare, shown  # noqa: E402
from training import features  # noqa: E402

SIZES = {"768": (3, 32, 32), "4096": (4, 64, 64)}  # latent T, H, W
CAPTION = 120  # tokens of some 90 English words
TOKENS = {"32760": (21, 60, 104), "75600": (21, 90, 160)}  # 81 frames of 480p and 720p
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}  # dense bfloat16, FLOP/s


# --- beside diffusers, on a CPU ----------------------------------------------------------------


def both_ways(side: str, tokens: str, text: str) -> Work:
    """Forward and backward of two blocks at 1.3B's width."""
    from tests.twins import ask, inputs, twins

    ours, theirs = twins(**PRESETS["1.3b"] | {"num_layers": 2})
    given = inputs(ours, SIZES[tokens])
    given["text"].normal_()
    if text == "caption":
        given["text"][:, CAPTION:] = 0
        if side == "ours":
            given["text"] = given["text"][:, : features.given(CAPTION, 512)].contiguous()
    model, run = (ours, ours) if side == "ours" else (theirs, partial(ask, theirs))

    def work() -> None:
        model.zero_grad()
        run(**given).square().mean().backward()

    return work


# --- how near to the chip's peak, on a GPU -----------------------------------------------------


def random_inputs(config: dict, sizes: tuple[int, int, int], device: str) -> dict:
    text = torch.randn(1, config["text_length"], config["text_width"], device=device)
    latents = torch.randn(1, config["in_channels"], *sizes, device=device)
    return {"latents": latents, "timestep": torch.full((1,), 500.0, device=device), "text": text}


def counted(config: dict, sizes: tuple[int, int, int]) -> int:
    """FLOP of forward and backward: three times the products and attention of the forward pass."""
    with torch.device("meta"):
        model = WanDiT(**config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**random_inputs(model.config, sizes, "meta"))
    return 3 * counter.get_total_flops()


def training(
    config: dict,
    sizes: tuple[int, int, int],
    device: str = "cuda",
    recompute: str = "attention",
    backend: str = "sdpa",
    compiled: bool = False,
    optimised: bool = True,
    turns: int = 5,
) -> dict[str, float]:
    """Median seconds of a step, FLOP/s, peak MiB. optimised: float32 parameters and AdamW."""
    with torch.device(device):
        model = WanDiT(**config)
    torch.nn.init.normal_(model.head.head.weight, std=0.02)  # zero weights stop the gradient
    model.context, model.recompute = Context(backend), Recompute(recompute)
    given = random_inputs(model.config, sizes, device)
    if optimised:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    else:
        model.to(torch.bfloat16)
    if compiled:
        for block in model.blocks:
            block.compile()
    seconds = []
    for _ in range(turns + 2):  # two to warm
        began = time.perf_counter()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=optimised):
            out = model(**given)
        out.float().square().mean().backward()
        if optimised:
            optimizer.step()
        model.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    step, flop = statistics.median(seconds[2:]), counted(model.config, sizes)
    row = {"step_s": step, "flop": flop, "flop_per_s": flop / step}
    if device == "cuda":
        row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        name = torch.cuda.get_device_name()
        top = next((peak for chip, peak in PEAK.items() if chip in name), None)
        row |= {"share_of_peak": row["flop_per_s"] / top} if top else {}
    return row


def told(name: str, row: dict) -> dict:
    share = f"{100 * row['share_of_peak']:.1f} % of peak" if "share_of_peak" in row else ""
    print(
        f"{name:<34} {row['step_s']:7.2f} s, {row['flop'] / 1e15:.2f} PFLOP: "
        f"{row['flop_per_s'] / 1e12:.0f} TFLOP/s {share}; peak {row['peak_mib'] / 1024:.1f} GiB",
        flush=True,
    )
    return row


def step(backend: str, recompute: str) -> dict[str, dict]:
    rows = {}
    for compiled in (False, True):
        name = f"1.3b step, {'compiled' if compiled else 'eager'}, {backend}, {recompute}"
        row = fresh(PRESETS["1.3b"], TOKENS["32760"], "cuda", recompute, backend, compiled)
        rows[name] = told(name, row)
    return rows


def stack(backend: str) -> dict[str, dict]:
    rows = {}
    for tokens, sizes in TOKENS.items():
        for blocks in (40, 32, 24, 16, 8, 4, 2, 1):
            config = PRESETS["14b"] | {"num_layers": blocks}
            try:
                row = fresh(config, sizes, "cuda", "full", backend, True, False, 3)
            except torch.OutOfMemoryError:
                continue
            name = f"14b, {blocks} blocks, {tokens} tokens, {backend}"
            rows[name] = told(name, row) | {"blocks": blocks}
            break
    return rows


def fresh(*arguments) -> dict:
    """`training` in a process of its own, so that no row inherits another's memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(training, arguments)


def figures(
    only: set[str], turns: int = 5, backend: str = "sdpa", recompute: str = "attention"
) -> dict[str, dict]:
    """Everything asked for (`ROWS`), as name → numbers; prints each as it comes."""
    found: dict[str, dict] = {}
    for tokens, text in itertools.product(SIZES, ("caption", "full")):
        if tokens in only:
            name = f"dit {tokens} {text}"
            found[name] = shown(name, compare(both_ways, tokens, text, turns=turns), "≤ 0.95")
    for name, run in (
        ("step", lambda: step(backend, recompute)),
        ("stack", lambda: stack(backend)),
    ):
        if name in only and torch.cuda.is_available():
            found |= run()
        elif name in only:
            print(f"{name}: not run, there is no CUDA device here")
    return found


ROWS = {*SIZES, "step", "stack"}


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    only = set(keys["only"].split(",")) if "only" in keys else ROWS
    if wrong := only - ROWS:
        sys.exit(f"only={','.join(sorted(wrong))}: there is {', '.join(sorted(ROWS))}")
    torch.set_num_threads(int(keys.get("threads", os.cpu_count() or 1)))
    options = {name: keys[name] for name in ("backend", "recompute") if name in keys}
    found = figures(only, int(keys.get("turns", 5)), **options)
    Path(keys.get("out", "benchmark-dit.json")).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
