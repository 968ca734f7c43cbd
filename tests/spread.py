"""Sequences spread over processes in two ways, which shows that `model.attention.Context` suffices.

Ulysses (arXiv 2309.14509) trades tokens for heads, so both must divide evenly; the other gathers
keys and values and takes any shards. A process imports no more than this file does.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from model.attention import Context, attention
from model.dit import WanDiT


class Gathered(torch.autograd.Function):
    """All processes' parts along dim 1; backward keeps this one's, summed over processes or not."""

    @staticmethod
    def forward(ctx, part: Tensor, total: int, summed: bool) -> Tensor:
        spans = torch.arange(total).tensor_split(dist.get_world_size())
        sent = part.new_zeros(
            part.shape[0], len(spans[0]), *part.shape[2:]
        )  # the longest comes first
        sent[:, : part.shape[1]] = part
        parts = [torch.empty_like(sent) for _ in spans]
        dist.all_gather(parts, sent)
        ctx.span, ctx.summed = spans[dist.get_rank()], summed
        return torch.cat([p[:, : len(span)] for p, span in zip(parts, spans, strict=True)], dim=1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = grad.contiguous()
        if ctx.summed:
            dist.all_reduce(grad)
        return grad[:, ctx.span], None, None


class Traded(torch.autograd.Function):
    """Part r of dim 0 goes to process r; what came back takes its place."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        out = torch.empty_like(x := x.contiguous())
        dist.all_to_all_single(out, x)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return Traded.apply(grad)


class GatheredKeys(Context):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def shard(self, x: Tensor) -> Tensor:
        self.total = x.shape[1]
        return x.tensor_split(dist.get_world_size(), dim=1)[dist.get_rank()]

    def gather(self, x: Tensor) -> Tensor:
        return Gathered.apply(x, self.total, False)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (Gathered.apply(x, self.total, True) for x in (k, v))
        return attention(q, k, v, self.backend)


class Ulysses(GatheredKeys):
    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        world = dist.get_world_size()

        def tokens_for_heads(x: Tensor) -> Tensor:
            x = Traded.apply(x.unflatten(2, (world, -1)).movedim(2, 0))
            return x.movedim(0, 1).flatten(1, 2)

        out = attention(*map(tokens_for_heads, (q, k, v)), self.backend)
        out = Traded.apply(out.unflatten(1, (world, -1)).movedim(1, 0))
        return out.movedim(0, 2).flatten(2, 3)


def compare(rank: int, world: int, store: str, state: dict, config: dict, cases: list) -> None:
    """One process of `world`: asserts that spread and whole give the same output and gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    model = WanDiT(**config)
    model.load_state_dict(state)
    for way, given in cases:
        results = []
        for context in (Context(), {"ulysses": Ulysses, "keys": GatheredKeys}[way]()):
            model.zero_grad()
            model.context = context
            out = model(**given)
            (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
            results.append((out.detach(), [p.grad for p in model.parameters()]))
        (whole, wanted), (spread, shares) = results
        assert (whole - spread).abs().max() < 1e-4, way
        for (name, _), want, share in zip(model.named_parameters(), wanted, shares, strict=True):
            dist.all_reduce(share)
            assert (want - share).abs().max() <= 1e-4 * want.abs().max() + 1e-5, (way, name)
    dist.destroy_process_group()
