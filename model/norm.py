"""Norms: before each layer, modulated by the time or not, and of queries and keys.

All arithmetic is float32 whatever the dtype of the input, which the result has again.

Shapes: B batch, N tokens, A heads, D head dim, C = A·D width.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.rope import rotate


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Within it products keep the dtype of their operands, whatever autocast says outside."""
    if device.type == "meta":  # where shapes alone are asked for, and there is no autocast
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """x [·, C], normed over C with `norm`'s weight and bias."""
    weight, bias = norm.weight.float(), norm.bias.float()
    return F.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps).to(x.dtype)


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """norm(x)·(1 + scale) + shift: x [B, N, C], shift and scale [B, 1, C] float32."""
    if len(x) == 1:  # then it is an affine norm, which has a kernel of its own
        weight, bias = (1 + scale).flatten(), shift.flatten()
        return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return torch.addcmul(shift, normed, 1 + scale).to(x.dtype)


class HeadNorm(nn.Module):
    """x [B, N, C] → x / rms(x) · weight, cut into heads [B, N, A, D] and turned by `rope`.

    Norm, rotation and change of layout are one step: done one after the other, each is another pass
    over memory, and several in backward.
    """

    def __init__(self, width: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.num_heads = num_heads
        self.eps = eps

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        if torch.compiler.is_compiling():  # the compiler fuses the plain form, and knows no complex
            return self.plain(x, rope)
        heads = _NormedHeads.apply(x, self.weight, rope, self.num_heads, self.eps)
        return heads.transpose(1, 2)

    def plain(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        """The same, in the words of the paper."""
        y = F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)
        y = y.unflatten(-1, (self.num_heads, -1))
        return (y if rope is None else rotate(y, rope)).to(x.dtype)


class _NormedHeads(torch.autograd.Function):
    """[B, N, C] → [B, A, N, D], contiguous, as the attention kernels like it."""

    @staticmethod
    def forward(ctx, x, weight, rope, num_heads, eps):
        wide, scale = x.float(), weight.float()
        width = x.shape[-1]
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = torch.rsqrt(norm.square().div_(width).add_(eps))
        # one factor a token (and channel pair) carries both the norm and the rotation
        factor = inverse if rope is None else torch.view_as_complex(rope)[:, :, 0] * inverse
        ctx.save_for_backward(x, weight, factor, inverse)
        return _times(wide * scale, factor, num_heads).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, factor, inverse = ctx.saved_tensors
        wide, scale = x.float(), weight.float()
        width = x.shape[-1]
        turned = _times_back(grad.float(), factor)  # d loss / d (x · weight) · rms, times 1 / rms
        product = turned * wide
        with no_autocast(x.device):
            along = (product @ scale).unsqueeze(-1)
        grad_weight = product.sum((0, 1)).to(weight.dtype)
        grad_x = turned.mul_(scale).addcmul_(wide, along * inverse.square().div_(width), value=-1)
        return grad_x.to(x.dtype), grad_weight, None, None, None


def _times(x: Tensor, factor: Tensor, num_heads: int) -> Tensor:
    """x [B, N, C] · factor [B, N, 1 or D/2] → [B, A, N, D]."""
    batch, tokens, width = x.shape
    x = x.view(batch, tokens, num_heads, -1).transpose(1, 2)
    factor = factor.unsqueeze(1)
    out = x.new_empty(batch, num_heads, tokens, width // num_heads)
    _multiply(x, factor, out)
    return out


def _times_back(grad: Tensor, factor: Tensor) -> Tensor:
    """The adjoint: grad [B, A, N, D] · conjugate factor → [B, N, C]."""
    batch, heads, tokens, dim = grad.shape
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()  # that of a sum is one number
    out = grad.new_empty(batch, tokens, heads, dim)
    factor = factor.conj().resolve_conj() if factor.is_complex() else factor
    _multiply(grad, factor.unsqueeze(1), out.transpose(1, 2))
    return out.flatten(2)


def _multiply(x: Tensor, factor: Tensor, out: Tensor) -> None:
    if factor.is_complex():
        x, out = (torch.view_as_complex(each.unflatten(-1, (-1, 2))) for each in (x, out))
    torch.mul(x, factor, out=out)
