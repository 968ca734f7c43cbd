"""Tiles: they cover, their weights add up, and no seam shows."""

import itertools

import pytest
import torch

from model.tiling import blend, lay, spans
from model.vae import WanVAE
from tests.drawn import draw


@pytest.mark.parametrize("length", range(1, 30))
@pytest.mark.parametrize(("size", "overlap"), [(4, 2), (7, 2), (5, 0), (8, 4)])
def test_stretches_cover_all_and_overlap_enough(length: int, size: int, overlap: int) -> None:
    found = spans(length, size, overlap)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(stop - start == min(size, length) for start, stop in found)
    assert all(one[1] - two[0] >= overlap for one, two in itertools.pairwise(found))


@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_weights_add_up_to_one_everywhere(overlap: int) -> None:
    tiles = lay(11, 17, 6, overlap, pixels=4)
    total = torch.zeros(44, 68)
    for tile in tiles:
        rows, columns = (slice(4 * s.start, 4 * s.stop) for s in (tile.rows, tile.columns))
        total[rows, columns] += tile.weight
    torch.testing.assert_close(total, torch.ones_like(total))


def test_what_needs_no_neighbours_comes_out_as_without_tiles() -> None:
    x = torch.rand(2, 3, 4, 40, 56)
    halve = torch.nn.AvgPool3d((1, 8, 8))
    tiles = lay(5, 7, 3, 1, pixels=1)
    assert len(tiles) > 4
    torch.testing.assert_close(blend(lambda part, cache: halve(part), x, tiles, 8), halve(x))


def test_overlap_brings_tiles_closer_to_the_whole_and_hides_their_seams() -> None:
    vae = draw(WanVAE(width=4, latent_channels=4))
    ramp = torch.linspace(-1, 1, 128)
    video = (ramp[:, None] * ramp[None, :]).expand(1, 3, 5, 128, 128)
    with torch.no_grad():
        whole = vae.encode(video).mean
        frames = vae.decode(whole)
        latents, shown = [], []
        for overlap in (0, 32):
            parts = [part.mean for part in vae.encode_stream([video], tile=64, overlap=overlap)]
            latents.append(torch.cat(parts, dim=2))
            parts = list(vae.decode_stream([whole], tile=64, overlap=overlap))
            shown.append(torch.cat(parts, dim=2))

    def error(tiled: torch.Tensor, untiled: torch.Tensor) -> float:
        assert tiled.shape == untiled.shape
        return (tiled - untiled).abs().mean().item()

    def seam(tiled: torch.Tensor) -> float:  # a jump at column 64 that the whole doesn't have
        return (tiled - frames).diff(dim=-1)[..., 63].abs().mean().item()

    assert error(latents[1], whole) < 0.75 * error(latents[0], whole)
    assert error(shown[1], frames) < 0.8 * error(shown[0], frames)
    assert seam(shown[1]) < 0.25 * seam(shown[0])


def test_a_tile_as_large_as_the_picture_changes_nothing() -> None:
    vae = draw(WanVAE(width=4, latent_channels=4))
    video = torch.rand(1, 3, 9, 16, 24) * 2 - 1
    with torch.no_grad():
        for one, other in zip(
            vae.encode_stream([video], tile=24, overlap=8), vae.encode_stream([video]), strict=True
        ):
            assert torch.equal(one.mean, other.mean)


def test_impossible_tilings_are_refused() -> None:
    vae = WanVAE(width=4, latent_channels=4)
    video = torch.zeros(1, 3, 1, 64, 64)
    with pytest.raises(ValueError, match="tile 60 and overlap 8 must be multiples of 8"):
        next(vae.encode_stream([video], tile=60, overlap=8))
    with pytest.raises(ValueError, match="tiles of 4 cells can't overlap by 3"):
        next(vae.encode_stream([video], tile=32, overlap=24))
