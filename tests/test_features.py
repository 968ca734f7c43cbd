"""Features of captions: the encoder's own, remembered, told apart."""

import pytest
import torch

from model.byte_encoder import ByteEncoder
from training import features
from training.features import Features, fingerprint, given

PROMPTS = ["a cat", "", "一只猫在走路", "a cat"]


def encoder(**sizes) -> ByteEncoder:
    return ByteEncoder(**{"width": 16, "length": 32} | sizes).eval()


def test_they_are_the_encoder_s_own_whatever_was_asked_before():
    one = encoder()
    some = Features(one)
    with torch.no_grad():
        wanted = one.encode(PROMPTS).features
    torch.testing.assert_close(some.filled(some(PROMPTS)), wanted)
    torch.testing.assert_close(some.filled(some(PROMPTS[::-1])), wanted.flip(0))
    assert [len(row) for row in some.rows(PROMPTS)] == [6, 1, 19, 6]


def test_only_so_many_bytes_are_remembered_those_that_came_last():
    row = 2 * 16 * 4  # of a prompt of one letter
    some = Features(encoder(), remembered=2 * row)
    fresh = some(["a", "b", "c"])
    assert list(some._rows) == ["b", "c"]
    assert some.held == 2 * row
    torch.testing.assert_close(some(["a", "b", "c"]), fresh)
    assert Features(encoder(), remembered=0)(["a"]).shape == (1, 2, 16)


@pytest.mark.parametrize(("longest", "wanted"), [(1, 64), (63, 64), (64, 128), (200, 256)])
def test_the_dit_is_given_one_zero_at_least_or_all_that_it_takes(longest, wanted):
    assert given(longest, 512) == wanted
    assert given(longest, 100) == min(wanted, 100)
    some = Features(encoder(length=512))
    rows = torch.ones(2, longest, 16)
    filled = some.filled(rows)
    assert torch.equal(filled[:, :longest], rows)
    assert filled.shape == (2, wanted, 16)
    assert not filled[:, longest:].any()


def test_an_encoder_is_told_by_its_weights_and_sizes():
    one = fingerprint(encoder())
    assert fingerprint(encoder()) == one
    assert fingerprint(encoder().bfloat16()) != one  # its features are others too
    others = [encoder(seed=1), encoder(width=32), encoder(length=64), encoder(num_layers=1)]
    changed = encoder()
    with torch.no_grad():
        changed.blocks[1].out.weight[0, 0] += 1e-3
    found = {one, *map(fingerprint, [*others, changed])}
    assert len(found) == 6


def test_captions_are_told_apart_whatever_their_bytes():
    texts = ["a", "b", "猫", "\udc80", ""]
    assert len({features.name(one) for one in texts}) == 5
