"""Rotary positions: diffusers' numbers, their defining property, and a cache that is safe."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch._subclasses.fake_tensor import FakeTensorMode

from model import rope
from model.rope import axis_dims, rope_table, rotate

HERE = torch.zeros(())


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    monkeypatch.setattr(rope, "_tables", type(rope._tables)())


def test_a_head_of_128_is_split_44_42_42():
    assert axis_dims(128) == (44, 42, 42)


@pytest.mark.parametrize("head_dim", [128, 64, 40, 6])
def test_table_is_diffusers_to_the_last_bit(head_dim):
    cos, sin = WanRotaryPosEmbed(head_dim, (1, 2, 2), 1024)(torch.zeros(1, 16, 5, 6, 14))
    table = rope_table((5, 3, 7), head_dim, HERE)
    assert table.dtype == torch.float32
    assert torch.equal(table[..., 0], cos[..., 0::2])
    assert torch.equal(table[..., 1], sin[..., 1::2])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_score_depends_on_the_distance_along_each_axis_alone(axis):
    grid = [1, 1, 1]
    grid[axis] = 9
    table = rope_table(tuple(grid), 32, HERE)
    q, k = torch.randn(2, 1, 1, 1, 32).expand(2, 1, 9, 1, 32)
    scores = (rotate(q, table).squeeze() @ rotate(k, table).squeeze().T).double()
    for distance in range(-8, 9):
        along = scores.diagonal(distance)
        assert (along - along[0]).abs().max() < 1e-4
    assert scores[0].std() > 0.1  # and it does depend on it


def test_the_same_grid_is_not_computed_twice():
    assert rope_table((2, 3, 4), 128, HERE) is rope_table((2, 3, 4), 128, HERE)


def test_grids_head_dims_and_devices_are_told_apart():
    first = rope_table((2, 3, 4), 128, HERE)
    assert not torch.equal(first, rope_table((2, 4, 3), 128, HERE))
    assert rope_table((2, 3, 4), 64, HERE).shape == (1, 24, 1, 32, 2)
    assert rope_table((2, 3, 4), 128, HERE.to("meta")).device.type == "meta"
    assert rope_table((2, 3, 4), 128, HERE) is first


def test_the_cache_keeps_the_last_grids_used_and_no_more():
    first = rope_table((1, 1, 1), 32, HERE)
    for size in range(2, rope.KEPT + 1):
        rope_table((size, 1, 1), 32, HERE)
    assert rope_table((1, 1, 1), 32, HERE) is first  # used again: now the youngest
    second = rope_table((2, 1, 1), 32, HERE)
    for size in range(rope.KEPT + 1, 2 * rope.KEPT - 1):
        rope_table((size, 1, 1), 32, HERE)
    assert len(rope._tables) == rope.KEPT
    assert rope_table((1, 1, 1), 32, HERE) is first
    assert rope_table((2, 1, 1), 32, HERE) is second
    rope_table((99, 1, 1), 32, HERE)
    rope_table((98, 1, 1), 32, HERE)
    assert (3, 1, 1, 32, HERE.device) not in rope._tables


def test_what_sampling_has_cached_training_can_use():
    x = torch.randn(1, 4, 2, 32, requires_grad=True)
    with torch.inference_mode():
        rope_table((1, 2, 2), 32, HERE)
    (rotate(x, rope_table((1, 2, 2), 32, HERE)) ** 2).sum().backward()
    assert torch.allclose(x.grad, 2 * x, atol=1e-5)  # a rotation keeps lengths


def test_fake_tensors_leave_nothing_fake_behind():
    with FakeTensorMode() as mode:
        rope_table((1, 2, 2), 32, mode.from_tensor(HERE))
    assert type(rope_table((1, 2, 2), 32, HERE)) is torch.Tensor
    assert rope_table((1, 2, 2), 32, HERE)[0, 0, 0, 0, 0] == 1


def test_one_compiled_graph_serves_every_grid():
    graphs = []

    def record(graph, _):
        graphs.append(graph)
        return graph

    @torch.compile(fullgraph=True, backend=record, dynamic=True)
    def table(x):
        return rope_table(tuple(x.shape), 32, x) + 0

    for grid in ((2, 3, 4), (5, 3, 4), (4, 6, 7)):
        assert torch.equal(table(torch.zeros(grid)), rope_table(grid, 32, HERE))
    assert len(graphs) == 1


def test_rotation_is_multiplication_by_a_complex_number():
    x, table = torch.randn(2, 24, 3, 32), rope_table((2, 3, 4), 32, HERE)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.view_as_complex(table)
    assert torch.allclose(rotate(x, table), torch.view_as_real(turned).flatten(-2), atol=1e-6)
