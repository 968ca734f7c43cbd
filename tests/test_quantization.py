"""Blocks in 8 bits: torchao's numbers against the formula, their size, and what is refused."""

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F

from eval import quantization
from eval.acceleration import Scene, Variant, away, decoded, parsed
from eval.quantization import quantize, weight_bytes
from model.bundle import load_bundle
from model.sampler import Settings

PROMPTS = ("a red circle moves left", "海浪拍打礁石")
SEEDS = (3, 100_003)
STORED = ("int8-weights", "float8-weights")
ANYWHERE = (*STORED, "int8")


@pytest.fixture(scope="module")
def scene() -> Scene:
    bundle = load_bundle("random:tiny")
    settings = Settings.of(bundle.card, steps=4, width=32, height=32, frames=5)
    return Scene.of(bundle, PROMPTS, settings, batch=2)


def rounded(x: torch.Tensor, kind: str) -> torch.Tensor:
    """x in 8 bits, each row with a scale of its own, and back."""
    most = {"int8": 127.5, "float8": 448.0}[kind]
    scale = x.abs().amax(-1, keepdim=True) / most
    if kind == "int8":
        return (x / scale).round().clamp(-128, 127) * scale
    return (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale


@pytest.mark.parametrize("kind", ANYWHERE)
def test_products_are_those_of_rounded_numbers(scene, kind):
    dit = copy.deepcopy(scene.bundle.dit)
    layer = dit.blocks[0].self_attn.q
    x, weight = torch.randn(2, 5, layer.in_features), layer.weight.detach().clone()
    exact = F.linear(x, weight, layer.bias)
    quantize(dit, kind)
    given = rounded(x, "int8") if kind == "int8" else x
    wanted = F.linear(given, rounded(weight, kind.partition("-")[0]), layer.bias)
    with torch.no_grad():
        found = dit.blocks[0].self_attn.q(x)
    scale = exact.std()
    assert (found - wanted).std() < 1e-3 * scale
    assert 2e-3 * scale < (found - exact).std() < 0.05 * scale


@pytest.mark.parametrize("kind", ANYWHERE)
def test_blocks_shrink_to_a_quarter_and_nothing_else_changes(scene, kind):
    dit = copy.deepcopy(scene.bundle.dit)
    before = {name: one.clone() for name, one in dit.named_parameters()}
    quantize(dit, kind)
    assert weight_bytes(dit.blocks) < 0.29 * weight_bytes(scene.bundle.dit.blocks)
    for name, one in dit.named_parameters():
        if not name.startswith("blocks.") or one.ndim < 2 or "modulation" in name:
            assert torch.equal(one, before[name]), name


@pytest.mark.parametrize("kind", ANYWHERE)
def test_a_quantised_sample_is_near_and_not_the_same(scene, kind):
    noise = scene.noise(SEEDS)
    plain, other = Variant("uncached", 4), parsed(kind, scene)
    for one in (plain, other):
        scene.sample(one, noise)
    psnr = away(other.latents, decoded(scene, plain.latents), scene, None)["psnr"]["mean"]
    assert 25 < psnr < 90
    assert other.passes == plain.passes
    assert weight_bytes(scene.dit(other)) < 0.4 * weight_bytes(scene.dit(plain))


def test_without_its_package_one_line_says_what_to_install(scene, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^int8 needs torchao: pip install torchao$"):
        quantization.check("int8", scene.bundle.device)
