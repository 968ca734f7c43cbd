"""A network on disk: where its tensors lie, how large it is, and whether each of them fits.

`find` opens a file or folder in any of the three formats (official, diffusers, ours; see
`model/checkpoint.py`), reads headers and config files, builds the network without memory and
compares name by name and shape by shape. `load_vae`, `load_dit` and `convert` begin with it.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from model.layout import is_run
from model.layout import weights as weights_of
from model.names import Names, recognise
from model.pretrained import locate
from model.sizes import described, from_config, infer
from model.tensors import INDEX, SHARD, CheckpointError, Weights, open_weights, read_json, some


class Absent(CheckpointError):
    """There is no network of that kind, which is not to say that anything is broken."""


CALLED = {"dit": "a DiT", "vae": "a VAE"}
INSIDE = {"dit": "transformer", "vae": "vae"}  # where a diffusers pipeline keeps it


@dataclass(frozen=True)
class Origin:
    """Where a network came from.

    Attributes:
        path: the weights file or, of several, their index.
        format: official, diffusers or ours.
        config_file: the config file that was read, if any.
        inferred: sizes that no config file stated and the tensors' shapes told.
        dtype: of the file; several, joined by +, where it mixes them.
    """

    path: Path
    format: str
    config_file: Path | None
    inferred: dict[str, object]
    dtype: str

    def __str__(self) -> str:
        said = f"config {self.config_file.name}" if self.config_file else "no config file"
        sizes = ", ".join(f"{name}={value}" for name, value in self.inferred.items())
        inferred = f"; inferred from shapes: {sizes}" if sizes else ""
        return f"{self.path}: {self.format}, {self.dtype}, {said}{inferred}"


@dataclass(frozen=True)
class Stored:
    """One network on disk, checked name by name and shape by shape, its tensors not yet read.

    Attributes:
        kind: dit or vae.
        weights: the files.
        names: whose names they have.
        places: official name → the file's name, in the network's own order.
        module: the network on the meta device; its config holds every size.
        origin: where from.
    """

    kind: str
    weights: Weights
    names: Names
    places: dict[str, str]
    module: nn.Module
    origin: Origin


def find(path: str | Path, kind: str | None = None, overrides: Mapping | None = None) -> Stored:
    """The network that lies at a path, checked against what its sizes ask for; reads no tensors.

    Args:
        kind: dit or vae; None: whichever is there.

    Raises:
        CheckpointError: as `load_vae`.
    """
    weights, names = look(local(path, kind), kind)
    config_file, stated = read_config(weights.path, names.kind)
    mine = {name: names.official(name) for name in weights.entries}
    shapes = {mine[name]: one.shape for name, one in weights.entries.items() if mine[name]}
    known = infer(names.kind, shapes)
    sizes = known | stated | dict(overrides or {})
    inferred = {
        name: value
        for name, value in known.items()
        if name not in stated and name not in (overrides or {})
    }
    module = build(names.kind, sizes, len(weights.entries), config_file or weights.path)
    places = {official: name for name, official in mine.items() if official}
    surplus = [name for name, official in mine.items() if not official]
    check(weights.path, module, shapes, surplus)
    official = "ours" if config_file and described_file(config_file)[1] == "ours" else "official"
    origin = Origin(
        path=weights.path,
        format=names.format if names.format == "diffusers" else official,
        config_file=config_file,
        inferred=inferred,
        dtype="+".join(dict.fromkeys(one.dtype for one in weights.entries.values())),
    )
    places = {name: places[name] for name in module.state_dict()}
    return Stored(names.kind, weights, names, places, module, origin)


def local(path: str | Path, kind: str | None) -> Path:
    """The path itself, or what the hub has under that name."""

    def wanted(files: list[str]) -> list[str]:
        inside = f"{INSIDE[kind or 'dit']}/"
        if found := [name for name in files if name.startswith(inside)]:
            return found
        if kind == "vae" and "Wan2.1_VAE.pth" in files:  # beside the DiT's files
            return ["Wan2.1_VAE.pth"]
        tops = ("diffusion_pytorch_model", "model.safetensors", "config.json")
        return [name for name in files if name.startswith(tops)]

    return locate(path, wanted, "the weights")


def look(path: Path, kind: str | None) -> tuple[Weights, Names]:
    """Opens the one set of weights of that kind at a file, in a folder or of a run."""
    if is_run(path):
        path = weights_of(path, kind)
    if path.is_file():
        return only(path, opened(path, kind), kind)
    found = [(one, opened(one, kind)) for one in candidates(path, kind)]
    fitting = [(one, seen) for one, seen in found if seen[1] and kind in (seen[1].kind, None)]
    if len(fitting) == 2 and (path / "meta.json").is_file():
        # a run's checkpoint: the averaged weights are the ones to use
        fitting = [(one, seen) for one, seen in fitting if one.stem == "ema"] or fitting
    if len(fitting) == 1:
        return only(*fitting[0], kind)
    if fitting:
        names = some([one.name for one, _ in fitting])
        raise CheckpointError(f"{path}: several to choose from, {names}: name one of the files")
    inside = [path / INSIDE[one] for one in INSIDE if kind in (one, None)]
    if there := [folder for folder in inside if folder.is_dir()]:
        if len(there) > 1:
            raise CheckpointError(f"{path}: holds a DiT and a VAE; name one of the two folders")
        return look(there[0], kind)
    what = CALLED[kind] if kind else "a DiT or a VAE"
    seen = f"; it has {some([one.name for one, _ in found])}" if found else ""
    raise Absent(f"{path}: no weights of {what} there{seen}")


def candidates(folder: Path, kind: str | None) -> list[Path]:
    """The sets of weights in a folder, each by its file, its index or one of its shards.

    Of pickles only the VAE's: Wan's DiT never is one, and the others there are encoders.
    """
    sets: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        shard = SHARD.fullmatch(path.name)
        if path.name.endswith(INDEX):
            sets[path.name.removesuffix(INDEX)] = path
        elif path.suffix == ".safetensors":
            sets.setdefault(shard[1] if shard else path.name, path)
        elif path.suffix in (".pth", ".pt") and "vae" in path.name.lower() and kind != "dit":
            sets[path.name] = path
    return list(sets.values())


def opened(path: Path, kind: str | None) -> tuple[Weights, Names | None]:
    weights = open_weights(path)
    return weights, recognise(weights.entries)


def only(path: Path, seen: tuple[Weights, Names | None], kind: str | None) -> tuple[Weights, Names]:
    """What was opened, if it is what was asked for."""
    weights, names = seen
    if names is None:
        what = some(list(weights.entries))
        raise CheckpointError(f"{path}: unknown format, neither Wan's nor diffusers' names: {what}")
    if kind not in (names.kind, None):
        raise Absent(f"{path}: holds {CALLED[names.kind]}, not {CALLED[kind]}")
    return weights, names


# --- sizes, and whether everything fits ---------------------------------------------------------


def read_config(weights: Path, kind: str) -> tuple[Path | None, dict[str, object]]:
    """The config file beside some weights that is about this kind, and the sizes it states."""
    stem = weights.name.split(".safetensors")[0].removesuffix(".pth")
    for name in (f"{stem}.json", "config.json", "meta.json"):
        path = weights.with_name(name)
        about = described_file(path)
        if about and about[0] == kind:
            try:
                return path, from_config(config_of(path))
            except (CheckpointError, TypeError, KeyError) as error:
                raise CheckpointError(f"{path}: {error}") from error
    return None, {}


def described_file(path: Path) -> tuple[str, str] | None:
    return described(config_of(path)) if path.is_file() else None


def config_of(path: Path) -> dict:
    """A config file's content; that of a run's meta.json is its class and its `model`."""
    content = read_json(path)
    if path.name == "meta.json" and isinstance(content.get("model"), dict):
        return {"class": content.get("class"), **content["model"]}
    return content


def build(kind: str, sizes: Mapping, most: int, source: Path) -> nn.Module:
    """The network without memory for its parameters.

    Args:
        most: no network of this file has more layers than that.
        source: what the sizes come from, for errors.
    """
    network = classes()[kind]
    known = inspect.signature(network).parameters
    if strange := sorted(sizes.keys() - known.keys()):
        raise CheckpointError(f"{source}: {network.__name__} has no size {some(strange)}")
    if kind == "dit" and "num_heads" not in sizes:
        width = sizes.get("width", "unknown")
        raise CheckpointError(f"{source}: width {width} is no multiple of 128: give num_heads=")
    for name in ("num_layers", "blocks"):
        if isinstance(sizes.get(name), int) and sizes[name] > most:
            raise CheckpointError(f"{source}: {name}={sizes[name]}, but {most} tensors in all")
    try:
        with Hollow():
            return network(**sizes)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{source}: no {network.__name__} has such sizes: {why}") from error


def classes() -> dict[str, Callable[..., nn.Module]]:
    from model.dit import WanDiT
    from model.vae import WanVAE

    return {"dit": WanDiT, "vae": WanVAE}


class Hollow(TorchFunctionMode):
    """Parameters take no memory and no time to draw; computed tables (`arange`, `tensor`) are real.

    Under `torch.device("meta")` those would be lost too, and no checkpoint holds them.
    """

    FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in self.FACTORIES:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def check(path: Path, module: nn.Module, shapes: Mapping, surplus: list[str]) -> None:
    """Refuses weights that aren't exactly the network's.

    Args:
        shapes: of the file's tensors by official name.
        surplus: names of the file that the layout doesn't know.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    missing = [name for name in wanted if name not in shapes]
    surplus = surplus + [name for name in shapes if name not in wanted]
    differ = [
        f"{name} {list(shapes[name])} for {list(shape)}"
        for name, shape in wanted.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    problems = [
        f"{len(names)} {what}: {some(names)}"
        for names, what in (
            (missing, f"of {len(wanted)} names missing"),
            (surplus, "names unexpected"),
            (differ, "of another shape"),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{path}: no {type(module).__name__}: {'; '.join(problems)}")
