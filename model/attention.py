"""Attention of the DiT: one function with selectable kernels, and Wan's two attention layers.

Shapes: B batch, N tokens, M tokens attended to, A heads, D head dim, C = A·D width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.norm import HeadNorm


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str | None = None, last: int = 1) -> Tensor:
    """softmax(q·kᵀ / √D)·v over all tokens: q [B, N, A, D], k and v [B, M, A, D] → [B, N, A, D].

    last: as how many equal tokens the last of k and v counts.
    backend: `kernel`, PyTorch's own choice; `sdpa` (default), the same, but on a CPU two matrix
    products where they are faster; `cudnn`, PyTorch's cuDNN kernel, the fastest
    without another package on Hopper; `flash2`, `flash3`, the packages flash-attn and
    flash-attn-3; `flash`, the newer of these two that is installed. ValueError for another name,
    a package that is missing, or a dtype that the kernel does not take; nothing falls back.
    """
    kernel = BACKENDS.get(backend or "sdpa")
    if kernel is None:
        raise ValueError(f"attention backend {backend!r} is none of {', '.join(BACKENDS)}")
    return kernel(q, k, v, last)


SHORT = 128  # tokens that are attended to; above, what checkpointing keeps counts more than time


def _sdpa(q: Tensor, k: Tensor, v: Tensor, last: int) -> Tensor:
    trained = torch.is_grad_enabled() and q.requires_grad
    if q.device.type == "cpu" and trained and k.shape[1] <= SHORT:
        return _products(*(x.transpose(1, 2) for x in (q, k, v)), _weight(k, last)).transpose(1, 2)
    return _kernel(q, k, v, last)


def _kernel(q: Tensor, k: Tensor, v: Tensor, last: int) -> Tensor:
    if q.device.type != "cpu":  # whose fast kernels know no weights
        k, v = _repeated(k, last), _repeated(v, last)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    weight = _weight(k, last)
    # the kernel is a tenth faster so, more than the copy costs
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=weight).transpose(1, 2)


def _products(q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None) -> Tensor:
    """[B, A, N, D] as it is written down. On a CPU the kernel's backward, in bfloat16, takes three
    times as long on 48 tokens, a fifth longer on 192; and on more the scores take memory."""
    scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).float()
    if weight is not None:
        scores = scores + weight
    return scores.softmax(-1).to(v.dtype) @ v


def _weight(k: Tensor, last: int) -> Tensor | None:
    """What is added to the scores so that the last token counts as many: its logarithm, [1, M]."""
    if last == 1:
        return None
    ones = k.new_ones((1, k.shape[1] - 1), dtype=torch.float32)
    return torch.cat((ones, ones.new_full((1, 1), last)), 1).log()


def _repeated(x: Tensor, last: int) -> Tensor:
    return x if last == 1 else torch.cat((x, x[:, -1:].expand(-1, last - 1, -1, -1)), 1)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, last: int) -> Tensor:
    _half_only("cudnn", q)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _kernel(q, k, v, last)


def _flash2(q: Tensor, k: Tensor, v: Tensor, last: int) -> Tensor:
    _half_only("flash2", q)
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        raise ValueError(
            "attention backend flash2: no flash_attn here; pip install flash-attn, or take sdpa"
        ) from None
    return flash_attn_func(q, _repeated(k, last), _repeated(v, last))


def _flash3(q: Tensor, k: Tensor, v: Tensor, last: int) -> Tensor:
    _half_only("flash3", q)
    try:
        from flash_attn_interface import flash_attn_func
    except ImportError:
        raise ValueError(
            "attention backend flash3: no flash_attn_interface here; build flash-attention/hopper, "
            "or take sdpa"
        ) from None
    out = flash_attn_func(q, _repeated(k, last), _repeated(v, last))
    return out[0] if isinstance(out, tuple) else out  # the first releases give (out, lse)


def _flash(q: Tensor, k: Tensor, v: Tensor, last: int) -> Tensor:
    try:
        import flash_attn_interface  # noqa: F401
    except ImportError:
        return _flash2(q, k, v, last)
    return _flash3(q, k, v, last)


def _half_only(backend: str, q: Tensor) -> None:
    if q.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"attention backend {backend} takes bfloat16 or float16, not {q.dtype}")


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "sdpa": _sdpa,
    "kernel": _kernel,
    "cudnn": _cudnn,
    "flash": _flash,
    "flash2": _flash2,
    "flash3": _flash3,
}


class Context:
    """Where the tokens of a sequence lie: here, all on one device.

    To spread them over processes (context parallelism), subclass it and set `dit.context`: the
    blocks see only this process's tokens and are not changed. Per-token layers need nothing else;
    self-attention asks `attention`. Parameters' gradients then hold this process's tokens' share:
    where every process computes the same loss on the gathered output, they sum to the whole.
    """

    def __init__(self, backend: str | None = None) -> None:
        self.backend = backend

    def shard(self, x: Tensor) -> Tensor:
        """[·, N, …] of the whole sequence → this process's tokens. Embedded patches and rotary
        table pass here; the gradient of a token that is not here is zero."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """The inverse, at the very end: every process gets all tokens, in order. The gradient of
        this process's tokens is the slice of what comes back, not the sum over processes."""
        return x

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, n, A, D] of this process's tokens, attending to those of all."""
        return attention(q, k, v, self.backend)


class SelfAttention(nn.Module):
    """Full attention over all tokens; q and k are RMS-normed over the whole width, then turned."""

    def __init__(self, width: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        self.norm_q = HeadNorm(width, num_heads, eps)
        self.norm_k = HeadNorm(width, num_heads, eps)

    def forward(self, x: Tensor, rope: Tensor, context: Context) -> Tensor:
        q = self.norm_q(self.q(x), rope)
        k = self.norm_k(self.k(x), rope)
        v = self.v(x).unflatten(2, (self.num_heads, -1))
        return self.o(context.attention(q, k, v).flatten(2))


class CrossAttention(SelfAttention):
    """Attention to the text and, where the model has an image branch, to the image beside it.

    The two results are added, so text and image do not compete in one softmax. Of a text shorter
    than text_length the last token counts for all that are missing.
    """

    def __init__(
        self, width: int, num_heads: int, eps: float, text_length: int, has_image: bool
    ) -> None:
        super().__init__(width, num_heads, eps)
        self.text_length = text_length
        if has_image:
            self.k_img = nn.Linear(width, width)
            self.v_img = nn.Linear(width, width)
            self.norm_k_img = HeadNorm(width, num_heads, eps)

    def forward(self, x: Tensor, text: Tensor, image: Tensor | None, context: Context) -> Tensor:
        heads = (self.num_heads, -1)
        q = self.norm_q(self.q(x))
        k, v = self.norm_k(self.k(text)), self.v(text).unflatten(2, heads)
        last = 1 + self.text_length - text.shape[1]
        out = attention(q, k, v, context.backend, last)
        if image is not None:
            k, v = self.norm_k_img(self.k_img(image)), self.v_img(image).unflatten(2, heads)
            out = out + attention(q, k, v, context.backend)
        return self.o(out.flatten(2))
