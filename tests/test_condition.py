"""The condition of image-to-video models is diffusers', and says nothing but what is given."""

import pytest
import torch
from diffusers import WanImageToVideoPipeline

from model.condition import condition, encode, fold
from model.vae import WanVAE
from tests import pipelines, tiny_wan


@pytest.fixture(scope="module")
def vaes() -> tuple[WanVAE, WanImageToVideoPipeline]:
    """A VAE of ours, and diffusers' pipeline around one with the same weights."""
    theirs = pipelines.vae()
    ours = WanVAE(**tiny_wan.VAES["wan"][0])
    ours.load_state_dict(tiny_wan.renamed(theirs))
    pipe = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=theirs,
        scheduler=pipelines.scheduler(),
        image_processor=None,
        image_encoder=None,
        transformer=None,
    )
    return ours.eval(), pipe


def picture(seed: int, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("last", [False, True], ids=["first", "first and last"])
@pytest.mark.parametrize("frames", [5, 9, 17])
def test_it_is_what_diffusers_prepares(vaes, frames, last):
    ours, pipe = vaes
    first, end = picture(0), picture(1) if last else None
    _, wanted = pipe.prepare_latents(
        first, 1, 16, 16, 24, frames, torch.float32, torch.device("cpu"), None, None, end
    )
    video, given = torch.zeros(1, 3, frames, 16, 24), torch.zeros(frames, dtype=torch.bool)
    video[:, :, 0], given[0] = first, True
    if last:
        video[:, :, -1], given[-1] = end, True
    got = condition(ours, video, given)
    assert got.shape == (1, 20, (frames - 1) // 4 + 1, 2, 3)
    assert torch.equal(got[:, :4], wanted[:, :4])
    assert (got - wanted).abs().max() < 1e-5
    assert wanted[:, 4:].std() > 0.1


def test_a_latent_frame_has_a_mask_channel_for_each_of_its_frames():
    given = torch.zeros(13, dtype=torch.int64)
    given[[0, 1, 2, 6, 12]] = 1
    assert fold(given).T.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert fold(torch.zeros(5)).any().item() is False


def test_what_is_not_given_does_not_leak(vaes):
    video = torch.rand(2, 3, 9, 16, 16) * 2 - 1
    given = torch.tensor([True] * 3 + [False] * 6)
    other = video.clone()
    other[:, :, 3:] = torch.rand(2, 3, 6, 16, 16)
    grey = video.clone()
    grey[:, :, 3:] = 0
    got = condition(vaes[0], video, given)
    assert torch.equal(got, condition(vaes[0], other, given))
    assert torch.equal(got[:, 4:], encode(vaes[0], grey))
    changed = video.clone()
    changed[:, :, 2] += 0.1
    assert not torch.equal(got, condition(vaes[0], changed, given))


def test_a_video_encoded_in_pieces_is_the_normalised_mean_of_the_whole(vaes):
    video = torch.rand(1, 3, 37, 16, 16) * 2 - 1  # more than one piece
    with torch.no_grad():
        wanted = vaes[0].normalize(vaes[0].encode(video).mean)
    assert (encode(vaes[0], video) - wanted).abs().max() < 1e-4
    pieces = iter([video[:, :, :1], video[:, :, 1:20], video[:, :, 20:]])
    assert (encode(vaes[0], pieces) - wanted).abs().max() < 1e-4


def test_a_mask_of_another_length_is_refused(vaes):
    with pytest.raises(ValueError, match="5 frames"):
        condition(vaes[0], torch.zeros(1, 3, 5, 16, 16), torch.ones(9, dtype=torch.bool))
