"""LPIPS: how different two pictures look, by the features of an image network.

    distance = load_lpips("alexnet-owt-7be5be79.pth")   # torchvision's AlexNet or VGG16
    distance(a, b)                                       # [B], 0 for equal videos

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv
1801.03924, equation 1, version 0.1: features of unit length, their squared differences weighed a
channel by learned weights, averaged over the picture, summed over five layers. The backbone's
weights are read in torchvision's layout, the learned ones in that of the package `lpips`; a file
may hold both.

Videos are [B, 3, T, H, W] in −1 … 1; frames are compared one by one and weigh the same.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from model.pretrained import fill, locate
from model.tensors import PICKLES, CheckpointError, Weights, open_weights

EPS = 1e-10  # of the unit length
# ImageNet's mean and deviation for pictures in −1 … 1, rounded as lpips has them
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# In files: torchvision's, lpips' whole module, its learned weights with and without dropout
BACKBONE = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)")
LEARNED = re.compile(r"(?:lin|lins\.)(\d)\.model\.[01]\.weight")
WANTED = (
    "torchvision's alexnet-owt-7be5be79.pth or vgg16-397923af.pth, or a whole LPIPS module of the "
    "package lpips"
)


@dataclass(frozen=True)
class Backbone:
    """An image network up to the last layer that is looked at, as torchvision numbers it."""

    convolutions: tuple[tuple[int, int, int], ...]  # channels, kernel, stride
    pools: dict[int, int]  # after that convolution, with that kernel; stride 2
    looks: tuple[int, ...]  # at the activations of these convolutions
    smallest: int  # side of a picture of which all layers see something

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.convolutions[i][0] for i in self.looks)

    def layers(self) -> Iterator[nn.Module]:
        channels = 3
        for i, (width, kernel, stride) in enumerate(self.convolutions):
            # 11 × 11 has the padding of 5 × 5
            yield nn.Conv2d(channels, width, kernel, stride, min(kernel // 2, 2))
            yield nn.ReLU()
            if i in self.pools:
                yield nn.MaxPool2d(self.pools[i], 2)
            channels = width


BACKBONES = {
    "alex": Backbone(
        ((64, 11, 4), (192, 5, 1), (384, 3, 1), (256, 3, 1), (256, 3, 1)),
        {0: 3, 1: 3},
        (0, 1, 2, 3, 4),
        smallest=31,
    ),
    "vgg": Backbone(
        tuple((width, 3, 1) for width in (64, 64, 128, 128, *[256] * 3, *[512] * 6)),
        {1: 2, 3: 2, 6: 2, 9: 2},
        (1, 3, 6, 9, 12),
        smallest=16,
    ),
}


class LPIPS(nn.Module):
    """The distance; frozen.

    Args:
        net: alex or vgg.

    Attributes:
        smallest: side of the smallest frame that it takes.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        backbone = BACKBONES[net]
        self.net, self.smallest = net, backbone.smallest
        self.features = nn.Sequential(*backbone.layers())
        self.lins = nn.ParameterList([nn.Parameter(torch.ones(one)) for one in backbone.widths])
        rectified = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.ReLU)]
        self._looks = {rectified[i] for i in backbone.looks}
        self.requires_grad_(False)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """[N, 3, H, W] in −1 … 1 → five maps of features."""
        shift, scale = (pictures.new_tensor(one).view(3, 1, 1) for one in (SHIFT, SCALE))
        x, found = (pictures - shift) / scale, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self._looks:
                found.append(x)
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[B, 3, T, H, W] twice → [B], float32 at least."""
        pairs = zip(self.maps(frames(a)), self.maps(frames(b)), self.lins, strict=True)
        return each_video(sum(apart(x, y, weight) for x, y, weight in pairs), a)


def frames(video: Tensor) -> Tensor:
    """[B, C, T, H, W] → [B · T, C, H, W]."""
    return video.transpose(1, 2).flatten(0, 1)


def each_video(values: Tensor, video: Tensor) -> Tensor:
    """[B · T] → [B], the mean over a video's frames."""
    return values.view(len(video), -1).mean(1)


def apart(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared distance of two maps' unit vectors, averaged over the picture: [N, C, H, W] → [N].

    Without weights it is 2 − 2 cos, in 0 … 4.
    """
    squares = (unit(x) - unit(y)).square()
    if weight is not None:
        squares = squares * weight.to(squares).view(-1, 1, 1)
    return squares.sum(1).mean((1, 2))


def unit(x: Tensor) -> Tensor:
    """Every pixel's features at length one; zeros, and their slope, stay zeros."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPS)


# --- weights ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What a file has of an LPIPS: our names → its own."""

    weights: Weights
    features: dict[str, str]
    lins: dict[str, str]

    @property
    def net(self) -> str | None:
        """Which backbone lies there, by its first kernel."""
        if "features.0.weight" not in self.features:
            return None
        kernel = self.weights.shapes[self.features["features.0.weight"]][-1]
        return {11: "alex", 3: "vgg"}.get(kernel)

    def fits(self, net: str) -> bool:
        """Whether it has the learned weights for that backbone."""
        widths = tuple(self.weights.shapes[name][1] for _, name in sorted(self.lins.items()))
        return widths == BACKBONES[net].widths


def load_lpips(spec: str | Path) -> LPIPS:
    """From a file or a folder, or `owner/name` on the hub.

    Args:
        spec: a file with a backbone, or a folder that holds one such file. The learned weights are
            taken from there too or, if there are none, from those of version 0.1 that come with
            torchmetrics.

    Raises:
        CheckpointError: no backbone, two, or weights that don't fit.
    """
    path = locate(spec, lambda names: [one for one in names if is_weights(one)], WANTED)
    files = [path]
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if is_weights(one.name))
    parts = [part(one) for one in files]
    backbones = [one for one in parts if one.net]
    if len(backbones) != 1:
        names = ", ".join(one.weights.path.name for one in backbones)
        what = f"more than one backbone ({names}): name one file" if names else "no backbone there"
        raise CheckpointError(f"{path}: {what}; wanted: {WANTED}")
    backbone = backbones[0]
    net = backbone.net
    if path.is_file() and not backbone.lins:
        beside = sorted(one for one in path.parent.iterdir() if one.stem == net)
        parts += [part(one) for one in beside if is_weights(one.name)]
    learned = next((one for one in parts if one.fits(net)), None) or part(packaged(net))
    tensors = {}
    for source, names in ((backbone, backbone.features), (learned, learned.lins)):
        tensors |= {own: source.weights.read(name).float() for own, name in names.items()}
    tensors = {
        own: one.flatten() if own.startswith("lins") else one for own, one in tensors.items()
    }
    network = LPIPS(net)
    fill(network, tensors, path)
    return network.eval().requires_grad_(False)


def is_weights(name: str) -> bool:
    return name.endswith((".safetensors", *PICKLES))


def part(path: Path) -> Part:
    weights = open_weights(path)
    features, lins = {}, {}
    for name in weights.entries:
        if match := BACKBONE.fullmatch(name):
            features[f"features.{match[1]}.{match[2]}"] = name
        elif match := LEARNED.fullmatch(name):
            lins[f"lins.{match[1]}"] = name
    return Part(weights, features, lins)


def packaged(net: str) -> Path:
    """The learned weights in torchmetrics, which is not imported for them."""
    folder = find_spec("torchmetrics").submodule_search_locations[0]
    return Path(folder) / "functional" / "image" / "lpips_models" / f"{net}.pth"
