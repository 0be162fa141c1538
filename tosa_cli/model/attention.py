"""How attention logits are read out of a block that runs unchanged."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.families import kind_of, num_attentions
from tosa_cli.model.sdpa import read_call
from tosa_cli.model.selection import num_query_rows, take_query_rows


class AttentionTap(TorchFunctionMode):
    """Reads attention logits out of a block that runs unchanged.

    While the tap is open it sees each call of `scaled_dot_product_attention` and its queries, keys and bias: they
    are what the block attends with, after any normalisation or rotation. Fused attention stays on. Only where
    all query rows are asked for is the map computed in full, once, and used for the attention itself as well.

    It holds the state of one forward pass and lives no longer, works under `torch.compile` and `torch.export`
    without a graph break, and needs no knowledge of the block.

    Args:
        query_rows: Number of query rows M to read, or `"all"`.
        read: What is made of the scaled logits (B, H, M, N), detached. It is called as soon as they are there, so that
            they need not be kept while the rest of the block runs.
        attentions: How many attentions the block has side by side; the logits of all are read together, as (B, H, M, N)
            with the heads of all of them.
    """

    def __init__(self, query_rows: int | str, read: Callable[[Tensor], Tensor], attentions: int = 1) -> None:
        super().__init__()
        self.query_rows = query_rows
        self.read = read
        self.attentions = attentions
        self.result: Tensor | None = None
        self._logits: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value, bias, dropout, scale = read_call(*args, **kwargs)
        if num_query_rows(query.shape[2], self.query_rows) < query.shape[2]:
            rows = take_query_rows(query.detach(), self.query_rows)
            logits = (rows * scale) @ key.detach().transpose(-2, -1)
            if bias is not None:
                logits = logits + take_query_rows(bias.detach(), self.query_rows)
            self._take(logits)
            return func(*args, **kwargs)
        logits = (query * scale) @ key.transpose(-2, -1)
        if bias is not None:
            logits = logits + bias
        self._take(logits.detach())
        maps = F.dropout(logits.softmax(dim=-1), dropout)
        return maps @ value

    def _take(self, logits: Tensor) -> None:
        """Hand logits (B, H, M, N) over, once those of all attentions are there."""
        self._logits.append(logits)
        if len(self._logits) == self.attentions:
            self.result = self.read(torch.cat(self._logits, dim=1) if self.attentions > 1 else logits)
            self._logits = []


def run_and_tap(
    block: nn.Module,
    tokens: Tensor,
    query_rows: int | str,
    read: Callable[[Tensor], Tensor] = lambda logits: logits,
    extras: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a block and read its attention logits.

    Args:
        block: The block.
        tokens: Tokens (B, N, D).
        query_rows: Number of query rows M to read, or `"all"`.
        read: What is made of the scaled logits (B, H, M, N), detached; by default nothing.
        extras: What the block is given beside the tokens, from `Places`; nothing for a plain block.

    Returns:
        The block's output (B, N, D), and what `read` made of the logits.

    Raises:
        UnsupportedModelError: If the block does not use PyTorch's fused attention function.
    """
    kind, tap = kind_of(block), AttentionTap(query_rows, read, num_attentions(block))

    def run(tokens: Tensor) -> Tensor:
        with tap:
            return kind.run(block, tokens, extras or {})

    output = kind.run_within(block, run, tokens)
    if tap.result is None:
        raise UnsupportedModelError(
            f"{type(block).__name__} ran without PyTorch's fused attention, so its logits cannot be read. "
            f"{kind.how_to_fuse}"
        )
    return output, tap.result
