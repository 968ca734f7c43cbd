"""A DiT of ours and diffusers' own, with the same weights, every one of them drawn anew."""

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from model.dit import WanDiT
from model.names import dit_modules


def twins(seed: int = 0, **config) -> tuple[WanDiT, WanTransformer3DModel]:
    ours = WanDiT(**config)
    redraw(ours, seed)
    has_image = config.get("image_width") is not None
    theirs = WanTransformer3DModel(
        num_attention_heads=ours.config["num_heads"],
        attention_head_dim=ours.config["width"] // ours.config["num_heads"],
        in_channels=ours.config["in_channels"],
        out_channels=ours.config["out_channels"],
        text_dim=ours.config["text_width"],
        freq_dim=ours.config["time_width"],
        ffn_dim=ours.config["ffn_width"],
        num_layers=ours.config["num_layers"],
        eps=ours.config["eps"],
        image_dim=ours.config["image_width"],
        added_kv_proj_dim=ours.config["width"] if has_image else None,
        pos_embed_seq_len=ours.config["image_positions"],
    )
    names = their_names(ours)
    theirs.load_state_dict({names[name]: tensor for name, tensor in ours.state_dict().items()})
    return ours, theirs


def their_names(ours: WanDiT) -> dict[str, str]:
    """Parameter of ours → diffusers' name of it."""
    table = dit_modules(ours.config["num_layers"])
    names = {}
    for name in ours.state_dict():
        module, leaf = name.rsplit(".", 1)
        names[name] = table[name] if name in table else f"{table[module]}.{leaf}"
    return names


def redraw(model: nn.Module, seed: int = 0) -> None:
    """Every parameter drawn anew, at a scale that keeps the signal alive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            if "modulation" in name or name.endswith("emb_pos"):
                parameter.copy_(0.3 * drawn)
            elif parameter.ndim > 1:
                parameter.copy_(drawn * fan_in**-0.5)
            else:  # biases around 0, weights of norms around 1
                parameter.copy_(0.2 * drawn + (name.endswith("weight")))


def inputs(model: WanDiT, sizes: tuple[int, int, int], batch: int = 1, seed: int = 1) -> dict:
    """What `model` takes, as its keywords; text of different lengths, zero beyond them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    config = model.config
    text = draw(batch, config["text_length"], config["text_width"])
    for sample, length in enumerate((7, 300, 1, 512)[:batch]):
        text[sample, length:] = 0
    given = {
        "latents": draw(batch, 16, *sizes),
        "timestep": 1000 * torch.rand(batch, generator=generator),
        "text": text,
    }
    if config["in_channels"] > 16:
        given["condition"] = draw(batch, config["in_channels"] - 16, *sizes)
    if config["image_width"]:
        given["image"] = draw(batch, config["image_positions"] or 257, config["image_width"])
    return given


def ask(
    theirs: WanTransformer3DModel, latents, timestep, text, image=None, condition=None
) -> Tensor:
    """diffusers' answer to the same inputs."""
    x = latents if condition is None else torch.cat((latents, condition), dim=1)
    if image is not None and image.shape[1] == 514:  # theirs takes the two images as a batch of two
        image = image.reshape(-1, 257, image.shape[2])
    return theirs(x, timestep, text, image, return_dict=False)[0]
