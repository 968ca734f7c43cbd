"""Causal convolution: PyTorch's own 3-D convolution, without the future and without the zeros."""

import pytest
import torch
import torch.nn.functional as F

from model.causal import CausalConv3d, StreamCache, convolve
from tests.drawn import draw


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("learning", [True, False])  # each has a form of its own on a CPU
@pytest.mark.parametrize("frames", [1, 2, 3, 6])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_a_convolution_after_two_frames_of_zero(
    frames: int, batch: int, learning: bool
) -> None:
    layer = draw(CausalConv3d(5, 7, (3, 3, 3)))
    x = noise(batch, 5, frames, 6, 4)
    expected = F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), layer.weight, layer.bias)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_strides_and_zeros_agree_with_pytorch(stride: int, zeros: int) -> None:
    x, weight, bias = noise(2, 3, 7, 4, 4), noise(4, 3, 3, 1, 1), noise(4)
    expected = F.conv3d(F.pad(x, (0, 0, 0, 0, zeros, 0)), weight, bias, stride=(stride, 1, 1))
    with torch.no_grad():
        mine = convolve(x, weight, bias, zeros=zeros, stride=stride)
    torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("cuts", [[1] * 7, [1, 4, 2], [5, 1, 1], [3, 4]])
def test_a_stream_gives_the_same_frames_however_it_is_cut(cuts: list[int]) -> None:
    layer, cache = draw(CausalConv3d(3, 4, (3, 3, 3))), StreamCache()
    x = noise(2, 3, 7, 5, 5)
    with torch.no_grad():
        streamed = torch.cat([layer(part, cache) for part in x.split(cuts, dim=2)], dim=2)
        torch.testing.assert_close(streamed, layer(x))


def test_two_streams_through_one_layer_do_not_meet() -> None:
    layer = draw(CausalConv3d(3, 4, (3, 1, 1)))
    x, y = noise(1, 3, 4, 2, 2), noise(1, 3, 4, 2, 2) + 1
    one, other = StreamCache(), StreamCache()
    for t in range(4):
        frame = slice(t, t + 1)
        torch.testing.assert_close(layer(x[:, :, frame], one), layer(x)[:, :, frame])
        torch.testing.assert_close(layer(y[:, :, frame], other), layer(y)[:, :, frame])


@torch.no_grad()
def test_sampled_pictures_stay_stored_with_channels_last() -> None:
    layer = draw(CausalConv3d(16, 8, (3, 3, 3)))
    for batch, frames in ((1, 1), (1, 4), (2, 1), (2, 3)):
        x = noise(batch, 16, frames, 6, 4).contiguous(memory_format=torch.channels_last_3d)
        assert layer(x).is_contiguous(memory_format=torch.channels_last_3d)
        slice_of_longer = torch.cat([x, x], dim=2)[:, :, :frames]
        assert layer(slice_of_longer).is_contiguous(memory_format=torch.channels_last_3d)
