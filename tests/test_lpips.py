"""LPIPS against torchmetrics' with the same weights, and every layout it reads."""

from functools import lru_cache

import pytest
import torch
import torchvision
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS, ScalingLayer

from model.lpips import BACKBONES, LPIPS, load_lpips, packaged
from model.tensors import CheckpointError, open_weights
from tests.drawn import draw

NETS = ("alex", "vgg")


@lru_cache
def reference(net: str) -> _LPIPS:
    """torchmetrics' module with a random backbone and the published learned weights."""
    with torch.device("meta"):  # it would draw a classifier of 124 M weights too
        found = _LPIPS(pretrained=False, net=net, pnet_rand=True)
    found = found.to_empty(device="cpu")
    found.scaling_layer = ScalingLayer()
    draw(found.net)
    learned = open_weights(packaged(net))
    found.load_state_dict({name: learned.read(name) for name in learned.entries}, strict=False)
    return found


def expected(theirs: _LPIPS, a: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad():
        pairs = zip(a.transpose(1, 2), b.transpose(1, 2), strict=True)
        return torch.stack([theirs(x, y).mean() for x, y in pairs])


def torchvisions(net: str, theirs: _LPIPS) -> dict[str, Tensor]:
    """Its backbone under torchvision's names, beside a classifier."""
    found = {"classifier.1.weight": torch.zeros(2, 2)}
    for name, value in theirs.net.state_dict().items():
        found["features." + name.split(".", 1)[1]] = value
    return found


def videos(seed: int = 0, side: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(2, 3, 2, side, side + 8, generator=generator) * 2 - 1
    return a, (a + 0.3 * torch.randn(a.shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize("net", NETS)
def test_it_is_torchmetrics_lpips(net, tmp_path):
    theirs = reference(net)
    torch.save(torchvisions(net, theirs), tmp_path / "backbone.pth")
    mine = load_lpips(tmp_path / "backbone.pth")
    a, b = videos()
    found = expected(theirs, a, b)
    assert found.min() > 1e-3
    torch.testing.assert_close(mine(a, b), found, atol=1e-5, rtol=1e-3)
    assert mine(a, a).tolist() == [0, 0]


def test_it_is_equation_1_pixel_by_pixel():
    """Random weights throughout; the paper's sum written out."""
    network = draw(LPIPS("alex"))
    for weight in network.lins:
        weight.uniform_()
    a, b = videos(side=40)
    a, b = a[:1, :, :1], b[:1, :, :1]
    expected = 0.0
    pairs = zip(network.maps(a[:, :, 0]), network.maps(b[:, :, 0]), network.lins, strict=True)
    for x, y, weight in pairs:
        _, _, height, width = x.shape
        for h in range(height):
            for w in range(width):
                p, q = x[0, :, h, w].double(), y[0, :, h, w].double()
                away = p / p.square().sum().sqrt() - q / q.square().sum().sqrt()
                expected += float((weight * away.square()).sum()) / (height * width)
    assert float(network(a, b)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_its_backbone_has_torchvisions_names_and_shapes(net):
    with torch.device("meta"):
        name = {"alex": "alexnet", "vgg": "vgg16"}[net]
        theirs = getattr(torchvision.models, name)().features.state_dict()
        mine = LPIPS(net).features.state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}


def test_the_learned_weights_are_taken_from_the_file_beside_it_or_the_package(tmp_path):
    theirs = reference("alex")
    torch.save(torchvisions("alex", theirs), tmp_path / "alexnet-owt-7be5be79.pth")
    published = open_weights(packaged("alex")).read("lin2.model.1.weight").flatten()
    alone = load_lpips(tmp_path / "alexnet-owt-7be5be79.pth")
    torch.testing.assert_close(alone.lins[2].data, published)
    own = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate(widths("alex"))}
    torch.save(own, tmp_path / "alex.pth")
    other = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate(widths("vgg"))}
    torch.save(other, tmp_path / "vgg.pth")
    for place in (tmp_path, tmp_path / "alexnet-owt-7be5be79.pth"):
        found = load_lpips(place)
        torch.testing.assert_close(found.lins[2].data, own["lin2.model.1.weight"].flatten())


def widths(net: str) -> tuple[int, ...]:
    return BACKBONES[net].widths


def test_a_whole_module_in_one_file_is_read(tmp_path):
    theirs = reference("vgg")
    torch.save(theirs.state_dict(), tmp_path / "lpips.pth")
    a, b = videos()
    found = load_lpips(tmp_path)(a, b)
    torch.testing.assert_close(found, expected(theirs, a, b), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("net", NETS)
def test_the_smallest_frame_is_the_smallest(net):
    network = LPIPS(net)
    small = network.smallest
    assert network.maps(torch.zeros(1, 3, small, small))[-1].numel() > 0
    with pytest.raises(RuntimeError, match=r"[Oo]utput size is too small"):
        network.maps(torch.zeros(1, 3, small - 1, small - 1))


def test_where_all_features_are_zero_the_slope_is_finite():
    torch.manual_seed(0)
    network = LPIPS("alex")
    network.features[0].weight.zero_()
    network.features[0].bias.fill_(-1)
    a, b = videos()
    b.requires_grad_()
    network(a, b).sum().backward()
    assert b.grad.isfinite().all()


def test_what_is_no_lpips_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="torchvision's alexnet"):
        load_lpips(tmp_path / "none")
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no backbone there; wanted: torchvision's"):
        load_lpips(tmp_path)
    for net, kernel in (("alex", 11), ("vgg", 3)):
        first = {"features.0.weight": torch.zeros(64, 3, kernel, kernel)}
        torch.save(first, tmp_path / f"{net}net.pth")
    with pytest.raises(CheckpointError, match=r"alexnet.pth, vggnet.pth\): name one file"):
        load_lpips(tmp_path)
    cut = torchvisions("alex", reference("alex"))
    del cut["features.8.bias"]
    torch.save(cut, tmp_path / "alexnet.pth")
    with pytest.raises(CheckpointError, match=r"missing: features.8.bias"):
        load_lpips(tmp_path / "alexnet.pth")
