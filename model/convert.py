"""One format into another, tensor by tensor, in the memory of a few megabytes.

    convert("Wan2.1-T2V-14B", "wan-14b-diffusers", to="diffusers", kind="dit")

Bytes are copied and names translated, so that there and back gives every tensor bit for bit. Only
the official VAE, a pickle, passes through memory as a whole (it has 0.5 GB).
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from model.sizes import infer, to_config
from model.stored import Stored, build, find
from model.tensors import CheckpointError, Entry
from model.writer import SHARD_BYTES, fresh, write_json, write_pickle, write_weights

FORMATS = ("diffusers", "official", "ours")
STEMS = {"diffusers": "diffusion_pytorch_model", "ours": "model"}
OFFICIAL_VAE = "Wan2.1_VAE"


def convert(
    source: str | Path,
    target: str | Path,
    to: str = "diffusers",
    *,
    kind: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = SHARD_BYTES,
    pickled: bool = True,
    **overrides: object,
) -> Path:
    """Writes a network in another format into a new folder.

    Args:
        source: a file or folder in any format, as `load_dit` takes it.
        target: becomes a folder with the weights and, but for an official VAE, a config.json.
        to: diffusers, official or ours.
        kind: dit or vae; None: whichever the source holds.
        dtype: of floating-point tensors; None keeps each one's.
        shard_bytes: a larger file is cut (official and diffusers); None: never.
        pickled: the official VAE as the public Wan2.1_VAE.pth; False: as .safetensors.
        overrides: sizes that neither config file nor shapes tell.

    Raises:
        CheckpointError: the source is missing, broken or another network, the format has no place
            for it, or the target is there already or can't be written. Nothing is left behind.
    """
    stored = find(source, kind, overrides)
    with fresh(target) as partial:
        write(stored, partial, to, dtype=dtype, shard_bytes=shard_bytes, pickled=pickled)
    return Path(target)


def write(
    stored: Stored,
    folder: Path,
    to: str,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = SHARD_BYTES,
    pickled: bool = True,
) -> None:
    """Writes one network into a folder that is there; arguments as for `convert`."""
    if to not in FORMATS:
        raise CheckpointError(f"to={to}: no such format; one of {', '.join(FORMATS)}")
    sizes = stored.module.config
    config = to_config(stored.kind, sizes, to)
    entries = renamed(stored, to, dtype)
    notes = stored.weights.metadata
    if to == "ours":
        write_weights(folder, STEMS[to], entries, notes, shard_bytes=None)
    elif (stored.kind, to) == ("vae", "official"):
        if pickled:
            write_pickle(folder / f"{OFFICIAL_VAE}.pth", entries)
        else:
            write_weights(folder, OFFICIAL_VAE, entries, notes, shard_bytes=None)
        if not told_by_shapes(stored.module.config, entries):
            # Wan's code knows one set of latent statistics only; ours reads this file beside it
            write_json(folder / f"{OFFICIAL_VAE}.json", to_config("vae", sizes, "ours"))
    else:
        write_weights(folder, STEMS["diffusers"], entries, notes, shard_bytes)
    if config is not None:
        write_json(folder / "config.json", config)


def renamed(stored: Stored, to: str, dtype: torch.dtype | None) -> dict[str, Entry]:
    """The tensors under the names of a format, in the order of the source's files."""
    mine = {place: name for name, place in stored.places.items()}
    entries = {}
    for place, one in stored.weights.entries.items():
        name = mine[place]
        if to == "diffusers":
            name = stored.names.diffusers(name)
        entries[name] = one if dtype is None else one.to(dtype)
    return entries


def told_by_shapes(sizes: Mapping, entries: Mapping[str, Entry]) -> bool:
    """Whether a VAE's tensors alone say all that its config does."""
    shapes = {name: one.shape for name, one in entries.items()}
    return build("vae", infer("vae", shapes), len(entries), Path(OFFICIAL_VAE)).config == sizes
