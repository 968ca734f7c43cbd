"""Fréchet video distance: how far two sets of videos lie apart in the features of an I3D.

    i3d = load_i3d("i3d_torchscript.pt")
    frechet(i3d(originals), i3d(rebuilt))

Unterthiner et al., arXiv 1812.01717, equation 1: Gaussians are fitted to both sets of features, and
|μ − μ'|² + Tr(C + C' − 2 (C C')^½) is their distance (Dowson and Landau 1982). The network and what
it is told are those of StyleGAN-V (src/metrics/frechet_video_distance.py), on which published
numbers rest: a TorchScript file, pixels of 0–255, scaled to 224 × 224 by itself, 400 logits. As
there the covariance is the population's. Its pixels are rounded to 8 bits, ours are not.

Of few videos the distance is much too large, and it falls as they become more: numbers compare only
where both have the same clips. N videos, D features.
"""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eval.measures.encoders import BackboneError
from eval.memory import is_exhausted


@dataclass(frozen=True)
class I3D:
    """Videos → features.

    Attributes:
        spec: the file.
        sha256: of the file.
    """

    spec: str
    sha256: str
    network: nn.Module

    @torch.no_grad()
    def __call__(self, video: Tensor) -> np.ndarray:
        """[B, 3, T, H, W] in −1 … 1 → float64 [B, D].

        Raises:
            BackboneError: it does not take such videos: too few frames, or another network.
        """
        pixels = (video.float() + 1) * 127.5
        try:
            found = self.network(pixels, rescale=True, resize=True, return_features=True)
        except (RuntimeError, torch.jit.Error) as error:
            if is_exhausted(error):
                raise
            size = "×".join(map(str, video.shape[2:]))
            raise BackboneError(f"{self.spec}: takes no video of {size}: {last(error)}") from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(video):
            raise BackboneError(f"{self.spec}: answers with something else than features [B, D]")
        return found.double().cpu().numpy()


def load_i3d(spec: str, device: str | torch.device = "cpu") -> I3D:
    """The network of `i3d_torchscript.pt`. TorchScript is code: only a file that you trust.

    Raises:
        BackboneError: it can't be read.
    """
    path = Path(spec).expanduser()
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with warnings.catch_warnings():
            # PyTorch wants other formats in its place; this is the one the weights exist in
            warnings.filterwarnings("ignore", ".*torch.jit", FutureWarning)
            network = torch.jit.load(str(path), map_location=device)
    except OSError as error:
        raise BackboneError(f"{spec}: no I3D ({error.strerror})") from error
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise BackboneError(f"{spec}: no I3D; wanted: i3d_torchscript.pt ({why})") from error
    return I3D(spec, sha256, network.eval())


def last(error: Exception) -> str:
    """TorchScript's own line comes last, after where in its code it was."""
    return str(error).strip().splitlines()[-1]


def frechet(one: np.ndarray, two: np.ndarray) -> float:
    """The distance of the Gaussians that fit two sets of features [N, D], N each its own.

    With C = Aᵀ A and C' = Bᵀ B the trace of (C C')^½ is the sum of the singular values of A Bᵀ,
    which needs no root of a matrix and is exact where there are fewer videos than features.

    Raises:
        ValueError: a set is empty, or they have other features.
    """
    if one.ndim != 2 or two.ndim != 2 or one.shape[1] != two.shape[1]:
        raise ValueError(f"features [N, D] of one network, not {one.shape} and {two.shape}")
    if not len(one) or not len(two):
        raise ValueError("a set of no video")
    means, factors = [], []
    for some in (one.astype(np.float64), two.astype(np.float64)):
        means.append(some.mean(0))
        away = (some - means[-1]) / np.sqrt(len(some))
        factors.append(np.linalg.qr(away, mode="r"))  # RᵀR is the covariance, R at most D × D
    both = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    apart = np.square(means[0] - means[1]).sum()
    spread = sum(np.square(factor).sum() for factor in factors)
    return float(max(0.0, apart + spread - 2 * both))
