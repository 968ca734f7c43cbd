"""Small Wan networks with random weights, ours and diffusers', of the same sizes; their files."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from model.dit import WanDiT
from model.names import recognise
from model.vae import WanVAE

# our keywords, and diffusers' for the same network
SMALL = {"width": 256, "ffn_width": 64, "num_heads": 2, "num_layers": 2, "text_width": 24}
THEIR_SMALL = {"num_attention_heads": 2, "ffn_dim": 64, "num_layers": 2, "text_dim": 24}
IMAGE = {"in_channels": 36, "image_width": 16}
THEIR_IMAGE = {"in_channels": 36, "image_dim": 16, "added_kv_proj_dim": 256}
DITS = {
    "t2v": (SMALL, THEIR_SMALL),
    "i2v": (SMALL | IMAGE, THEIR_SMALL | THEIR_IMAGE),
    "flf2v": (
        SMALL | IMAGE | {"image_positions": 10},
        THEIR_SMALL | THEIR_IMAGE | {"pos_embed_seq_len": 10},
    ),
}
STATISTICS = ([0.5, -0.25, 0.0, 1.0], [2.0, 1.5, 1.0, 3.0])
VAES = {
    "wan": ({"width": 8, "blocks": 1}, {"base_dim": 8, "num_res_blocks": 1}),
    "other": (
        {
            "width": 6,
            "latent_channels": 4,
            "multipliers": [1, 3, 2],
            "temporal": [True, True],
            "latent_mean": STATISTICS[0],
            "latent_std": STATISTICS[1],
        },
        {
            "base_dim": 6,
            "z_dim": 4,
            "dim_mult": [1, 3, 2],
            "temperal_downsample": [True, True],
            "latents_mean": STATISTICS[0],
            "latents_std": STATISTICS[1],
            "scale_factor_spatial": 4,
        },
    ),
}
VARIANTS = [*DITS, *VAES]


def redrawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight drawn anew, those too that start at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for value in module.parameters():
        scale = value[0].numel() ** -0.5 if value.dim() > 1 else 0.5
        value.data = scale * torch.randn(value.shape, generator=generator)
    return module.requires_grad_(False).eval()


def ours(variant: str, seed: int = 0, **more) -> nn.Module:
    network, sizes = (WanDiT, DITS[variant]) if variant in DITS else (WanVAE, VAES[variant])
    return redrawn(network(**(sizes[0] | more)), seed)


def theirs(variant: str, seed: int = 0) -> nn.Module:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    if variant in DITS:
        return redrawn(WanTransformer3DModel(**DITS[variant][1]), seed)
    return redrawn(AutoencoderKLWan(**VAES[variant][1]), seed)


def renamed(module: nn.Module) -> dict[str, torch.Tensor]:
    """A diffusers model's tensors under the official names."""
    tensors = module.state_dict()
    names = recognise(tensors)
    return {names.official(name): value for name, value in tensors.items()}


def official_config(config: dict) -> dict:
    """config.json as the public repositories have it; only Wan's keys that differ from theirs."""
    kind = "flf2v" if config["image_positions"] else "i2v" if config["image_width"] else "t2v"
    return {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": config["width"],
        "eps": 1e-06,
        "ffn_dim": config["ffn_width"],
        "freq_dim": 256,
        "in_dim": config["in_channels"],
        "model_type": kind,
        "num_heads": config["num_heads"],
        "num_layers": config["num_layers"],
        "out_dim": 16,
        "text_len": 512,
    }


def write_official(module: nn.Module, folder: Path) -> Path:
    """A DiT or a VAE where the public repositories have it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in module.state_dict().items()}
    if isinstance(module, WanVAE):
        torch.save(tensors, folder / "Wan2.1_VAE.pth")
    else:
        file = folder / "diffusion_pytorch_model.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(official_config(module.config)))
    return folder


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, NaN to NaN too."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(*(one.contiguous().reshape(-1).view(torch.uint8) for one in (a, b)))


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


def inputs(variant: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """What a DiT of that variant takes: two samples, 2 × 6 × 4 latents."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    given = {
        "latents": draw(2, 16, 2, 6, 4),
        "timestep": torch.tensor([900.0, 20.0]),
        "text": draw(2, 512, 24),
    }
    if variant != "t2v":
        given |= {"image": draw(2, 10, 16), "condition": draw(2, 20, 2, 6, 4)}
    return given
