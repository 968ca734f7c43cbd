"""How clean a picture is to MUSIQ: VBench's imaging_quality, to the letter.

MUSIQ (Ke et al., arXiv 2108.05997) sees a picture at three sizes, cut into patches, as one
sequence. Parameters are named as in pyiqa (`musiq_arch.py`), whose weights VBench takes. Sequences
are not filled up to a length here: what fills them there is masked, and without influence.

B pictures, N patches of P × P pixels, D = 384 features.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import Resize

from eval.measures.encoders import BackboneError, first_line, weights_sha256
from eval.measures.measure import Measure, Video

PATCH = 32  # pixels
LONG_SIDES = 224, 384  # pixels that a picture is resized to, beside its own size
GRID = 10  # positions along a side, whatever the number of patches
STEM, HIDDEN, MLP, HEADS, LAYERS = 64, 384, 1152, 6, 14
LONGEST = 512  # pixels of the long side, from VBench
SCALE = 100  # of SPAQ's opinions
BATCH = 8  # frames at once
Score = Callable[[Tensor], Tensor]  # float [B, 3, H, W] of 0–1 → [B] of about 0–100


def same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around [..., H, W], so that ⌈side / stride⌉ are left; the odd one below and right."""
    down, across = (
        max(0, (math.ceil(side / stride) - 1) * stride + kernel - side) for side in x.shape[-2:]
    )
    return F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))


class StandardConv(nn.Conv2d):
    """Weights of each output have mean 0 and deviation 1 (Qiao et al., arXiv 1903.10520)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(same(x, self.kernel_size[0], self.stride[0]), weight, stride=self.stride)


class Bottleneck(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1 = StandardConv(width, width, 1, bias=False)
        self.gn1 = nn.GroupNorm(32, width, eps=1e-4)
        self.conv2 = StandardConv(width, width, 3, bias=False)
        self.gn2 = nn.GroupNorm(32, width, eps=1e-4)
        self.conv3 = StandardConv(width, out, 1, bias=False)
        self.gn3 = nn.GroupNorm(32, out, eps=1e-4)
        self.conv_proj = StandardConv(width, out, 1, bias=False)
        self.gn_proj = nn.GroupNorm(32, out, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        past = self.gn_proj(self.conv_proj(x))
        x = F.relu(self.gn1(self.conv1(x)))
        x = F.relu(self.gn2(self.conv2(x)))
        return F.relu(self.gn3(self.conv3(x)) + past)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = (part(x).unflatten(-1, (HEADS, -1)) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(HIDDEN, MLP), nn.Linear(MLP, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(HIDDEN, eps=1e-6) for _ in range(2))
        self.attention, self.mlp = Attention(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Table(nn.Module):
    """A learned table under the name that it has in the file."""

    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(0.02 * torch.randn(shape)))

    def forward(self, places: Tensor) -> Tensor:
        return next(self.parameters()).flatten(0, -2)[places]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.posembed_input = Table("position_emb", 1, GRID**2, HIDDEN)
        self.scaleembed_input = Table("scale_emb", len(LONG_SIDES) + 1, HIDDEN)
        self.cls = nn.Parameter(torch.zeros(1, 1, HIDDEN))
        self.encoder_norm = nn.LayerNorm(HIDDEN, eps=1e-6)
        self.transformer = nn.ModuleDict({f"encoderblock_{k}": Block() for k in range(LAYERS)})

    def forward(self, x: Tensor, places: Tensor, sizes: Tensor) -> Tensor:
        """[B, N, D], and [N] places in the grid and numbers of the size → [B, D]."""
        x = x + self.posembed_input(places) + self.scaleembed_input(sizes)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        for block in self.transformer.values():
            x = block(x)
        return self.encoder_norm(x[:, 0])


class Musiq(nn.Module):
    """float [B, 3, H, W] of 0–1 → [B], the mean opinion that is foretold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_root = StandardConv(3, STEM, 7, stride=2, bias=False)
        self.gn_root = nn.GroupNorm(32, STEM, eps=1e-6)
        self.block1 = Bottleneck(STEM, 4 * STEM)
        self.embedding = nn.Linear(4 * STEM * (PATCH // 4) ** 2, HIDDEN)
        self.transformer_encoder = Encoder()
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        patches, places, sizes = cut(2 * pictures - 1)
        x = patches.flatten(0, 1)
        x = F.relu(self.gn_root(self.conv_root(x)))
        x = self.block1(F.max_pool2d(same(x, 3, 2), 3, 2))
        x = x.permute(0, 2, 3, 1).flatten(1)  # channels last, as in the original
        x = self.embedding(x).unflatten(0, patches.shape[:2])
        places, sizes = places.to(x.device), sizes.to(x.device)
        return self.head(self.transformer_encoder(x, places, sizes))[:, 0]


def cut(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, 3, H, W] → patches [B, N, 3, P, P], their places in the grid [N], which size [N]: long
    sides of 224, 384, and the picture's own."""
    patches, places, sizes = [], [], []
    for number, picture in enumerate([*(resized(pictures, one) for one in LONG_SIDES), pictures]):
        rows, columns = (math.ceil(side / PATCH) for side in picture.shape[-2:])
        found = F.unfold(same(picture, PATCH, PATCH), PATCH, stride=PATCH)
        patches.append(found.transpose(1, 2).unflatten(-1, (-1, PATCH, PATCH)))
        places.append((GRID * hashed(rows)[:, None] + hashed(columns)).flatten())
        sizes.append(torch.full((rows * columns,), number))
    return torch.cat(patches, dim=1), torch.cat(places), torch.cat(sizes)


def resized(pictures: Tensor, long_side: int) -> Tensor:
    factor = long_side / max(pictures.shape[-2:])
    size = [round(side * factor) for side in pictures.shape[-2:]]
    return F.interpolate(pictures, size, mode="bicubic", align_corners=False)


def hashed(count: int) -> Tensor:
    """[count] patches along a side → their places along the grid's (the paper's 3.3)."""
    grid = torch.arange(GRID, dtype=torch.float32)
    return F.interpolate(grid[None, None], count, mode="nearest")[0, 0].long()


def load_musiq(path: str, device: str = "cpu") -> tuple[Score, str]:
    """MUSIQ, and the SHA-256 of its weights.

    Args:
        path: pyiqa's `musiq_spaq_ckpt-358bb6af.pth`.

    Raises:
        BackboneError: it is not there, or something else.
    """
    network = Musiq()
    try:
        stored = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
        network.load_state_dict({name.removeprefix("module."): x for name, x in stored.items()})
    except Exception as error:  # whatever a file's bytes provoke
        raise BackboneError(f"{path}: no MUSIQ ({first_line(error)})") from error
    network.eval().requires_grad_(False).to(device)
    return lambda pictures: network(pictures.to(device)).cpu(), weights_sha256(network)


def prepared(pictures: Tensor) -> Tensor:
    """float [B, 3, H, W] of 0–255 → 0–1, a long side beyond 512 scaled to it, without antialiasing
    (VBench, imaging_quality.py, its mode "longer")."""
    height, width = pictures.shape[-2:]
    if max(height, width) > LONGEST:
        factor = LONGEST / max(height, width)
        pictures = Resize([int(factor * height), int(factor * width)], antialias=False)(pictures)
    return pictures / 255


def imaging_quality(score: Score, sha256: str) -> Measure:
    """MUSIQ's mean over frames, a hundredth of it (VBench, imaging_quality.py)."""

    def of(video: Video) -> float:
        pictures = torch.from_numpy(video.frames).permute(0, 3, 1, 2)
        found = [score(prepared(some.float())) for some in pictures.split(BATCH)]
        return float(torch.cat(found).double().mean() / SCALE)

    return Measure(
        "imaging_quality",
        of,
        "0–1",
        True,
        "how clean frames are to MUSIQ",
        ("MUSIQ SPAQ", sha256),
    )
