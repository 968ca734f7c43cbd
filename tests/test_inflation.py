"""2-D → 3-D inflation: the video VAE begins where the image VAE stopped."""

import pytest
import torch

from model.inflation import inflate
from model.vae import WanVAE
from tests.drawn import draw


@pytest.fixture(scope="module")
def flat() -> WanVAE:
    return draw(WanVAE(width=8, latent_channels=4, taps=1, temporal=(False, False, False)))


def test_on_a_still_video_every_frame_is_the_image_models(flat: WanVAE) -> None:
    vae = inflate(flat)
    image = torch.rand(2, 3, 1, 16, 24) * 2 - 1
    with torch.no_grad():
        expected = flat.encode(image)
        still = vae.encode(image.expand(-1, -1, 9, -1, -1))
        assert still.mean.shape[2] == 3
        for name in ("mean", "logvar"):
            other = getattr(expected, name)
            assert other.std() > 0.05
            torch.testing.assert_close(
                getattr(still, name), other.expand(-1, -1, 3, -1, -1), atol=1e-5, rtol=0
            )
        shown = flat.decode(expected.mean)
        frames = vae.decode(still.mean)
        assert frames.shape[2] == 9
        torch.testing.assert_close(frames, shown.expand(-1, -1, 9, -1, -1), atol=1e-5, rtol=0)


def test_it_has_the_names_of_a_video_vae_and_can_learn_from_the_past(flat: WanVAE) -> None:
    vae = inflate(flat)
    assert vae.state_dict().keys() == WanVAE(width=8, latent_channels=4).state_dict().keys()
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    vae.decode(vae.encode(video).mean).square().mean().backward()
    for name, weight in vae.named_parameters():
        if weight.ndim == 5 and weight.shape[2] == 3:
            assert weight.grad[:, :, :-1].abs().max() > 0, name


def test_an_image_model_takes_every_frame_for_itself(flat: WanVAE) -> None:
    video = torch.rand(1, 3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        together = flat.encode(video).mean
        for t in range(3):
            alone = flat.encode(video[:, :, t : t + 1]).mean
            torch.testing.assert_close(together[:, :, t : t + 1], alone, atol=1e-5, rtol=0)
    assert flat.compression == (1, 8, 8)


def test_only_an_image_model_is_inflated(flat: WanVAE) -> None:
    with pytest.raises(ValueError, match="only an image VAE"):
        inflate(WanVAE(width=4))
    with pytest.raises(ValueError, match="can't halve time"):
        WanVAE(width=4, taps=1)
    with pytest.raises(ValueError, match="in the image VAE"):
        inflate(flat, width=4)
