"""The VAE's losses by closed forms."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from model.vae import Posterior
from training.vae_loss import adaptive_weight, hinge_discriminator, hinge_generator, kl, l1, l2


def posterior(frames: int, height: int, width: int, batch: int = 2) -> Posterior:
    """Latents of a clip, 16 channels."""
    generator = torch.Generator().manual_seed(0)
    mean = 2 * torch.randn(batch, 16, frames, height, width, generator=generator)
    return Posterior(mean, torch.randn(mean.shape, generator=generator))


def test_l1_and_l2_are_the_means_of_a_clip():
    video = torch.zeros(2, 3, 5, 8, 8)
    rebuilt = video.clone()
    rebuilt[0] = 0.5
    rebuilt[1, :, 0] = -1  # one frame of five
    assert l1(video, rebuilt).tolist() == pytest.approx([0.5, 0.2])
    assert l2(video, rebuilt).tolist() == pytest.approx([0.25, 0.2])


def test_kl_is_the_sum_over_a_clip_of_the_reports_size():
    one = posterior(2, 16, 16)  # of 5 frames of 128 × 128
    prior = Normal(torch.zeros_like(one.mean), torch.ones_like(one.mean))
    expected = kl_divergence(Normal(one.mean, one.std), prior).sum((1, 2, 3, 4))
    torch.testing.assert_close(kl(one), expected, rtol=1e-5, atol=0)


def test_kl_does_not_depend_on_the_size_of_a_clip():
    small = posterior(1, 4, 4)
    large = Posterior(*(x.repeat(1, 1, 3, 5, 2) for x in (small.mean, small.logvar)))
    torch.testing.assert_close(kl(large), kl(small))


def test_the_standard_normal_has_no_divergence():
    nothing = Posterior(torch.zeros(1, 4, 2, 3, 3), torch.zeros(1, 4, 2, 3, 3))
    assert kl(nothing).tolist() == [0]


def test_the_hinge_losses_are_those_of_the_paper():
    real, fake = torch.tensor([[2.0, 0.0], [-1.0, 1.0]]), torch.tensor([[-2.0, 0.5], [-1.0, 3.0]])
    # ((0 + 1) + (0 + 1.5)) / 2 / 2 and ((2 + 0) + (0 + 4)) / 2 / 2
    assert hinge_discriminator(real, fake).tolist() == pytest.approx([0.625, 1.5])
    assert hinge_generator(fake).tolist() == pytest.approx([0.75, -1.0])


def test_what_is_judged_safely_right_has_no_slope():
    real = torch.tensor([[1.5, 0.5]], requires_grad=True)
    fake = torch.tensor([[-1.5, -0.5]], requires_grad=True)
    hinge_discriminator(real, fake).sum().backward()
    assert real.grad.tolist() == [[0, -0.25]]
    assert fake.grad.tolist() == [[0, 0.25]]


@pytest.mark.parametrize("scale", [0.1, 20.0])
def test_the_adaptive_weight_makes_both_slopes_equally_long(scale):
    torch.manual_seed(0)
    first, last = nn.Linear(5, 7), nn.Linear(7, 3)
    y = last(torch.tanh(first(torch.randn(4, 5))))
    reconstruction, adversarial = (y - 1).abs().mean(), scale * (y * torch.randn(3)).mean()
    weight = adaptive_weight(reconstruction, adversarial, last.weight)
    slopes = [
        torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm()
        for loss in (reconstruction, weight * adversarial)
    ]
    assert float(slopes[0]) == pytest.approx(float(slopes[1]), rel=1e-4)
    assert not weight.requires_grad


def test_an_adversary_without_an_opinion_gets_no_endless_weight():
    weight = torch.ones(2, requires_grad=True)
    found = adaptive_weight(1e3 * weight.sum(), 0 * weight.sum(), weight)
    assert float(found) == 1e4
