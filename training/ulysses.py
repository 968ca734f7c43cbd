"""A sequence shared by several processes: Ulysses (Jacobs et al., arXiv 2309.14509).

Each process holds some of the tokens, and all layers but one need no others. For self-attention the
processes trade: tokens for heads and back, so that each sees all tokens of some of the heads. Heads
must divide by the processes; tokens need not, the first processes take one more.

Shapes: B batch, N tokens, n those of this process, A heads, D head dim, P processes.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from model.attention import Context, attention


class Ulysses(Context):
    """Where the tokens lie, for the DiT.

    Args:
        group: the processes that share a sequence; all call the network with the same input.
        backend: attention kernel.
    """

    def __init__(self, group: ProcessGroup, backend: str | None = None) -> None:
        super().__init__(backend)
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.counts: list[int] = []  # tokens of each process

    def __deepcopy__(self, memo: dict) -> "Ulysses":
        return self  # of the EMA too: processes can't be copied

    def shard(self, x: Tensor) -> Tensor:
        parts = x.tensor_split(self.size, dim=1)
        self.counts = [part.shape[1] for part in parts]
        return parts[self.rank]

    def gather(self, x: Tensor) -> Tensor:
        return _Gathered.apply(x, self.counts, self.group)

    @torch.compiler.disable
    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = self.counts[self.rank]
        # tokens first, so that what comes from the processes lies in their order: [P·n, 3B, A/P, D]
        x = torch.cat((q, k, v)).unflatten(2, (self.size, -1)).permute(2, 1, 0, 3, 4).flatten(0, 1)
        x = _Traded.apply(x, [tokens] * self.size, self.counts, self.group)
        out = attention(*x.transpose(0, 1).chunk(3), self.backend)  # [B, N, A/P, D]
        x = _Traded.apply(out.transpose(0, 1), self.counts, [tokens] * self.size, self.group)
        return x.unflatten(0, (self.size, -1)).permute(2, 1, 0, 3, 4).flatten(2, 3)


class _Traded(torch.autograd.Function):
    """The first `sent[0]` rows go to process 0, the next to 1, …; theirs take their place."""

    @staticmethod
    def forward(ctx, x: Tensor, sent: list[int], received: list[int], group: ProcessGroup):
        ctx.sent, ctx.received, ctx.group = sent, received, group
        out = x.new_empty(sum(received), *x.shape[1:])
        dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Traded.apply(grad, ctx.received, ctx.sent, ctx.group), None, None, None


class _Gathered(torch.autograd.Function):
    """All tokens, in order. All processes compute the same loss of them, so that each takes its
    own tokens' slice of the gradient; the sum would count the loss once for each process."""

    @staticmethod
    def forward(ctx, x: Tensor, counts: list[int], group: ProcessGroup) -> Tensor:
        rank = dist.get_rank(group)
        ctx.start, ctx.tokens = sum(counts[:rank]), counts[rank]
        own = x.new_zeros(len(x), max(counts), *x.shape[2:])  # processes send as much each
        own[:, : x.shape[1]] = x
        parts = [torch.empty_like(own) for _ in counts]
        dist.all_gather(parts, own, group=group)
        return torch.cat([part[:, :n] for part, n in zip(parts, counts, strict=True)], dim=1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.narrow(1, ctx.start, ctx.tokens), None, None
