"""The adversary: what it takes, what it learns, and that it goes on where it stopped."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.training import VaeLoss
from training.discriminator import Adversary, PatchDiscriminator


def textures(seed: int, count: int = 4, frames: int = 5, side: int = 32) -> Tensor:
    """[count, 3, frames, side, side]: fine random patterns that drift."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.rand(count, 3, side, side, generator=generator) * 1.6 - 0.8
    return torch.stack([still.roll(t, -1) for t in range(frames)], dim=2)


def soft(video: Tensor) -> Tensor:
    return F.avg_pool3d(F.pad(video, (1, 1, 1, 1)), (1, 3, 3), stride=1)


def adversary(**keys) -> Adversary:
    return Adversary(VaeLoss(gan_width=8, **keys), seed=0)


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 16, 24), (5, 32, 32), (17, 24, 40), (9, 8, 8)])
def test_it_takes_images_and_videos_of_any_size(shape):
    found = PatchDiscriminator(8)(torch.zeros(2, 3, *shape))
    assert found.shape[:2] == (2, 1)
    assert found.shape[3:] == (shape[1] // 8, shape[2] // 8)


def test_a_patch_sees_about_54_pixels_and_25_frames():
    network = PatchDiscriminator(8)
    for layer in network.layers:  # which look at everything
        if isinstance(layer, torch.nn.GroupNorm):
            layer.forward = lambda x: x
    video = torch.zeros(1, 3, 33, 128, 128, requires_grad=True)
    found = network(video)
    found[0, 0, found.shape[2] // 2, found.shape[3] // 2, found.shape[4] // 2].backward()
    seen = video.grad.abs().sum((0, 1)) > 0
    assert seen.flatten(1).any(1).sum() == 25
    assert seen.any(0).any(0).sum() == seen.any(0).any(1).sum() == 54


def test_a_handful_of_steps_tells_planted_blur():
    judge = adversary(gan_lr=1e-3)
    for step in range(12):
        video = textures(step)
        judge.learn(video, soft(video), 1.0)
        judge.step()
    video = textures(1000, count=8)
    with torch.no_grad():
        real, fake = (judge.network(one).mean((1, 2, 3, 4)) for one in (video, soft(video)))
    assert real.min() > fake.max() + 0.5


def test_it_learns_from_a_step_in_parts_what_it_learns_from_the_whole():
    whole, parts = adversary(), adversary()
    video = textures(0)
    whole.learn(video, soft(video), 1.0)
    for i in (0, 1):
        part = video[2 * i : 2 * i + 2]
        parts.learn(part, soft(part), 0.5)
    for a, b in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_only_what_was_rebuilt_feels_the_verdict():
    judge = adversary()
    rebuilt = soft(textures(0)).requires_grad_()
    judge.fooled(rebuilt).sum().backward()
    assert rebuilt.grad.abs().max() > 0
    assert all(one.grad is None for one in judge.network.parameters())
    judge.learn(textures(0), rebuilt, 1.0)
    assert all(one.grad is not None for one in judge.network.parameters())


def test_it_begins_alike_everywhere_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    a, b = adversary(), adversary()
    assert torch.rand(1) == expected
    for x, y in zip(a.network.parameters(), b.network.parameters(), strict=True):
        assert torch.equal(x, y)


def test_stopped_and_loaded_it_goes_on_the_same():
    def learn(judge: Adversary, steps: range) -> None:
        for step in steps:
            judge.learn(textures(step), soft(textures(step)), 1.0)
            judge.step()

    whole, first, second = adversary(), adversary(), Adversary(VaeLoss(gan_width=8), seed=5)
    learn(whole, range(4))
    learn(first, range(2))
    second.load_state_dict(first.state_dict())
    second.to(torch.device("cpu"))
    learn(second, range(2, 4))
    for a, b in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_gradient_that_is_no_number_is_thrown_away():
    judge = adversary()
    before = [one.clone() for one in judge.network.parameters()]
    judge.learn(textures(0), torch.full((4, 3, 5, 32, 32), float("nan")), 1.0)
    judge.step()
    for a, b in zip(before, judge.network.parameters(), strict=True):
        assert torch.equal(a, b)
        assert b.grad is None
