"""Wan-VAE beside diffusers' AutoencoderKLWan: same weights, same threads, in turns, in one run.

    python tests/benchmarks/vae.py                    all that this machine can
    python tests/benchmarks/vae.py only=decode turns=5 out=FILE

Rows: encode, decode (full width, 17 × 96 × 96, float32), train (a step of a width-16 model, batch
4, 9 × 64 × 64), stream (peak while decoding one, two and four times the length), and with CUDA gpu
(decode of 81 × 480 × 832 in bfloat16). How it is measured: tests/benchmarks/pairs.py.
"""

import json
import os
import sys
from pathlib import Path

import torch

# a script's own folder leads the path, and here it has a curation.py
HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), *(one for one in sys.path if Path(one).resolve() != HERE)]

from model.vae import WanVAE  # noqa: E402
from tests.benchmarks.pairs import Work, compare, peak, shown  # noqa: E402


def drawn(width: int) -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(width=width).eval()


def theirs(vae: WanVAE):
    """diffusers' model with the same weights."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    model = AutoencoderKLWan(base_dim=vae.config["width"]).eval()
    weights = {name: weight.clone() for name, weight in vae.state_dict().items()}
    model.load_state_dict(convert_wan_vae_to_diffusers(weights))
    return model


def encode(side: str) -> Work:
    vae, video = drawn(96), torch.rand(1, 3, 17, 96, 96) * 2 - 1
    if side == "ours":
        return no_grad(lambda: list(vae.encode_stream([video])))
    model = theirs(vae)
    return no_grad(lambda: model.encode(video).latent_dist.mean)


def decode(side: str) -> Work:
    vae, latents = drawn(96), torch.randn(1, 16, 5, 12, 12)
    if side == "ours":
        return no_grad(lambda: list(vae.decode_stream([latents])))
    model = theirs(vae)
    return no_grad(lambda: model.decode(latents).sample)


def train(side: str) -> Work:
    """A step: encode, sample, decode, L1 and KL, backward, AdamW."""
    vae, video = drawn(16), torch.rand(4, 3, 9, 64, 64) * 2 - 1
    model = (vae if side == "ours" else theirs(vae)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)

    def step() -> None:
        if side == "ours":
            posterior = model.encode(video)
            shown = model.decode(posterior.sample())
        else:
            posterior = model.encode(video).latent_dist
            shown = model.decode(posterior.sample()).sample
        # the KL by hand: diffusers' own sums over three axes, which is for pictures
        spread = posterior.mean.square() + posterior.logvar.exp() - 1 - posterior.logvar
        (3 * (shown - video).abs().mean() + 3e-6 * 0.5 * spread.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def gpu(side: str) -> Work:
    vae = drawn(96)
    model = (vae if side == "ours" else theirs(vae)).to("cuda", torch.bfloat16)
    latents = torch.randn(1, 16, 21, 60, 104, device="cuda", dtype=torch.bfloat16)

    def work() -> None:
        if side == "ours":
            torch.cat([part.cpu() for part in model.decode_stream([latents])], dim=2)
        else:
            model.decode(latents).sample.cpu()
        torch.cuda.synchronize()

    return no_grad(work)


def stream(length: int) -> Work:
    """Decodes `length` latent frames and lets every chunk go."""
    vae = drawn(32)
    latents = (torch.zeros(1, 16, 1, 20, 20) for _ in range(length))

    def work() -> None:
        for _ in vae.decode_stream(latents):
            pass

    return no_grad(work)


def no_grad(work: Work) -> Work:
    return torch.no_grad()(work)


def figures(only: set[str], turns: int = 5) -> dict[str, dict]:
    """Everything asked for, as name → numbers; prints each as it comes."""
    found: dict[str, dict] = {}
    targets = {"encode": "≤ 0.9", "decode": "≤ 0.9", "train": "≤ 0.6", "gpu": "≤ 0.6, peak ≤ 0.7"}
    rows = {"encode": encode, "decode": decode, "train": train}
    if torch.cuda.is_available():
        rows["gpu"] = gpu
    elif "gpu" in only:
        print("gpu: no CUDA device here")
    for name, make in rows.items():
        if name in only:
            found[f"vae {name}"] = shown(f"vae {name}", compare(make, turns=turns), targets[name])
    if "stream" in only:
        peaks = {str(length): peak(stream, length) for length in (8, 16, 32)}
        growth = max(peaks.values()) / min(peaks.values()) - 1
        found["vae stream"] = {"peak_mib_by_latent_frames": peaks, "growth": growth}
        listed = ", ".join(f"{length}: {mib:.0f} MiB" for length, mib in peaks.items())
        print(f"vae stream   peak by latent frames {listed}: + {100 * growth:.1f} % (≤ 5 %)")
    return found


ROWS = {"encode", "decode", "train", "stream", "gpu"}


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    only = set(keys["only"].split(",")) if "only" in keys else ROWS
    if wrong := only - ROWS:
        sys.exit(f"only={','.join(sorted(wrong))}: there is {', '.join(sorted(ROWS))}")
    torch.set_num_threads(int(keys.get("threads", os.cpu_count() or 1)))
    found = figures(only, int(keys.get("turns", 5)))
    Path(keys.get("out", "benchmark-vae.json")).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
