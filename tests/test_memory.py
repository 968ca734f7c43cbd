"""When memory runs out, what is told would fit is less than what was asked for."""

import re
from dataclasses import replace

import pytest
import torch

from eval import memory
from model.bundle import load_bundle
from model.sampler import Settings


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("random:tiny")


def settings(bundle, **more) -> Settings:
    return Settings.of(bundle.card, width=832, height=480, frames=81, **more)


def test_the_estimate_grows_with_all_that_costs_memory(bundle):
    asked = replace(settings(bundle), frames=801)  # the DiT's share, not the VAE's
    least = memory.needed(bundle, replace(asked, batched=False))
    assert least < memory.needed(bundle, asked) < memory.needed(bundle, asked, 2)
    for less in ({"frames": 41}, {"width": 416}, {"guidance": 1.0}):
        assert memory.needed(bundle, replace(asked, **less)) < memory.needed(bundle, asked)
    parts = [*bundle.dit.parameters(), *bundle.vae.parameters(), *bundle.text.parameters()]
    assert memory.weights(bundle) == sum(4 * value.numel() for value in parts)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.01])
def test_the_gentlest_change_that_fits_is_told(bundle, share):
    asked = settings(bundle)
    room = int(share * memory.needed(bundle, asked, 3))
    line = memory.advice(bundle, asked, 3, room)
    assert "832x480, 81 frames, batch=3 on cpu" in line
    assert "\n" not in line
    found = dict(re.findall(r"(\w+)=([\w.]+)", line.split("would fit:")[1]))
    less = replace(asked, batched=found.get("batched") != "false")
    if "size" in found:
        width, height = map(int, found["size"].split("x"))
        assert width % 16 == height % 16 == 0
        less = replace(less, width=width, height=height)
    if "frames" in found:
        less = replace(less, frames=int(found["frames"]))
        assert less.frames % 4 == 1
    assert memory.needed(bundle, less, 1) <= room
    if share > 0.5:
        assert found == {"batch": "1"}


def test_where_nothing_fits_that_is_told(bundle):
    assert "take a larger device" in memory.advice(bundle, settings(bundle), 1, 1000)


def test_an_upright_size_stays_upright(bundle):
    asked = replace(settings(bundle), width=720, height=1280, frames=1, batched=False)
    line = memory.advice(bundle, asked, 1, memory.needed(bundle, asked) // 2)
    width, height = map(int, re.search(r"size=(\d+)x(\d+)", line).groups())
    assert width < height


def test_running_out_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.is_exhausted(caught.value)
    assert memory.is_exhausted(MemoryError())
    assert memory.is_exhausted(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert not memory.is_exhausted(caught.value)
    assert not memory.is_exhausted(ValueError("not enough memory"))
