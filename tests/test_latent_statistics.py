"""What a VAE's latents are scaled by."""

import pytest
import torch

from model.vae import Posterior, WanVAE
from training.latent_statistics import LatentStatistics, describe

MEAN, STD, NOISE = (1.0, -2.0, 0.0), (0.5, 3.0, 0.0), (0.1, 0.5, 1.0)


def posterior(seed: int, batch: int, frames: int, side: int) -> Posterior:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, 3, frames, side, side, generator=generator)
    mean, std, noise = (torch.tensor(one).view(3, 1, 1, 1) for one in (MEAN, STD, NOISE))
    return Posterior(mean + std * z, (2 * noise.log()).expand_as(z))


def test_it_is_the_mean_and_deviation_of_what_is_sampled():
    found = LatentStatistics()
    samples = []
    for seed, shape in enumerate([(2, 3, 16), (4, 1, 24), (1, 5, 40)]):
        one = posterior(seed, *shape)
        found.add(one)
        generator = torch.Generator().manual_seed(100 + seed)
        samples.append(one.sample(generator).transpose(0, 1).flatten(1))
    samples = torch.cat(samples, dim=1)
    assert found.mean == pytest.approx(samples.mean(1).tolist(), abs=0.05)
    assert found.std == pytest.approx(samples.std(1).tolist(), rel=0.02)
    assert found.std[2] == pytest.approx(1, abs=1e-3)  # holds nothing, and keeps its size


def test_parts_add_up():
    whole, parts = LatentStatistics(), [LatentStatistics(), LatentStatistics()]
    for seed in range(4):
        whole.add(posterior(seed, 2, 2, 8))
        parts[seed % 2].add(posterior(seed, 2, 2, 8))
    parts[0].sums = parts[0].sums + parts[1].sums
    assert parts[0].mean == pytest.approx(whole.mean)
    assert parts[0].std == pytest.approx(whole.std)


def test_a_vae_normalises_by_it_and_hands_it_on():
    vae = WanVAE(width=4, latent_channels=3, blocks=1)
    found = LatentStatistics()
    one = posterior(0, 2, 4, 32)
    found.add(one)
    describe(vae, found.mean, found.std)
    for network in (vae, WanVAE(**vae.config)):
        scaled = network.normalize(one.mean).transpose(0, 1).flatten(1)
        assert scaled.mean(1).abs().max() < 1e-4
        assert scaled.std(1).tolist()[:2] == pytest.approx([1, 1], rel=0.03)
        torch.testing.assert_close(network.denormalize(network.normalize(one.mean)), one.mean)
