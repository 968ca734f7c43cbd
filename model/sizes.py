"""How large a network is: told from its tensors' shapes, and as a config file states it.

A size is a keyword of `WanDiT` or `WanVAE`. Shapes tell nearly all of them; what they can't tell
(head count, text length, eps, latent statistics) comes from a config file or is Wan 2.1's own.

Shapes are those of the official names: a linear weight [out, in], a convolution's
[out, in, T, H, W].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from model.names import count, vae_counts
from model.tensors import CheckpointError

HEAD_WIDTH = 128  # channels of a head, in every Wan model
Shapes = Mapping[str, tuple[int, ...]]
Sizes = dict[str, object]


# --- from shapes --------------------------------------------------------------------------------


def infer(kind: str, shapes: Shapes) -> Sizes:
    """Every size that the shapes tell; one whose tensor is missing is left out.

    Args:
        kind: `dit` or `vae`.
        shapes: by official name.
    """
    return {"dit": infer_dit, "vae": infer_vae}[kind](shapes)


def infer_dit(shapes: Shapes) -> Sizes:
    patches = shapes.get("patch_embedding.weight", ())
    sizes: Sizes = {"num_layers": count(list(shapes), r"blocks\.(\d+)\.")}
    if len(patches) == 5:
        sizes |= {"width": patches[0], "in_channels": patches[1], "patch": list(patches[2:])}
        if patches[0] % HEAD_WIDTH == 0:
            sizes["num_heads"] = patches[0] // HEAD_WIDTH
        if head := shapes.get("head.head.weight"):
            sizes["out_channels"] = head[0] // math.prod(patches[2:])
    for size, name, axis in (
        ("ffn_width", "blocks.0.ffn.0.weight", 0),
        ("text_width", "text_embedding.0.weight", 1),
        ("time_width", "time_embedding.0.weight", 1),
        ("image_width", "img_emb.proj.0.weight", 0),
        ("image_positions", "img_emb.emb_pos", 1),
    ):
        if len(shape := shapes.get(name, ())) > axis:
            sizes[size] = shape[axis]
    return sizes


def infer_vae(shapes: Shapes) -> Sizes:
    levels, blocks = vae_counts(list(shapes))
    first = shapes.get("encoder.conv1.weight", ())
    sizes: Sizes = {}
    if latent := shapes.get("conv2.weight"):
        sizes["latent_channels"] = latent[0]
    if not levels or len(first) != 5:
        return sizes
    sizes |= {"width": first[0], "taps": first[2], "blocks": blocks}
    # a level's last residual block, and the change of size that follows it
    row = [level * (blocks + 1) + blocks - 1 for level in range(levels)]
    widths = [shapes.get(f"encoder.downsamples.{i}.residual.6.weight", ()) for i in row]
    if all(widths):
        sizes["multipliers"] = [shape[0] // first[0] for shape in widths]
    resized = [f"encoder.downsamples.{i + 1}.time_conv.weight" for i in row[:-1]]
    sizes["temporal"] = [name in shapes for name in resized]
    return sizes


# --- from and to config files -------------------------------------------------------------------

# our keyword → the config file's
OFFICIAL_DIT = {
    "width": "dim",
    "ffn_width": "ffn_dim",
    "num_heads": "num_heads",
    "num_layers": "num_layers",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "text_width": "text_dim",
    "text_length": "text_len",
    "time_width": "freq_dim",
    "patch": "patch_size",
    "eps": "eps",
}
DIFFUSERS_DIT = {
    "ffn_width": "ffn_dim",
    "num_heads": "num_attention_heads",
    "num_layers": "num_layers",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "text_width": "text_dim",
    "image_width": "image_dim",
    "image_positions": "pos_embed_seq_len",
    "time_width": "freq_dim",
    "patch": "patch_size",
    "eps": "eps",
}
DIFFUSERS_VAE = {
    "width": "base_dim",
    "latent_channels": "z_dim",
    "multipliers": "dim_mult",
    "blocks": "num_res_blocks",
    "temporal": "temperal_downsample",  # diffusers spells it so
    "dropout": "dropout",
    "latent_mean": "latents_mean",
    "latent_std": "latents_std",
}


@dataclass(frozen=True)
class Terms:
    """How a format's config file speaks of a kind of network.

    Attributes:
        named: the class that it names.
        keys: our keyword → its key.
        fixed: what it can vary and Wan 2.1 doesn't; any other value is another network.
    """

    named: str
    keys: Mapping[str, str]
    fixed: Mapping[str, object]


TERMS = {
    ("dit", "official"): Terms(
        "WanModel", OFFICIAL_DIT, {"qk_norm": True, "cross_attn_norm": True}
    ),
    ("dit", "diffusers"): Terms(
        "WanTransformer3DModel",
        DIFFUSERS_DIT,
        {"qk_norm": "rms_norm_across_heads", "cross_attn_norm": True},
    ),
    ("vae", "diffusers"): Terms(
        "AutoencoderKLWan",
        DIFFUSERS_VAE,
        {
            "decoder_base_dim": None,
            "attn_scales": [],
            "is_residual": False,
            "patch_size": None,
            "in_channels": 3,
            "out_channels": 3,
        },
    ),
}
OURS = {"WanDiT": "dit", "WanVAE": "vae"}
WRITTEN_FOR = "0.34.0"  # the first diffusers release that reads every variant


def described(config: Mapping) -> tuple[str, str] | None:
    """Which kind of network a config file is about, and in whose terms; None: neither kind."""
    if config.get("class") in OURS:
        return OURS[config["class"]], "ours"
    for (kind, whose), terms in TERMS.items():
        if config.get("_class_name") == terms.named:
            return kind, whose
    # the official code also takes a config file without a class
    unnamed = "_class_name" not in config and {"dim", "ffn_dim", "num_heads"} <= config.keys()
    return ("dit", "official") if unnamed else None


def from_config(config: Mapping) -> Sizes:
    """The sizes that a config file states; it must be one that `described` knows.

    Raises:
        CheckpointError: it describes a network that Wan 2.1 doesn't have.
    """
    kind, whose = described(config)
    if whose == "ours":
        return {name: value for name, value in config.items() if name != "class"}
    terms = TERMS[kind, whose]
    for name, value in terms.fixed.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"{name} is {config[name]}; Wan 2.1 has {value}")
    sizes = {mine: config[theirs] for mine, theirs in terms.keys.items() if theirs in config}
    if (kind, whose) == ("dit", "diffusers") and "attention_head_dim" in config:
        sizes["width"] = config["attention_head_dim"] * config["num_attention_heads"]
    return sizes


def to_config(kind: str, sizes: Mapping, whose: str) -> dict | None:
    """The config file of a network for one of the three formats; None: an official VAE has none.

    Args:
        sizes: every keyword of the network (`module.config`).
        whose: ours, official or diffusers.

    Raises:
        CheckpointError: the format has no terms for such a network.
    """
    if whose == "ours":
        return {"class": {"dit": "WanDiT", "vae": "WanVAE"}[kind], **sizes}
    if kind == "vae" and sizes["taps"] != 3:
        raise CheckpointError(f"an image VAE (taps={sizes['taps']}) has no {whose} form, only ours")
    if (kind, whose) == ("vae", "official"):
        return None
    terms = TERMS[kind, whose]
    config = {"_class_name": terms.named, "_diffusers_version": WRITTEN_FOR}
    config |= {theirs: sizes[mine] for mine, theirs in terms.keys.items()} | terms.fixed
    if kind == "vae":
        config["scale_factor_temporal"] = 2 ** sum(sizes["temporal"])
        config["scale_factor_spatial"] = 2 ** len(sizes["temporal"])
    elif whose == "official":
        config["model_type"] = model_type(sizes)
    else:
        if sizes["text_length"] != 512:
            raise CheckpointError(f"text_length is {sizes['text_length']}; diffusers takes 512")
        config["attention_head_dim"] = sizes["width"] // sizes["num_heads"]
        config["added_kv_proj_dim"] = sizes["width"] if sizes["image_width"] else None
        config["rope_max_seq_len"] = 1024
    return config


def model_type(sizes: Mapping) -> str:
    """What the official release calls the variant: t2v, i2v or flf2v."""
    if sizes["image_positions"]:
        return "flf2v"
    return "i2v" if sizes["image_width"] else "t2v"
