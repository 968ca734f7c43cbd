"""A checkpoint with all that sampling needs: DiT, VAE, text encoder and, for some, image encoder.

    bundle = load_bundle("runs/720p/2026-01-31", device="cuda")

Every kind of checkpoint that `model.layout` knows: a run, a diffusers folder, an official Wan
folder (`hf download Wan-AI/Wan2.1-T2V-1.3B --local-dir …`), or `random:tiny`, a small model with
random weights, which runs in seconds on a CPU and shows nothing but that everything works.
"""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model import stored
from model.byte_encoder import ByteEncoder, is_byte_encoder
from model.checkpoint import load_dit, load_vae
from model.defaults import Defaults, kind, public
from model.dit import PRESETS, WanDiT
from model.image import ImageEncoder, load_image_encoder
from model.layout import Layout, find
from model.tensors import CheckpointError
from model.text import TextEncoder, load_text_encoder
from model.vae import WanVAE

# The parts beside the DiT of random:<preset>; its text encoder is a ByteEncoder
RANDOM_VAE = {"width": 16, "blocks": 1}
RANDOM_IMAGE = {"num_layers": 2, "num_heads": 4, "mlp_width": 1280}
WEIGHT_FILES = ("*.safetensors", "*.pth", "*.bin")


@dataclass(frozen=True)
class Card:
    """What a checkpoint is, as its headers and config files tell before its weights are read."""

    layout: Layout
    config: dict[str, Any]  # the DiT's keywords
    compression: tuple[int, int, int]  # the VAE's: time, height, width
    defaults: Defaults

    @property
    def kind(self) -> str:
        """t2v, i2v or flf2v."""
        return kind(self.config)


@dataclass
class Bundle:
    """What a sampler works with; every part in eval mode, without gradients."""

    dit: WanDiT
    vae: WanVAE
    text: TextEncoder
    image: ImageEncoder | None
    card: Card
    device: torch.device

    @property
    def defaults(self) -> Defaults:
        return self.card.defaults


def card(layout: Layout) -> Card:
    """Reads what a checkpoint is.

    Raises:
        CheckpointError: a part can't be read, or the image encoder is missing that its DiT needs.
    """
    if layout.kind == "random":
        preset = layout.path.removeprefix("random:")
        small = [name for name in PRESETS if name.endswith("tiny")]
        if preset not in small:
            raise CheckpointError(f"{layout.path}: there is random:{', random:'.join(small)}")
        with torch.device("meta"):
            config = WanDiT(**PRESETS[preset]).config
            compression = WanVAE(**RANDOM_VAE).compression
        return Card(layout, config, compression, defaults(layout, config, bytewise=True))
    config = stored.find(layout.dit, "dit").module.config
    if config["image_width"] and (why := layout.missing("image")):
        raise CheckpointError(why)
    compression = stored.find(layout.vae, "vae").module.compression
    bytewise = isinstance(layout.text, Path) and is_byte_encoder(layout.text)
    return Card(layout, config, compression, defaults(layout, config, bytewise))


def load_bundle(
    checkpoint: str | Layout | Card,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Bundle:
    """Loads every part of a checkpoint.

    Args:
        checkpoint: as `model.layout.find` takes it, or what that or `card` gave.
        dtype: of the DiT; None: bfloat16 on a GPU, else float32. The VAE works in float32, as the
            public pipelines run it, the encoders in the type of their files.

    Raises:
        CheckpointError: a part is missing, can't be read, or doesn't belong to the others.
    """
    if isinstance(checkpoint, str):
        checkpoint = find(checkpoint)
    about = checkpoint if isinstance(checkpoint, Card) else card(checkpoint)
    layout, device = about.layout, torch.device(device)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    image = None
    if layout.kind == "random":
        dit = drawn(WanDiT, **about.config).to(device, dtype)
        vae = drawn(WanVAE, **RANDOM_VAE).to(device)
        sizes = {"width": about.config["text_width"], "length": about.config["text_length"]}
        text = ByteEncoder(**sizes).requires_grad_(False).eval().to(device)
        if about.config["image_width"]:
            image = drawn(ImageEncoder, **RANDOM_IMAGE).to(device)
    else:
        dit = load_dit(layout.dit, device=device, dtype=dtype).requires_grad_(False)
        vae = load_vae(layout.vae, device=device, dtype=torch.float32).requires_grad_(False)
        text = load_text_encoder(layout.text, device)
        if about.config["image_width"]:
            image = load_image_encoder(layout.image, device)
    wanted, image_width = about.config, image.width if image else None
    for name, what, has, wants in (
        (f"text encoder {text.name}", "width", text.width, wanted["text_width"]),
        (f"text encoder {text.name}", "length", text.length, wanted["text_length"]),
        ("VAE", "width", vae.config["latent_channels"], wanted["out_channels"]),
        ("image encoder", "width", image_width, wanted["image_width"]),
    ):
        if has != wants:
            raise CheckpointError(
                f"{layout.path}: the {name} has {what} {has}, the DiT wants {wants}: they don't "
                "belong together"
            )
    return Bundle(dit, vae, text, image, about, device)


def defaults(layout: Layout, config: Mapping[str, Any], bytewise: bool) -> Defaults:
    """What a checkpoint was trained on and, where it doesn't say, the public settings.

    Args:
        config: the DiT's.
        bytewise: prompts are read by a ByteEncoder. Such a model was trained here, and its negative
            is the empty prompt that text dropout showed it, not the public one.
    """
    known = {field.name for field in fields(Defaults)}
    trained = {name: one for name, one in layout.trained_on.items() if name in known}
    ours = {"negative": ""} if bytewise else {}
    return replace(public(config), **ours | trained)


def fingerprints(layout: Layout) -> dict[str, dict[str, str]]:
    """Each part's place and the SHA-256 of its weights: of its files' digests, in order of name."""
    parts = {"dit": layout.dit, "vae": layout.vae, "text": layout.text, "image": layout.image}
    if layout.kind == "random":
        return {"dit": {"path": layout.path}}  # the path says which weights
    found: dict[str, dict[str, str]] = {}
    with ThreadPoolExecutor(4) as pool:  # hashing lets go of the interpreter
        for name, where in parts.items():
            files = list(_weights(name, where)) if isinstance(where, Path) else []
            if isinstance(where, str):
                found[name] = {"path": where}
            elif files:
                digests = "".join(pool.map(_digest, files))
                whole = digests if len(files) == 1 else hashlib.sha256(digests.encode()).hexdigest()
                found[name] = {"path": str(where), "sha256": whole}
    return found


def _weights(part: str, where: Path) -> Iterator[Path]:
    """The files that hold a part's weights."""
    if where.is_file():
        yield where
        return
    inner = (
        where / "text_encoder" if part == "text" and (where / "text_encoder").is_dir() else where
    )
    for ending in WEIGHT_FILES:
        files = sorted(inner.glob(ending))
        if files:
            yield from files
            return


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def drawn(kind: type[nn.Module], seed: int = 0, **config: Any) -> Any:
    """A network with random weights, those drawn again that start at zero, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kind(**config)
        for value in module.parameters():
            if value.dim() > 1 and not value.any():
                nn.init.normal_(value, std=value.shape[1] ** -0.5)
    return module.requires_grad_(False).eval()
