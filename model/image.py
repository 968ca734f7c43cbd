"""CLIP's image tower as Wan's image-to-video models read it: ViT-H/14, the last but one block.

The tower is open_clip's `xlm-roberta-large-ViT-H-14` (frozen_laion5b_s13b_b90k). It comes as the
official `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`, as diffusers' `image_encoder/`
(transformers' CLIPVisionModel) or as open_clip's own; parameters here are called as in the first,
without its `visual.`. Tower: Radford et al., CLIP, 2021 (arXiv 2103.00020), with the exact GELU.

B batch, N tokens (the class token, then patches in rows; ViT-H: 257), D width (ViT-H: 1280).
"""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, scaled_dot_product_attention

from model.pretrained import depth, fill, locate, open_model, placed, read_config
from model.tensors import CheckpointError, Weights, read_json

FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of RGB in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)

# What others call ours, as replacements made one after the other; `fill` is strict about the result
TRANSFORMERS = {
    "embeddings.class_embedding": "cls_embedding",
    "embeddings.position_embedding.weight": "pos_embedding",
    "embeddings.patch_embedding": "patch_embedding",
    "pre_layrnorm": "pre_norm",
    "post_layernorm": "post_norm",
    "encoder.layers": "transformer",
    "layer_norm": "norm",
    "self_attn.out_proj": "attn.proj",
    "self_attn.q_proj": "attn.to_q",
    "self_attn.k_proj": "attn.to_k",
    "self_attn.v_proj": "attn.to_v",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
OPEN_CLIP = {
    "class_embedding": "cls_embedding",
    "positional_embedding": "pos_embedding",
    "conv1": "patch_embedding",
    "ln_pre": "pre_norm",
    "ln_post": "post_norm",
    "transformer.resblocks": "transformer",
    "ln_": "norm",
    "attn.in_proj_": "attn.to_qkv.",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.0",
    "mlp.c_proj": "mlp.2",
}
# The projection to the space shared with text, and a buffer of old transformers
UNUSED = ("head", "proj", "visual_projection.weight", "embeddings.position_ids")


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation: x·sigmoid(1.702·x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


class Attention(nn.Module):
    """Self-attention of all tokens, [B, N, D] → [B, N, D]."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, head_dim]
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a layer norm and added to its input."""

    def __init__(self, width: int, num_heads: int, mlp_width: int, activation: str, eps: float):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = nn.ModuleDict(
            {"0": nn.Linear(width, mlp_width), "2": nn.Linear(mlp_width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["2"](self.activation(self.mlp["0"](self.norm2(x))))


class ImageEncoder(nn.Module):
    """Images → tokens [B, N, D] of the last but one block, class token first, no final norm.

    The last block and the norm after it are held, so that the weights stay whole, and never run.

    Args:
        width: D.
        num_layers: blocks, the last one included.
        num_heads: of the attention.
        mlp_width: of the feed-forward layer; None: 4·width.
        image_size: pixels a side of what the tower sees, a multiple of patch.
        patch: pixels a side of a token.
        activation: "gelu" (open_clip's ViT-H) or "quick_gelu" (OpenAI's own weights).
        eps: of the layer norms.

    Raises:
        ValueError: sizes that do not divide, or an unknown activation.
    """

    def __init__(
        self,
        width: int = 1280,
        num_layers: int = 32,
        num_heads: int = 16,
        mlp_width: int | None = None,
        image_size: int = 224,
        patch: int = 14,
        activation: str = "gelu",
        eps: float = 1e-5,
    ):
        super().__init__()
        if width % num_heads or image_size % patch:
            raise ValueError(
                f"width {width} must divide by num_heads {num_heads}, and image_size "
                f"{image_size} by patch {patch}"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation}: one of {', '.join(ACTIVATIONS)}")
        mlp_width = mlp_width or 4 * width
        self.config = {
            "width": width,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "mlp_width": mlp_width,
            "image_size": image_size,
            "patch": patch,
            "activation": activation,
            "eps": eps,
        }
        self.width, self.image_size = width, image_size
        self.num_tokens = (image_size // patch) ** 2 + 1
        scale = width**-0.5
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.cls_embedding = nn.Parameter(scale * torch.randn(1, 1, width))
        self.pos_embedding = nn.Parameter(scale * torch.randn(1, self.num_tokens, width))
        self.pre_norm = nn.LayerNorm(width, eps)
        self.transformer = nn.ModuleList(
            Block(width, num_heads, mlp_width, activation, eps) for _ in range(num_layers)
        )
        self.post_norm = nn.LayerNorm(width, eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, image_size, image_size], normalised by MEAN and STD → [B, N, D]."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_embedding.expand(len(patches), -1, -1), patches], dim=1)
        x = self.pre_norm(x + self.pos_embedding)
        for block in self.transformer[:-1]:
            x = block(x)
        return x

    @torch.no_grad()
    def encode(self, images: Tensor, last: Tensor | None = None) -> Tensor:
        """Features [B, N, D] of images [B, 3, H, W] in -1..1, of any size, on the weights' device.

        Resized as the official code does: the whole image to a square, bicubic without
        antialiasing, not clamped. diffusers prepares PIL images with transformers' processor,
        antialiased, and so differs where an image is much larger than 224.

        Args:
            images: the (first) frame of each video.
            last: its last frame, for first-and-last-frame models: [B, 2·N, D], first then last.

        Raises:
            ValueError: not such images.
        """
        if last is not None:
            return torch.cat([self.encode(images), self.encode(last)], dim=1)
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images are {tuple(images.shape)} {images.dtype}: give [B, 3, H, W] in -1..1"
            )
        weight = self.patch_embedding.weight
        # in float32, as the resized image is 224 × 224 and costs nothing beside the tower
        images = images.to(weight.device, torch.float32)
        images = interpolate(images, (self.image_size,) * 2, mode="bicubic", align_corners=False)
        mean, std = images.new_tensor([MEAN, STD])[:, :, None, None]
        return self((((images + 1) / 2 - mean) / std).to(weight.dtype))


def load_image_encoder(
    spec: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    **overrides,
) -> ImageEncoder:
    """The image tower that lies at a path or on the hub, frozen and in eval mode.

    Sizes come from a config file where there is one, else from the tensors' shapes.

    Args:
        spec: an official Wan folder or its `models_clip_…pth`; a diffusers pipeline's folder or its
            `image_encoder/`; open_clip's folder or file; a folder of ours (class "ImageEncoder");
            or `owner/name` on the hub of any of these, such as
            `laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k`.
        dtype: of the weights and features; None keeps the file's.
        overrides: keywords of ImageEncoder, before what the files say. A lone file that is not
            ViT-H needs `num_heads`, which no shape tells.

    Raises:
        CheckpointError: no weights there (says where they belong), or others.
    """
    root = locate(spec, _wanted, f"{FILE}, image_encoder/ or open_clip's weights")
    place = _weights(root)
    told = _told(place) if place.is_dir() else {}
    weights = open_model(place)
    try:
        names = own_names(weights.entries)
        sizes = {**_shapes(weights, names), **told, **overrides}
        if "num_heads" not in sizes:
            raise ValueError(
                f"no shape tells the heads of a width of {sizes['width']}: num_heads=…"
            )
        with torch.device("meta"):
            encoder = ImageEncoder(**sizes)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{place}: {error}") from None
    tensors = {}
    for name, own in names.items():
        value = weights.read(name)
        if own in ("cls_embedding", "pos_embedding"):  # [D] and [N, D] elsewhere
            value = value.reshape(1, -1, value.shape[-1])
        tensors[own] = placed(value, device, dtype)
    fill(encoder, joined(tensors), place)
    return encoder.requires_grad_(False).eval()


def own_names(names: Iterable[str]) -> dict[str, str]:
    """A file's names of the tower, whole CLIP or tower alone, in any of the three namings → ours.

    transformers' queries, keys and values are still apart.

    Raises:
        CheckpointError: no class token among them: no CLIP tower.
    """
    prefixes = ("visual.", "vision_model.")
    tower = {one: one for one in names}
    for prefix in prefixes:
        if any(one.startswith(prefix) for one in tower):
            tower = {one: one.removeprefix(prefix) for one in tower if one.startswith(prefix)}
    tower = {one: own for one, own in tower.items() if own not in UNUSED}
    for token, replacements in (
        ("cls_embedding", {}),
        ("embeddings.class_embedding", TRANSFORMERS),
        ("class_embedding", OPEN_CLIP),
    ):
        if token in tower.values():
            for theirs, ours in replacements.items():
                tower = {one: own.replace(theirs, ours) for one, own in tower.items()}
            return tower
    raise CheckpointError("not CLIP's image tower: no class token by any name known here")


def joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values that are apart, in one tensor each."""
    found = dict(tensors)
    for name in tensors:
        apart = [name.replace(".to_q.", f".to_{one}.") for one in "qkv"]
        if ".to_q." in name and all(one in tensors for one in apart):
            found[name.replace(".to_q.", ".to_qkv.")] = torch.cat([found.pop(one) for one in apart])
    return found


def _weights(root: Path) -> Path:
    """The file, or the folder with a config of its own, that holds the weights."""
    if root.is_file():
        return root
    official = sorted(root.glob("models_clip_*.pth"))
    for place in (root / "image_encoder", *official, root):
        if place.is_file() or (place.is_dir() and _told(place)):
            return place
    raise CheckpointError(
        f"{root}: no image encoder there: put {FILE}, image_encoder/ with config.json, or "
        "open_clip's weights with open_clip_config.json there"
    )


def _told(folder: Path) -> dict:
    """What a folder's config file says of the tower; empty where there is none of a tower."""
    config = read_config(folder)
    if config.get("class") == "ImageEncoder":
        return {key: value for key, value in config.items() if key != "class"}
    if config.get("model_type") in ("clip", "clip_vision_model"):
        from transformers import CLIPVisionConfig

        # its defaults count: a config file holds only what differs from them
        theirs = CLIPVisionConfig.from_pretrained(folder)
        return {
            "width": theirs.hidden_size,
            "num_layers": theirs.num_hidden_layers,
            "num_heads": theirs.num_attention_heads,
            "mlp_width": theirs.intermediate_size,
            "image_size": theirs.image_size,
            "patch": theirs.patch_size,
            "activation": theirs.hidden_act,
            "eps": theirs.layer_norm_eps,
        }
    path = folder / "open_clip_config.json"
    if not path.is_file():
        return {}
    model = read_json(path).get("model_cfg", {})
    vision = model.get("vision_cfg", {})
    if not all(isinstance(vision.get(key), int) for key in ("width", "layers")):
        raise CheckpointError(f"{path}: not a plain vision transformer, as Wan's is")
    return {
        "width": vision["width"],
        "num_layers": vision["layers"],
        "num_heads": vision["width"] // vision.get("head_width", 64),
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
    }


def _shapes(weights: Weights, names: dict[str, str]) -> dict:
    """What the tensors' shapes tell of the tower; the heads of ViT-H are known."""
    shapes = {own: weights.entries[name].shape for name, own in names.items()}
    try:
        width, _, patch, _ = shapes["patch_embedding.weight"]
        side = math.isqrt(shapes["pos_embedding"][-2] - 1)
        mlp_width = shapes["transformer.0.mlp.0.weight"][0]
    except KeyError as error:
        raise CheckpointError(f"not CLIP's image tower: {error.args[0]} is missing") from None
    known = {"num_heads": 16} if width == 1280 else {}
    return {
        "width": width,
        "num_layers": depth(shapes, "transformer."),
        "mlp_width": mlp_width,
        "image_size": side * patch,
        "patch": patch,
        **known,
    }


def _wanted(files: list[str]) -> list[str]:
    """Of a repository's files, those of the image tower."""
    if "image_encoder/config.json" in files:
        return [one for one in files if one.startswith("image_encoder/")]
    if FILE in files:
        return [FILE]
    return [one for one in files if "/" not in one]
