"""Rotary positions over time, height and width (Su et al., RoFormer, arXiv 2104.09864).

A head's channels are split over the axes, 44/42/42 at head dim 128, and neighbouring pairs of them
turn by position · 10000^(−2i/d), d the axis' own share. Angles are float64, as in Wan 2.1; a grid's
table is computed once and kept.

Shapes: T, H, W the grid of tokens, N = T·H·W (W varies fastest), B batch, A heads, D head dim.
"""

from collections import OrderedDict

import torch
from torch import Tensor

POSITIONS = 1024  # along an axis, as the public weights know them
THETA = 10_000.0
KEPT = 8  # grids; one of 720p, 81 frames, takes 39 MB

_tables: OrderedDict[tuple, Tensor] = OrderedDict()


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's channels turn with time, height and width: (44, 42, 42) of 128."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def rope_table(grid: tuple[int, int, int], head_dim: int, like: Tensor) -> Tensor:
    """cos and sin of every token's angles, [1, N, 1, D/2, 2] float32 on the device of `like`.

    grid: (T, H, W), each 1..1024. The same grid gives the same tensor back, so do not write to it.
    It belongs to no module: no `.to(bfloat16)`, `to_empty` or state_dict ever touches it. The last
    8 grids stay. A compiled graph has no use for a cache: there the 1024 angles of each axis are
    drawn in the graph (some microseconds), so that one graph serves every grid.
    """
    if torch.compiler.is_compiling() or type(like) is not Tensor:  # a fake one must not be kept
        return _assemble(_draw_axes(head_dim, like.device), grid, head_dim)
    key = (*grid, head_dim, like.device)
    table = _tables.get(key)
    if table is None:
        with torch.inference_mode(False):  # else training could not use what sampling has kept
            table = _assemble(_draw_axes(head_dim, like.device), grid, head_dim)
        _tables[key] = table
        if len(_tables) > KEPT:
            _tables.popitem(last=False)
    else:
        _tables.move_to_end(key)
    return table


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """x [B, N, A, D] with its channel pairs turned by `rope_table`: the form that compiles well."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _draw_axes(head_dim: int, device: torch.device) -> Tensor:
    """cos and sin of all three axes at every position, [1024, D/2, 2] float32."""
    positions = torch.arange(POSITIONS, dtype=torch.float64, device=device)
    angles = []
    for dim in axis_dims(head_dim):
        pairs = torch.arange(0, dim, 2, dtype=torch.float64, device=device)
        angles.append(torch.outer(positions, THETA ** (-pairs / dim)))
    turns = torch.cat(angles, dim=1)
    return torch.stack((turns.cos(), turns.sin()), dim=-1).float()


def _assemble(axes: Tensor, grid: tuple[int, int, int], head_dim: int) -> Tensor:
    t, h, w = grid
    time, rows, columns = axes.split([dim // 2 for dim in axis_dims(head_dim)], dim=1)
    parts = (
        time[:t, None, None].expand(t, h, w, -1, 2),
        rows[None, :h, None].expand(t, h, w, -1, 2),
        columns[None, None, :w].expand(t, h, w, -1, 2),
    )
    return torch.cat(parts, dim=3).reshape(1, t * h * w, 1, head_dim // 2, 2)
