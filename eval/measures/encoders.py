"""Image encoders that measures look through: DINO and CLIP, from a folder or the hub.

    dino = load_dino("facebook/dino-vitb16")
    dino(frames)                                    # [T, H, W, 3] uint8 → [T, D], unit length

Pictures are prepared to the letter as VBench does it (`vbench/utils.py`): scaled without
antialiasing, in float, bicubic overshoot kept.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize

SIDE = 224
BATCH = 16  # frames at once
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class BackboneError(Exception):
    """One line: which weights are missing or wrong, and where they belong."""


@dataclass(frozen=True)
class Encoder:
    """Frames → features of unit length.

    Attributes:
        name: of the network.
        sha256: of its weights.
        prepare: float [B, 3, H, W] of 0–255 → what the network takes.
        encode: the network.
    """

    name: str
    sha256: str
    prepare: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    device: str = "cpu"

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> Tensor:
        """uint8 [T, H, W, 3] → float32 [T, D] on the CPU."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        parts = []
        for some in pixels.split(BATCH):
            features = self.encode(self.prepare(some.float()).to(self.device)).float()
            parts.append(F.normalize(features, dim=-1).cpu())
        return torch.cat(parts)


def scaled(pixels: Tensor) -> Tensor:
    return pixels / 255


prepare_dino = Compose([Resize(SIDE, antialias=False), scaled, Normalize(*IMAGENET)])
prepare_clip = Compose(
    [
        Resize(SIDE, interpolation=InterpolationMode.BICUBIC, antialias=False),
        CenterCrop(SIDE),
        scaled,
        Normalize(*CLIP),
    ]
)


def load_dino(spec: str, device: str = "cpu") -> Encoder:
    """DINO's ViT (Caron et al., arXiv 2104.14294), the class token after the last norm.

    Args:
        spec: a folder of transformers' ViTModel, or `facebook/dino-vitb16` on the hub.

    Raises:
        BackboneError: there is none.
    """
    from transformers import ViTModel

    try:
        network = ViTModel.from_pretrained(spec, add_pooling_layer=False).eval().to(device)
    except (OSError, ValueError) as error:
        raise BackboneError(f"{spec}: no DINO ({first_line(error)})") from error
    # transformers places positions of other sizes a little differently than DINO
    network.embeddings.interpolate_pos_encoding = MethodType(_positions, network.embeddings)

    def encode(pictures: Tensor) -> Tensor:
        return network(pictures, interpolate_pos_encoding=True).last_hidden_state[:, 0]

    return Encoder("DINO", weights_sha256(network), prepare_dino, encode, device)


def _positions(self: nn.Module, embeddings: Tensor, height: int, width: int) -> Tensor:
    """DINO's own: bicubic by a factor, 0.1 of a patch beyond, instead of to a size
    (facebookresearch/dino, vision_transformer.py, interpolate_pos_encoding)."""
    known = self.position_embeddings
    if embeddings.shape[1] == known.shape[1] and height == width:
        return known
    side = round((known.shape[1] - 1) ** 0.5)
    rows, columns = height // self.patch_size, width // self.patch_size
    grid = known[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = (rows + 0.1) / side, (columns + 0.1) / side
    grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
    if grid.shape[-2:] != (rows, columns):
        raise ValueError(f"{rows} × {columns} patches, but positions for {list(grid.shape[-2:])}")
    return torch.cat([known[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class ClipModel:
    """CLIP's two towers (Radford et al., arXiv 2103.00020), OpenAI's weights.

    Args:
        network: open_clip's.
        name: such as ViT-B-32.
    """

    def __init__(self, network: nn.Module, name: str, device: str = "cpu") -> None:
        import open_clip

        self.network, self.name, self.device = network.eval().to(device), name, device
        self.sha256 = weights_sha256(network)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.images = Encoder(
            f"CLIP {name}", self.sha256, prepare_clip, self.network.encode_image, device
        )

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> Tensor:
        """[B, D] of unit length, on the CPU."""
        tokens = self.tokenizer(prompts).to(self.device)
        return F.normalize(self.network.encode_text(tokens).float(), dim=-1).cpu()


def load_clip(name: str, spec: str = "openai", device: str = "cpu") -> ClipModel:
    """CLIP through open_clip.

    Args:
        name: ViT-B-32 or ViT-L-14.
        spec: a file of its weights, or a tag of open_clip (`openai`), fetched from the hub.

    Raises:
        BackboneError: there is none.
    """
    import open_clip

    try:
        network = open_clip.create_model(
            name, pretrained=spec, force_quick_gelu=True, require_pretrained=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BackboneError(f"{spec}: no CLIP {name} ({first_line(error)})") from error
    return ClipModel(network, name, device)


def pretrained(name: str, network: type, processor: type, spec: str, device: str) -> tuple:
    """A network of transformers in float32, set to judge, and its processor.

    Args:
        name: to say what is missing.

    Raises:
        BackboneError: there is none; or some of its weights are missing, which transformers would
            draw at random.
    """
    try:
        loaded, notes = network.from_pretrained(spec, output_loading_info=True, dtype=torch.float32)
        prepares = processor.from_pretrained(spec)
    except (OSError, ValueError, RuntimeError) as error:
        raise BackboneError(f"{spec}: no {name} ({first_line(error)})") from error
    if lacks := sorted(notes["missing_keys"]):
        raise BackboneError(f"{spec}: no {name} (it lacks {lacks[0]}, {len(lacks)} in all)")
    return loaded.eval().requires_grad_(False).to(device), prepares


def weights_sha256(network: nn.Module) -> str:
    """Of the numbers, in float32, whatever file they came in."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {list(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
