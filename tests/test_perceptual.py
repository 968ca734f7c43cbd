"""Which perceptual distance, on which frames; its mathematics is tested with the models."""

import pytest
import torch
from torch import Tensor

from model.efficientnet import EfficientNetDistance
from model.lpips import LPIPS
from recipes.keys import UsageError
from tests.drawn import draw
from training.perceptual import PACKAGED, Perceptual


def videos(side: int = 32, frames: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(3, 3, frames, side, side, generator=generator) * 2 - 1
    return video, (video + 0.2 * torch.randn(video.shape, generator=generator))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_a_recipe_chooses_between_the_packaged_network_and_lpips(tmp_path):
    assert isinstance(Perceptual(PACKAGED).distance, EfficientNetDistance)
    torch.save(draw(LPIPS("alex")).features.state_dict(prefix="features."), tmp_path / "alex.pth")
    found = Perceptual(str(tmp_path))
    assert isinstance(found.distance, LPIPS)
    assert (found.name, Perceptual(PACKAGED).name) == ("lpips", "effnet-lite0")


def test_nothing_in_it_is_trained():
    assert not any(one.requires_grad for one in Perceptual(PACKAGED).distance.parameters())


def test_without_weights_one_line_says_what_to_put_where(tmp_path):
    with pytest.raises(UsageError, match=r"loss.backbone=.*none: no such file or folder; put"):
        Perceptual(str(tmp_path / "none"))


def test_frames_that_are_too_small_are_refused_in_one_line():
    video, rebuilt = videos(side=24)
    with pytest.raises(UsageError, match=r"wants frames of 32×32 at least, .* has 24×24"):
        Perceptual(PACKAGED)(video, rebuilt, seeded())


def test_so_many_frames_of_each_clip_are_looked_at():
    video, rebuilt = videos()
    looked = Perceptual(PACKAGED, frames=2)
    each = Perceptual(PACKAGED)
    alone = torch.stack(
        [each(video[:, :, t : t + 1], rebuilt[:, :, t : t + 1], seeded()) for t in range(6)], dim=1
    )
    torch.testing.assert_close(each(video, rebuilt, seeded()), alone.mean(1), atol=1e-5, rtol=0)
    found = looked(video, rebuilt, seeded())
    pairs = [(alone[:, i] + alone[:, j]) / 2 for i in range(6) for j in range(i)]
    near = (torch.stack(pairs) - found).abs() < 1e-5
    assert near.any(0).all()  # a mean of two frames of the clip
    assert near.float().argmax(0).unique().numel() > 1  # other ones in another clip
    assert torch.equal(found, looked(video, rebuilt, seeded()))


def test_frames_that_were_not_chosen_have_no_slope():
    video, rebuilt = videos()
    rebuilt.requires_grad_()
    Perceptual(PACKAGED, frames=2)(video, rebuilt, seeded()).sum().backward()
    assert (rebuilt.grad.abs().amax((1, 3, 4)) > 0).sum(1).tolist() == [2, 2, 2]
