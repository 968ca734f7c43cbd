"""EfficientNet-Lite0 from a package: the network that timm builds, and it knows what it sees."""

from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from model.distance import ssim
from model.efficientnet import (
    FILE,
    PACKAGE,
    WIDTHS,
    EfficientNetDistance,
    load_efficientnet,
)
from model.tensors import CheckpointError, open_weights
from tests.planted import decode, package_video

NECKWEAR = (457, 834, 906)  # ImageNet's bow tie, suit, Windsor tie


def still(frame: np.ndarray, size: int) -> Tensor:
    """A frame's middle square, [1, 3, size, size] in −1 … 1."""
    x = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    side = min(x.shape[2:])
    top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
    x = x[:, :, top : top + side, left : left + side]
    return F.interpolate(x, (size, size), mode="area")


def test_it_is_the_network_of_timm():
    """Other code, the same weights in the same order; sizes that don't divide by 32 too."""
    folder = find_spec(PACKAGE).submodule_search_locations[0]
    weights = open_weights(f"{folder}/{FILE}")
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    theirs.load_state_dict(
        {
            their: weights.read(mine)
            for their, mine in zip(theirs.state_dict(), weights.entries, strict=True)
        }
    )
    network = load_efficientnet()
    for height, width in ((64, 96), (75, 50)):
        x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            expected = theirs((x * 127.5 + 127.5 - 127) / 128)
            assert expected.std() > 0.5
            torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=0)


def test_a_man_in_a_suit_is_seen_as_that():
    frames, _ = decode(package_video("carphone_pristine.mp4"), 0, 60)
    with torch.no_grad():
        found = load_efficientnet()(torch.cat([still(one, 224) for one in frames[::20]]))
    assert set(found.argmax(1).tolist()) <= set(NECKWEAR)
    assert found.softmax(1)[:, NECKWEAR].sum(1).min() > 0.6


def test_its_maps_have_five_resolutions():
    maps = load_efficientnet().features(torch.zeros(1, 3, 64, 32))
    assert [tuple(one.shape[1:]) for one in maps] == [
        (width, 32 // 2**i, 16 // 2**i) for i, width in enumerate(WIDTHS)
    ]


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="missing"):
        load_efficientnet(tmp_path / "other.pth")


@pytest.fixture(scope="module")
def distance() -> EfficientNetDistance:
    return EfficientNetDistance(load_efficientnet())


@lru_cache(maxsize=1)
def clips() -> Tensor:
    """[6, 3, 2, 64, 64]: pieces of real clips."""
    found = []
    for name in ("carphone_pristine.mp4", "bikes.mp4"):
        frames, _ = decode(package_video(name), 0, 60, long_side=320)
        for i in (0, 20, 40):
            found.append(torch.stack([still(frames[j], 64)[0] for j in (i, i + 8)], dim=1))
    return torch.stack(found)


def blurred(video: Tensor, size: int) -> Tensor:
    b = len(video)
    x = video.transpose(1, 2).flatten(0, 1)
    x = F.interpolate(F.avg_pool2d(x, size), x.shape[2:], mode="bilinear")
    return x.unflatten(0, (b, -1)).transpose(1, 2)


def test_the_distance_grows_with_blur_and_noise_and_hardly_with_brightness(distance):
    video = clips()
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    assert distance(video, video).abs().max() < 1e-6
    soft, softer = distance(video, blurred(video, 2)), distance(video, blurred(video, 4))
    assert (soft > 0.02).all()
    assert (softer > 1.5 * soft).all()
    assert (distance(video, video + 0.2 * noise) > distance(video, video + 0.05 * noise)).all()
    # 26 dB, where blurring over 2 pixels is about 29
    assert (distance(video, video + 0.1) < 0.3 * soft).all()


def test_it_is_one_less_cosine_of_the_maps(distance):
    video = clips()[:2]
    other = blurred(video, 2)
    expected = torch.zeros(2)
    for i in range(2):
        for t in range(2):
            pairs = zip(
                distance.network.features(video[i : i + 1, :, t]),
                distance.network.features(other[i : i + 1, :, t]),
                strict=True,
            )
            for a, b in pairs:
                expected[i] += (1 - F.cosine_similarity(a, b)).mean() / 5 / 2
    torch.testing.assert_close(distance(video, other), expected, atol=1e-5, rtol=0)


def test_a_blurred_picture_led_by_the_distance_gets_its_structure_back(distance):
    video = clips()[:2]
    soft = blurred(video, 4)
    found = soft.clone().requires_grad_()
    optimizer = torch.optim.Adam([found], lr=0.01)
    for _ in range(12):
        optimizer.zero_grad()
        distance(video, found).sum().backward()
        optimizer.step()
    found = found.detach()
    assert (distance(video, found) < 0.5 * distance(video, soft)).all()
    assert (ssim(video, found) > ssim(video, soft)).all()
