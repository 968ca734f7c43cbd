"""Encoders that others trained: where their weights lie, and what is called how in which file.

A spec names a file, a folder, or a repository of the Hugging Face hub (`owner/name`).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from model.tensors import CheckpointError, Weights, is_plain, open_weights, present, read_json, some

# A folder's one model: in a file or, with an index, in shards; safetensors before pickles
MODEL_FILES = tuple(
    f"{stem}{suffix}"
    for suffix in (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
    for stem in ("model", "open_clip_model", "pytorch_model", "open_clip_pytorch_model")
)


def locate(spec: str | Path, wanted: Callable[[list[str]], list[str]], what: str) -> Path:
    """The file or folder that a spec names, brought from the hub if it is a repository there.

    Args:
        spec: a file, a folder, or `owner/name` on the hub.
        wanted: of a repository's file names, those to bring.
        what: what is expected there, for the error.

    Raises:
        CheckpointError: neither here nor on the hub, or the hub is out of reach.
    """
    path = Path(spec).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(spec)):
        raise CheckpointError(f"{spec}: no such file or folder; put {what} there")
    import huggingface_hub as hub

    try:
        files = one_format(wanted(hub.list_repo_files(str(spec))))
        return Path(hub.snapshot_download(str(spec), allow_patterns=files))
    except Exception as error:  # httpx's, the system's or the hub's own: all mean "not from there"
        try:
            return Path(hub.snapshot_download(str(spec), local_files_only=True))
        except Exception:
            why = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(
                f"{spec}: no such file or folder here, and the Hugging Face hub did not give it "
                f"({why[:120]}); put {what} there"
            ) from error


def one_format(files: list[str]) -> list[str]:
    """Configs, tokenizers and one copy of the weights: safetensors where there are any."""
    has_safe = any(one.endswith(".safetensors") for one in files)
    weights = (".safetensors",) if has_safe else (".bin", ".pth")
    return [one for one in files if one.endswith((".json", ".model", *weights))]


def read_config(folder: Path) -> dict:
    """A folder's config.json; empty where there is none."""
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}


def open_model(path: Path) -> Weights:
    """The weights in a file, or in a folder the one model there, shards included.

    Raises:
        CheckpointError: none there, or they can't be read.
    """
    if path.is_file():
        return open_weights(path)
    found = [path / name for name in MODEL_FILES if (path / name).is_file()]
    if not found:
        raise CheckpointError(f"{path}: no weights there, e.g. model.safetensors")
    if not found[0].name.endswith(".bin.index.json"):
        return open_weights(found[0])
    places = read_json(found[0]).get("weight_map")
    if not isinstance(places, dict) or not places or not all(map(is_plain, places.values())):
        raise CheckpointError(f"{found[0]}: no weight_map from names to files beside it")
    files = present([path / name for name in sorted(set(places.values()))])
    entries = {name: one for file in files for name, one in open_weights(file).entries.items()}
    return Weights(found[0], tuple(files), entries, {})


def renaming(
    top: Mapping[str, str], block: Mapping[str, str], stems: tuple[str, str]
) -> Callable[[str], str | None]:
    """A function from one naming's names to another's; None for a name that is not in the tables.

    Args:
        top: names outside the blocks, from → to.
        block: names within a block, after its number, from → to.
        stems: what precedes the number, (from, to), e.g. `("blocks.", "encoder.block.")`.
    """

    def rename(name: str) -> str | None:
        if name in top:
            return top[name]
        number, _, rest = name.removeprefix(stems[0]).partition(".")
        if name.startswith(stems[0]) and number.isdigit() and rest in block:
            return f"{stems[1]}{number}.{block[rest]}"
        return None

    return rename


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    """A table of names, to → from."""
    return {to: name for name, to in table.items()}


def depth(names: Iterable[str], stem: str) -> int:
    """How many blocks the names count, by the number that follows the stem."""
    numbers = [name.removeprefix(stem).split(".")[0] for name in names if name.startswith(stem)]
    return 1 + max((int(one) for one in numbers if one.isdigit()), default=-1)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Puts tensors, as they are, in the place of a module's own, which may be on the meta device.

    Raises:
        CheckpointError: names are missing or unexpected, or shapes differ.
    """
    own = module.state_dict()
    wrong = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} for {tuple(value.shape)}"
            for name, value in own.items()
            if name in tensors and tensors[name].shape != value.shape
        ],
    }
    if any(wrong.values()):
        told = "; ".join(f"{what}: {some(names)}" for what, names in wrong.items() if names)
        raise CheckpointError(f"{source}: does not fit {type(module).__name__}: {told}")
    module.load_state_dict(dict(tensors), assign=True)


def placed(
    value: Tensor, device: str | torch.device, dtype: torch.dtype | None, wide: bool = False
) -> Tensor:
    """A tensor on a device, in a dtype or, with None, its own; `wide` ones never in float16."""
    target = dtype or value.dtype
    return value.to(device, torch.float32 if wide and target == torch.float16 else target)
