"""Weights in, networks out: a VAE or a DiT from any of the three formats.

    vae = load_vae("Wan2.1-T2V-1.3B")                # a folder, official or diffusers', or a file
    dit = load_dit("Wan2.1-T2V-1.3B", device="cuda", dtype=torch.bfloat16)
    print(dit.origin)                                # where from, which format, what was inferred
    save(dit, "my-dit")                              # ours: model.safetensors + config.json

The formats: *official* (Wan 2.1's names), *diffusers* (its names, its config.json), *ours*
(official names, our config.json). Which one a file is in is told by its names; `model.convert`
turns one into another. Loading is strict: a name missing or surplus, or another shape, is an error.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from model.stored import find
from model.tensors import entry
from model.writer import fresh, write_json, write_weights

logger = logging.getLogger(__name__)


def load_vae(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    **overrides: object,
) -> nn.Module:
    """A WanVAE from a file or folder in any of the three formats, in eval mode.

    Args:
        path: a weights file (.safetensors, its index or a shard; .pth), a folder that holds one, a
            diffusers pipeline or official Wan folder, or `owner/name` on the hub.
        dtype: of the weights; None keeps the file's.
        overrides: keywords of WanVAE, above what the config file and the shapes say.

    Returns:
        The module, with an `Origin` as `.origin`.

    Raises:
        CheckpointError: nothing there, two candidates, a broken file, names or shapes that don't
            fit (listed), or sizes that can't be told.
    """
    return load("vae", path, device, dtype, overrides)


def load_dit(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    **overrides: object,
) -> nn.Module:
    """A WanDiT from a file or folder in any of the three formats, in eval mode; as `load_vae`.

    Without a config file the head count is width / 128, unless `num_heads=` says otherwise.
    """
    return load("dit", path, device, dtype, overrides)


def load(
    kind: str,
    path: str | Path,
    device: str | torch.device,
    dtype: torch.dtype | None,
    overrides: Mapping[str, object],
) -> nn.Module:
    found = find(path, kind, overrides)
    tensors = {}
    for name, place in found.places.items():
        tensor = found.weights.read(place)
        cast = dtype if tensor.is_floating_point() else None
        tensors[name] = tensor.to(device=device, dtype=cast)
    module = found.module
    module.load_state_dict(tensors, assign=True)
    module.to(device)  # the buffers, which no file holds
    module.origin = found.origin
    logger.info("%s", found.origin)
    return module.eval()


def save(module: nn.Module, folder: str | Path, metadata: dict[str, str] | None = None) -> Path:
    """Writes a network in our format: `model.safetensors` and `config.json`, in a new folder.

    Args:
        module: it has a `config`, its constructor's keywords.
        metadata: notes for the safetensors header.

    Raises:
        CheckpointError: the folder is there already and not empty, or can't be written.
    """
    entries = {name: entry(tensor) for name, tensor in module.state_dict().items()}
    with fresh(folder) as partial:
        write_weights(partial, "model", entries, metadata, shard_bytes=None)
        write_json(partial / "config.json", {"class": type(module).__name__, **module.config})
    return Path(folder)
