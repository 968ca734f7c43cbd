"""Large pictures in overlapping tiles, blended where they overlap, so that memory stays small.

Shapes: B batch, C channels, T frames, H height, W width. Tiles are laid out on the latents' grid; a
cell of it is 1 × 1 latents or, say, 8 × 8 pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.causal import StreamCache


@dataclass(frozen=True)
class Tile:
    """One tile: where it lies, how much it counts, and what it remembers of its stream.

    Attributes:
        rows, columns: of the grid.
        weight: [rows, columns] in output pixels; all tiles' weights add up to one everywhere.
    """

    rows: slice
    columns: slice
    weight: Tensor
    cache: StreamCache = field(default_factory=StreamCache)


def spans(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Covers `length` cells by stretches of `size` that overlap by at least `overlap`."""
    if length <= size:
        return [(0, length)]
    starts = [*range(0, length - size, size - overlap), length - size]
    return [(start, start + size) for start in starts]


def ramps(length: int, size: int, overlap: int, pixels: int) -> list[Tensor]:
    """Weights along one axis, one for each of `spans`, `pixels` a cell: they rise and fall linearly
    over the overlap and add up to one."""
    weights = torch.zeros(len(spans(length, size, overlap)), length * pixels)
    for weight, (start, stop) in zip(weights, spans(length, size, overlap), strict=True):
        here = torch.arange(start * pixels, stop * pixels) + 0.5
        rise = (here - start * pixels) if start > 0 else torch.full_like(here, length * pixels)
        fall = (stop * pixels - here) if stop < length else torch.full_like(here, length * pixels)
        weight[start * pixels : stop * pixels] = torch.minimum(rise, fall).clamp_max(
            max(overlap * pixels, 1)
        )
    weights /= weights.sum(0)
    return [
        weight[start * pixels : stop * pixels]
        for weight, (start, stop) in zip(weights, spans(length, size, overlap), strict=True)
    ]


def lay(height: int, width: int, size: int | None, overlap: int, pixels: int) -> list[Tile]:
    """Tiles over a grid of height × width cells.

    Args:
        size: cells along a tile's side; None lays a single tile over everything.
        overlap: cells that neighbours share, at most half of size.
        pixels: output pixels along a cell's side.

    Raises:
        ValueError: size or overlap make no tiling.
    """
    size = max(height, width) if size is None else size
    if size < 1 or not 0 <= overlap <= size // 2:
        raise ValueError(f"tiles of {size} cells can't overlap by {overlap}: 0 to half a tile")
    rows, columns = spans(height, size, overlap), spans(width, size, overlap)
    return [
        Tile(slice(*row), slice(*column), down[:, None] * across)
        for row, down in zip(rows, ramps(height, size, overlap, pixels), strict=True)
        for column, across in zip(columns, ramps(width, size, overlap, pixels), strict=True)
    ]


def blend(
    network: Callable[[Tensor, StreamCache], Tensor], x: Tensor, tiles: list[Tile], cell: int
) -> Tensor:
    """Runs a network tile by tile over x [B, C, T, H, W]; a cell's side is `cell` pixels of x."""
    if len(tiles) == 1:
        return network(x, tiles[0].cache)
    whole = None
    for tile in tiles:
        rows, columns = scaled(tile.rows, cell), scaled(tile.columns, cell)
        part = network(x[..., rows, columns], tile.cache)
        pixels = part.shape[-2] // (tile.rows.stop - tile.rows.start)
        if whole is None:
            height, width = (side // cell * pixels for side in x.shape[-2:])
            whole = part.new_zeros(*part.shape[:3], height, width)
        whole[..., scaled(tile.rows, pixels), scaled(tile.columns, pixels)] += (
            part * tile.weight.to(part)
        )
    return whole


def scaled(span: slice, factor: int) -> slice:
    return slice(span.start * factor, span.stop * factor)
