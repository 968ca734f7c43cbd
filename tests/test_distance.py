"""Distances against closed forms and torchmetrics."""

import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from model import distance


def videos(seed=0, shape=(2, 3, 4, 24, 31)):
    """Two videos in -1..1 that resemble each other, the second pair less."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(shape, generator=generator) * 2 - 1
    noise = torch.randn(shape, generator=generator) * torch.tensor([0.1, 0.5]).view(2, 1, 1, 1, 1)
    return a, (a + noise).clamp(-1, 1)


@pytest.mark.parametrize("error", [0.02, 0.5])
def test_psnr_of_a_constant_error_is_known(error):
    a = torch.zeros(3, 3, 2, 8, 8)
    expected = 20 * math.log10(2 / error)
    assert distance.psnr(a, a + error).tolist() == pytest.approx([expected] * 3, abs=1e-5)
    assert distance.psnr(a, a + error, peak=1.0)[0] == pytest.approx(
        20 * math.log10(1 / error), abs=1e-5
    )


def test_psnr_of_equal_videos_is_infinite():
    a, _ = videos()
    assert distance.psnr(a, a).tolist() == [math.inf, math.inf]


def test_each_video_and_each_frame_is_measured_on_its_own():
    a = torch.zeros(2, 3, 2, 8, 8)
    b = a.clone()
    b[1, :, 1] = 0.2
    expected = 20 * math.log10(2 / 0.2)
    frames = distance.psnr_frames(a, b)
    assert frames[0].tolist() == [math.inf, math.inf]
    assert frames[1].tolist() == pytest.approx([math.inf, expected], abs=1e-5)
    # half of the frames at fault: half of the error
    assert distance.psnr(a, b)[1] == pytest.approx(expected + 10 * math.log10(2), abs=1e-5)


def test_ssim_is_torchmetrics_ssim():
    a, b = videos()
    for mine, x, y in zip(distance.ssim(a, b), a, b, strict=True):
        _, map_of = structural_similarity_index_measure(
            x.transpose(0, 1), y.transpose(0, 1), data_range=2.0, return_full_image=True
        )
        inside = map_of[..., 5:-5, 5:-5]  # torchmetrics pads; Wang et al. do not
        assert float(mine) == pytest.approx(float(inside.mean()), abs=1e-5)


def test_ssim_of_flat_frames_is_known():
    a, b = torch.full((1, 3, 1, 16, 16), 0.5), torch.full((1, 3, 1, 16, 16), -0.25)
    c = 0.02**2
    expected = (2 * 0.5 * -0.25 + c) / (0.5**2 + 0.25**2 + c)
    assert float(distance.ssim(a, b)) == pytest.approx(expected)


def test_the_better_video_scores_higher():
    a, b = videos()
    assert distance.psnr(a, b)[0] > distance.psnr(a, b)[1]
    assert distance.ssim(a, b)[0] > distance.ssim(a, b)[1]
    assert distance.ssim(a, a).tolist() == pytest.approx([1, 1])


def test_what_cannot_be_compared_is_refused():
    a, b = videos()
    with pytest.raises(ValueError, match="of one shape"):
        distance.psnr(a, b[:1])
    with pytest.raises(ValueError, match="11×11"):
        distance.ssim(a[..., :10], b[..., :10])
