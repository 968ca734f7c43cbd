"""The networks that a recipe names: the one it trains, and the frozen ones it trains with.

A name is a recipe (its newest finished run, but one of the same `name` first: a chain's own), a
path (a run, or weights in any format), or a repository on the hub. A run stands for what it
trained, or for the part that is asked for of those it was trained with. What a run trains with is
stored in the run, so that it goes on with the same parts whatever is trained elsewhere, and
`checkpoint=<run>` is all that a sampler needs.

DiT and VAE are float32, whatever their file holds: weights in bfloat16 would round most of a step
away. The encoders are in the type of their files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.attention import Context
from model.byte_encoder import ByteEncoder, save_byte_encoder
from model.checkpoint import load_dit, load_vae, save
from model.dit import WanDiT
from model.image import ImageEncoder, load_image_encoder
from model.inflation import inflate
from model.layout import weights
from model.presets import PRESETS, VAES
from model.recompute import Recompute
from model.tensors import CheckpointError, read_json
from model.text import TextEncoder, load_text_encoder
from model.vae import WanVAE
from recipes.keys import UsageError
from recipes.training import DITS, Fit
from recipes.training import VAES as VAE_SIZES
from training.chain import recipe_of
from training.dit_module import DiTModule
from training.module import Trained
from training.parallel import Ranks, leader_first, spread
from training.runs import Run, newest
from training.vae_module import VAEModule

CONDITION = 20  # channels: 4 of the mask, 16 latent
# keys of the parts that a run names or stores, by what model.layout calls them
KINDS = {"vae": "vae", "text_encoder": "text", "image_encoder": "image"}


@dataclass
class Parts:
    """What a DiT is trained with, frozen."""

    vae: WanVAE
    text: TextEncoder
    image: ImageEncoder | None
    places: dict[str, str]  # of each, relative to the run where it is stored there


def assemble(config: Fit, run: Run, ranks: Ranks) -> tuple[Trained, Parts | None]:
    """What a run trains, laid out over its processes, and what a DiT is trained with.

    Raises:
        UsageError: weights or parts are not where the recipe says, or of another shape.
    """
    try:
        resumed = run.newest()
        if resumed:
            network = network_of(config, None, read_json(resumed.path / "config.json"))
        else:
            network = network_of(config, found("starts_from", config))
        network = spread(network, config, ranks)
        if config.trains == "vae":
            return VAEModule(network, config), None
        with leader_first():  # it stores them
            parts = parts_of(config, network, run.folder)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    return DiTModule(network, config, parts.vae, parts.text, parts.image), parts


def network_of(config: Fit, path: Path | str | None, told: dict | None = None) -> nn.Module:
    """The network that a recipe trains, with the weights at a path, or drawn.

    Args:
        told: the class and sizes of one that is resumed, whose weights Lightning brings.

    Raises:
        UsageError, CheckpointError: they can't be read, or are of another shape.
    """
    how = config.compute
    torch.manual_seed(config.seed)  # every process draws the same
    own = {name: size for name, size in (told or {}).items() if name != "class"}
    if config.trains == "vae":
        vae = WanVAE(**own) if own else _vae(config, path)
        vae.checkpoint_activations(how.recompute != "none")
        return vae
    dit = WanDiT(**own) if own else _dit(config, path)
    dit.context = Context(how.backend)
    dit.recompute = Recompute(how.recompute, how.recompute_blocks)
    if how.compile:
        for block in dit.blocks:
            block.compile()
    return dit


def sizes_of(config: Fit) -> dict[str, Any]:
    """The sizes that `model` names.

    Raises:
        UsageError: it names none of such a network.
    """
    named, known = (VAE_SIZES, VAES) if config.trains == "vae" else (DITS, PRESETS)
    if config.model not in named:
        raise UsageError(
            f"model={config.model}: no size of a {config.trains}; it comes as {', '.join(named)}"
        )
    return dict(known[config.model])


def _vae(config: Fit, path: Path | str | None) -> WanVAE:
    sizes = sizes_of(config) | {"taps": config.taps}
    if config.taps == 1:
        sizes["temporal"] = [False] * 3
    # what the latents will be like is measured when the training is done
    still = {"latent_mean": [0.0] * 16, "latent_std": [1.0] * 16}
    if path is None:
        vae = WanVAE(**sizes, **still)
        narrow(vae)
        return vae
    vae = load_vae(path, dtype=torch.float32)
    if vae.config["taps"] == 1 and config.taps > 1:
        vae = inflate(vae)
    with torch.device("meta"):
        wanted = WanVAE(**sizes, **still).config
    _same(config, vae.config, {name: wanted[name] for name in ("width", "blocks", "taps")})
    return vae.requires_grad_(True).train()


@torch.no_grad()
def narrow(vae: WanVAE) -> None:
    """Lets the posterior of a new VAE begin with a spread of e⁻³ instead of 1.

    Noise as large as the latents hides them from the decoder at first. Ours: a VAE of width 16 is
    2 dB ahead after 300 steps.
    """
    channels = vae.config["latent_channels"]
    vae.conv1.weight[channels:] *= 0.1
    vae.conv1.bias[channels:] = -6.0


def _dit(config: Fit, path: Path | str | None) -> WanDiT:
    sizes = sizes_of(config)
    if any(config.objective.masks.values()):
        sizes["in_channels"] = 16 + CONDITION
    if config.image_encoder:
        sizes["image_width"] = 1280
    if path is None:
        return WanDiT(**sizes)
    dit = source = load_dit(path, dtype=torch.float32)
    has = source.config
    sizes["image_positions"] = has["image_positions"]  # of first-and-last-frame models
    with torch.device("meta"):
        wanted = WanDiT(**sizes).config
    bare = {"in_channels": has["out_channels"], "image_width": None}  # of text-to-video
    keys = {"in_channels": "objective.masks.first=1", "image_width": "image_encoder=PATH"}
    for name, size in bare.items():
        if wanted[name] == size != has[name]:
            raise UsageError(
                f"starts_from={config.starts_from}: image-to-video, its {name} is {has[name]}; "
                f"give {keys[name]} or the like"
            )
    new = {name for name, size in bare.items() if has[name] == size != wanted[name]}
    _same(config, has, {name: size for name, size in wanted.items() if name not in new})
    if new:
        dit = WanDiT(**sizes)
        widen(dit, source)
    return dit.requires_grad_(True).train()


@torch.no_grad()
def widen(dit: WanDiT, source: WanDiT) -> None:
    """Gives a DiT the weights of one without condition or image branch; it begins as that one.

    What is new is drawn, but lets nothing through at first: the condition's channels of the patch
    embedding are zero, and so are the values that the image branch hands on.
    """
    known = source.state_dict()
    for name, weight in dit.state_dict().items():
        if name not in known:
            if ".v_img." in name:
                weight.zero_()
            continue
        if name == "patch_embedding.weight":
            weight.zero_()
            weight = weight[:, : known[name].shape[1]]
        weight.copy_(known[name])


def _same(config: Fit, has: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, size in wanted.items():
        if has.get(name) != size:
            raise UsageError(
                f"starts_from={config.starts_from}: its {name} is {has.get(name)}, model="
                f"{config.model} has {size}"
            )


def parts_of(config: Fit, dit: WanDiT, folder: Path) -> Parts:
    """What a DiT is trained with: from the run's own folder if it is there, else stored there.

    Raises:
        UsageError, CheckpointError: a part is not where the recipe says, or does not fit the DiT.
    """
    places = {"vae": "vae", "text_encoder": "text_encoder"}
    if not (folder / "vae").is_dir():
        save(load_vae(needed("vae", config)), folder / "vae")
    vae = load_vae(folder / "vae", dtype=torch.float32).requires_grad_(False)
    own = folder / "text_encoder"
    text = load_text_encoder(own) if own.is_dir() else text_encoder(config)
    if not isinstance(text, ByteEncoder):  # umT5 is too large to be copied into every run
        places["text_encoder"] = str(needed("text_encoder", config))
    elif not own.is_dir():
        save_byte_encoder(text, own)
    image = None
    if config.image_encoder:
        places["image_encoder"] = str(needed("image_encoder", config))
        image = load_image_encoder(places["image_encoder"])
    for name, what, has, wants in (
        ("vae", "width", vae.config["latent_channels"], dit.config["out_channels"]),
        ("text_encoder", "width", text.width, dit.config["text_width"]),
        ("text_encoder", "length", text.length, dit.config["text_length"]),
        ("image_encoder", "width", image.width if image else None, dit.config["image_width"]),
    ):
        if has != wants:
            raise UsageError(f"{name}: {what} {has}, but model={config.model} wants {wants}")
    return Parts(vae, text, image, places)


def text_encoder(config: Fit) -> TextEncoder:
    """The text encoder that a recipe names; `bytes` is drawn, always the same for a model.

    Raises:
        UsageError, CheckpointError: it is not where the recipe says.
    """
    if config.text_encoder != "bytes":
        return load_text_encoder(needed("text_encoder", config))
    with torch.device("meta"):
        dit = WanDiT(**sizes_of(config))
    encoder = ByteEncoder(width=dit.config["text_width"], length=dit.config["text_length"])
    return encoder.requires_grad_(False).eval()


def needed(key: str, config: Fit) -> Path | str:
    place = found(key, config)
    if place is None:
        raise UsageError(f"{key}=: a DiT is trained with one; give a recipe, a path or a name")
    return place


def found(key: str, config: Fit) -> Path | str | None:
    """Where a key's weights are; None where it names none.

    Raises:
        UsageError: a recipe without a finished run (one line says which command makes it).
    """
    name = getattr(config, key)
    if name is None:
        return None
    kind = config.trains if key == "starts_from" else KINDS[key]
    recipe = recipe_of(name)
    if not recipe:
        path = Path(name).expanduser()
        return weights(path.absolute(), kind) if path.exists() else name
    try:
        return weights(newest(config.runs, recipe, config.name), kind)
    except UsageError as error:
        what = f"python training/fit.py recipe={name}"
        raise UsageError(f"{key}={name}: no finished run of it; `{what}` makes one") from error
