"""Attention and the norm of its queries and keys, against their formulas."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from model.attention import BACKENDS, Context, attention
from model.norm import HeadNorm, modulated
from model.rope import rope_table


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).transpose(1, 2)


def repeated(x: Tensor, last: int) -> Tensor:
    return torch.cat((x, x[:, -1:].expand(-1, last - 1, -1, -1)), 1)


def heads(tokens: int, dtype=torch.float32) -> Tensor:
    return torch.randn(2, tokens, 3, 32, dtype=dtype)


@pytest.mark.parametrize("tokens", [(17, 17), (5, 40), (40, 1)])
def test_attention_is_its_formula(tokens):
    q, k, v = heads(tokens[0]), heads(tokens[1]), heads(tokens[1])
    assert (attention(q, k, v) - formula(q, k, v)).abs().max() < 1e-5
    assert torch.equal(attention(q, k, v, "sdpa"), Context().attention(q, k, v))


@pytest.mark.parametrize("tokens", [(17, 17), (5, 128), (9, 129)])  # a CPU's ways part at 128
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_gradients_of_attention_are_those_of_its_formula(tokens, dtype, error):
    of = [heads(count, dtype).requires_grad_() for count in (tokens[0], tokens[1], tokens[1])]
    weight = heads(tokens[0])
    outs = attention(*of), formula(*of)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), of) for out in outs)
    assert (outs[0] - outs[1]).abs().max() < error
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype
        assert (one - other).abs().max() < error * max(1, other.abs().max())


@pytest.mark.parametrize("tokens", [7, 128, 129])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("trained", [True, False])
def test_the_last_token_counts_as_many_as_it_is_said_to(tokens, dtype, error, trained):
    of = [heads(count, dtype).requires_grad_(trained) for count in (9, tokens, tokens)]
    q, k, v = of
    outs = attention(q, k, v, last=301), formula(q, repeated(k, 301), repeated(v, 301))
    assert (outs[0] - outs[1]).abs().max() < error
    if trained:
        ours, theirs = (torch.autograd.grad(out.sin().sum(), of) for out in outs)
        for one, other in zip(ours, theirs, strict=True):
            assert (one - other).abs().max() < error * max(1, other.abs().max())


def test_an_unknown_backend_is_named_with_those_that_there_are():
    x = heads(4)
    with pytest.raises(ValueError, match="'xformers' is none of sdpa, kernel, cudnn") as error:
        attention(x, x, x, "xformers")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", ["flash", "flash2", "flash3"])
def test_a_missing_package_is_one_line_that_says_what_to_do(backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    x = heads(4, torch.bfloat16)
    with pytest.raises(ValueError, match=r"no flash_attn\w* here; .*take sdpa") as error:
        attention(x, x, x, backend)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", sorted(BACKENDS.keys() - {"sdpa", "kernel"}))
def test_kernels_for_half_precision_refuse_float32(backend):
    x = heads(4)
    with pytest.raises(ValueError, match=r"takes bfloat16 or float16, not torch\.float32"):
        attention(x, x, x, backend)


def pretend(name: str, gives_lse: bool = False) -> ModuleType:
    """A package with flash-attn's function: [B, N, A, D] in and out, and who was asked."""
    module = ModuleType(name)
    module.asked = []

    def flash_attn_func(q, k, v):
        module.asked.append(name)
        out = formula(q, k, v).to(q.dtype)
        return (out, None) if gives_lse else out

    module.flash_attn_func = flash_attn_func
    return module


@pytest.mark.parametrize("gives_lse", [False, True])
def test_flash_takes_the_newer_package_in_its_own_layout(gives_lse, monkeypatch):
    two, three = pretend("flash_attn"), pretend("flash_attn_interface", gives_lse)
    monkeypatch.setitem(sys.modules, "flash_attn", two)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", three)
    q, k, v = heads(7, torch.bfloat16), heads(9, torch.bfloat16), heads(9, torch.bfloat16)
    for backend in ("flash", "flash3", "flash2"):
        out = attention(q, k, v, backend)
        assert (out - formula(q, k, v)).abs().max() < 0.02
        out = attention(q, k, v, backend, last=30)
        assert (out - formula(q, repeated(k, 30), repeated(v, 30))).abs().max() < 0.02
    assert (len(two.asked), len(three.asked)) == (2, 4)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    attention(q, k, v, "flash")
    assert len(two.asked) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA kernel")
@pytest.mark.parametrize("backend", ["sdpa", "cudnn"])
def test_cuda_kernels_agree_with_the_formula(backend):
    q, k, v = (x.cuda() for x in (heads(70, torch.bfloat16),) * 3)
    assert (attention(q, k, v, backend) - formula(q, k, v)).abs().max() < 0.03
    many = formula(q, repeated(k, 30), repeated(v, 30))
    assert (attention(q, k, v, backend, last=30) - many).abs().max() < 0.03


def drawn_norm(width: int = 96, num_heads: int = 3) -> HeadNorm:
    norm = HeadNorm(width, num_heads, eps=1e-3)
    with torch.no_grad():
        norm.weight.normal_(1, 0.5)
    return norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turns", [False, True])
def test_fused_norm_is_the_plain_one_in_values_and_gradients(turns, dtype):
    norm = drawn_norm()
    table = rope_table((2, 3, 4), 32, torch.zeros(())) if turns else None
    x = torch.randn(2, 24, 96, dtype=dtype)
    results = []
    for form in (norm, norm.plain):
        given = x.clone().requires_grad_()
        out = form(given, table)
        assert (out.shape, out.dtype) == ((2, 24, 3, 32), dtype)
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
        gradients = torch.autograd.grad((out.float() * weights).sum(), (given, norm.weight))
        results.append((out, *gradients))
    for fused, plain in zip(*results, strict=True):
        bound = 1e-5 if dtype == torch.float32 else 0.01
        assert (fused - plain).abs().max() <= bound * plain.abs().max()


def test_norm_is_over_the_whole_width_not_each_head():
    x = torch.zeros(1, 1, 96)
    x[..., :32] = 1.0  # one head of three: rms is 1 / sqrt(3) over the width, 1 within the head
    out = HeadNorm(96, 3, eps=0.0)(x)
    assert torch.allclose(out[0, 0, 0], torch.full((32,), 3**0.5))


def test_gradient_of_a_plain_sum_is_that_of_the_plain_norm():
    norm, table = drawn_norm(), rope_table((1, 2, 3), 32, torch.zeros(()))
    x = torch.randn(2, 6, 96, requires_grad=True)
    fused, plain = (torch.autograd.grad(form(x, table).sum(), x)[0] for form in (norm, norm.plain))
    assert torch.allclose(fused, plain, atol=1e-5)


def test_norm_takes_the_projections_of_a_slice():
    norm, x = drawn_norm(), torch.randn(2, 48, 96)[:, ::2]
    assert torch.allclose(norm(x), norm.plain(x), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_modulation_is_its_formula_for_one_sample_and_several(batch):
    x, shift, scale = torch.randn(batch, 5, 96), *torch.randn(2, batch, 1, 96)
    y = x.double()
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    assert (modulated(x, shift, scale, 1e-6) - (y * (1 + scale) + shift)).abs().max() < 1e-5


def test_modulation_is_not_rounded_to_the_dtype_of_the_stream():
    """1 + scale with a scale that bfloat16 would lose beside 1."""
    x, scale = torch.randn(1, 64, 96).bfloat16(), torch.full((1, 1, 96), 2.0**-9)
    plain = modulated(x, torch.zeros(1, 1, 96), torch.zeros(1, 1, 96), 1e-6)
    scaled = modulated(x, torch.zeros(1, 1, 96), scale, 1e-6)
    assert (scaled != plain).any()
    assert scaled.dtype == torch.bfloat16
