"""Does much of it move: VBench's dynamic_degree, through RAFT.

torchvision's weights `C_T_V1` are the paper's `raft-things`, which VBench takes.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.measures.encoders import BackboneError, first_line, weights_sha256
from eval.measures.measure import Measure, Video

RATE = 8.0  # frames a second
FASTEST = 0.05  # share of the pixels
UPDATES = 20  # of RAFT
Flow = Callable[[Tensor, Tensor], Tensor]  # float [1, 3, H, W] of 0–255, twice → [1, 2, H, W]


def load_raft(spec: str = "C_T_V1", device: str = "cpu") -> tuple[Flow, str]:
    """RAFT (Teed and Deng, arXiv 2003.12039), large, and the SHA-256 of its weights.

    Args:
        spec: a file of torchvision's weights, or their name, fetched from its site.

    Raises:
        BackboneError: there are none.
    """
    from torchvision.models.optical_flow import raft_large

    try:
        if Path(spec).expanduser().is_file():
            network = raft_large()
            network.load_state_dict(torch.load(Path(spec).expanduser(), weights_only=True))
        else:
            network = raft_large(weights=spec)
    except Exception as error:  # whatever a file's bytes provoke
        raise BackboneError(f"{spec}: no RAFT ({first_line(error)})") from error
    network.eval().to(device)

    @torch.no_grad()
    def flow(first: Tensor, second: Tensor) -> Tensor:
        pair = [padded(one).to(device) / 127.5 - 1 for one in (first, second)]
        return network(*pair, num_flow_updates=UPDATES)[-1].cpu()

    return flow, weights_sha256(network)


def padded(picture: Tensor) -> Tensor:
    """To multiples of 8, on both sides alike (RAFT's InputPadder)."""
    height, width = picture.shape[-2:]
    down, across = -height % 8, -width % 8
    sides = (across // 2, across - across // 2, down // 2, down - down // 2)
    return F.pad(picture, sides, mode="replicate")


def dynamic_degree(flow: Flow, sha256: str) -> Measure:
    """1 where a quarter of the frames looked at move fast enough (VBench, dynamic_degree.py)."""

    def of(video: Video) -> float:
        frames = video.frames[:: max(1, round(video.fps / RATE))]
        if len(frames) < 2:
            return np.nan
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
        threshold = 6 * min(pictures.shape[-2:]) / 256
        wanted, moving = round(4 * len(frames) / 16), 0
        for first, second in itertools.pairwise(pictures):
            moving += fastest(flow(first[None], second[None])[0]) > threshold
            if moving >= wanted:
                return 1.0
        return 0.0

    return Measure(
        "dynamic_degree",
        of,
        "0 or 1",
        None,
        "whether much of it moves, to RAFT",
        ("RAFT large", sha256),
    )


def fastest(flow: Tensor) -> float:
    """Mean length of the longest 5 % of a flow [2, H, W]."""
    away = flow.square().sum(0).sqrt().flatten()
    return float(away.topk(int(away.numel() * FASTEST)).values.mean())
