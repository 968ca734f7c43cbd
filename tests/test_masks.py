"""Which frames an image-to-video model is given, over many draws."""

import pytest
import torch

from training.masks import LONGEST, draw_mask


def drawn(frames: int, count: int = 400, **shares: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [draw_mask(frames, shares, generator) for _ in range(count)]


def test_first_and_both_are_what_their_names_say():
    assert all(mask.nonzero().flatten().tolist() == [0] for mask in drawn(9, first=1))
    assert all(mask.nonzero().flatten().tolist() == [0, 8] for mask in drawn(9, both=1))


@pytest.mark.parametrize("frames", [9, 17, 81])
def test_a_continuation_begins_with_whole_latent_frames_up_to_a_second_and_a_half(frames):
    counts = {int(mask.sum()) for mask in drawn(frames, continuation=1)}
    most = min(LONGEST, (frames + 1) // 2)
    assert counts == {count for count in range(1, most + 1) if count % 4 == 1}
    for mask in drawn(frames, 20, continuation=1):
        count = int(mask.sum())
        assert mask[:count].all()


def test_random_frames_are_never_none_and_never_all():
    masks = drawn(9, random=1)
    counts = {int(mask.sum()) for mask in masks}
    assert min(counts) == 1
    assert max(counts) < 9
    assert torch.stack(masks).any(0).all()


def test_kinds_come_as_often_as_their_shares_ask():
    masks = drawn(81, 4000, first=0.75, both=0.25)
    both = sum(bool(mask[-1]) for mask in masks) / len(masks)
    assert both == pytest.approx(0.25, abs=0.03)


def test_an_image_is_given_nothing():
    assert not any(mask.any() for mask in drawn(1, 20, first=1, random=1))


def test_without_a_share_it_is_refused():
    with pytest.raises(ValueError, match="one above 0"):
        drawn(9, 1, first=0, both=0)
