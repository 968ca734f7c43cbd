"""How large the networks are that a recipe names, without their weights: trained and frozen ones.

None of them need be here: a plan is made before anything is downloaded or trained.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from model.byte_encoder import ByteEncoder
from model.dit import WanDiT
from model.image import ImageEncoder
from model.pretrained import read_config
from model.vae import WanVAE
from recipes.load import load
from recipes.training import Fit, Optimizer
from training.cache import has_text
from training.chain import recipe_of
from training.optimizers import optimizers
from training.parts import network_of

UMT5_XXL = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
}
PROMPT = 256  # tokens of a prompt, on average; ours


@dataclass(frozen=True)
class Size:
    """Of one network."""

    name: str
    parameters: int
    bytes: int  # of parameters and buffers, as they are loaded
    flops: int = 0  # forward, for one sample; of a VAE they depend on the sample


def network(config: Fit) -> WanDiT | WanVAE:
    """The network that a recipe trains, on the meta device: names, shapes, no memory."""
    with torch.device("meta"):
        return network_of(replace(config, compute=replace(config.compute, compile=False)), None)


def optimiser(module: nn.Module, config: Optimizer) -> int:
    """Bytes that the optimiser of a network on the meta device keeps, after its first step."""
    weights = list(module.parameters())
    for one in weights:
        one.grad = torch.empty_like(one)
    held = 0
    for each in optimizers(module, config):
        each.step()
        values = (value for state in each.state.values() for value in state.values())
        held += sum(value.nbytes for value in values if isinstance(value, Tensor))
    for one in weights:
        one.grad = None
    return held


def size(name: str, module: nn.Module, flops: int = 0) -> Size:
    tensors = [*module.parameters(), *module.buffers()]
    return Size(
        name,
        sum(one.numel() for one in module.parameters()),
        sum(one.numel() * one.element_size() for one in tensors),
        flops,
    )


def vae(config: Fit) -> WanVAE:
    """A DiT's VAE, on the meta device; where nothing tells, the published one."""
    name = config.vae
    if name and (recipe := recipe_of(name)):
        return network(load(Fit, [f"recipe={recipe}"]))
    told = {}
    for folder in (Path(name or "").expanduser() / "vae", Path(name or "").expanduser()):
        found = read_config(folder) if name else {}
        if found.get("class") == "WanVAE":
            told = {key: value for key, value in found.items() if key != "class"}
            break
    with torch.device("meta"):
        return WanVAE(**told)


def text(config: Fit, dit: WanDiT) -> Size:
    """A DiT's text encoder: umT5 unless the recipe says bytes or names a folder of another."""
    width, length = dit.config["text_width"], dit.config["text_length"]
    if config.text_encoder == "bytes":
        return _bytes(width, length)
    if config.text_encoder and (recipe := recipe_of(config.text_encoder)):
        return text(load(Fit, [f"recipe={recipe}"]), dit)
    sizes = UMT5_XXL
    if config.text_encoder:
        root = Path(config.text_encoder).expanduser()
        for folder in (root / "text_encoder", root):
            found = read_config(folder)
            if found.get("class") == "ByteEncoder":
                return _bytes(found["width"], found["length"])
            if found.get("model_type") == "umt5":
                sizes = UMT5_XXL | {name: found[name] for name in UMT5_XXL if name in found}
                break
    return umt5(sizes)


def umt5(sizes: dict[str, int]) -> Size:
    """umT5's encoder, in bfloat16 as it is published (arXiv 2304.09151)."""
    width, inner = sizes["d_model"], sizes["d_kv"] * sizes["num_heads"]
    matrices = 4 * width * inner + 3 * width * sizes["d_ff"]
    biases = sizes["relative_attention_num_buckets"] * sizes["num_heads"]
    layers = sizes["num_layers"] * (matrices + biases + 2 * width)
    count = sizes["vocab_size"] * width + layers + width
    flops = sizes["num_layers"] * (2 * matrices * PROMPT + 4 * PROMPT**2 * inner)
    return Size("text encoder", count, 2 * count, flops)


@lru_cache
def _bytes(width: int, length: int) -> Size:
    encoder = ByteEncoder(width, length=length)
    layers = encoder.config["num_layers"]
    flops = layers * (24 * width**2 * PROMPT + 4 * PROMPT**2 * width)
    return size("text encoder", encoder, flops)


def image(dit: WanDiT) -> Size | None:
    """CLIP's image tower, in float32; None for a DiT without image branch."""
    if not dit.config["image_width"]:
        return None
    with torch.device("meta"):
        tower = ImageEncoder()
    matrices = sum(one.numel() for one in tower.transformer[:-1].parameters())
    tokens, layers = tower.num_tokens, len(tower.transformer) - 1
    flops = 2 * matrices * tokens + layers * 4 * tokens**2 * tower.width
    return size("image encoder", tower, flops)


def still(config: Fit, dit: WanDiT, vae: WanVAE) -> list[Size]:
    """All that a DiT is trained with: VAE, text encoder unless its features are cached, and image
    encoder."""
    cached = config.data.latents and has_text(config.data.latents)
    found = [size("VAE", vae), None if cached else text(config, dit), image(dit)]
    return [one for one in found if one]
