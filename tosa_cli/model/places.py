"""Where tokens stand, as blocks are told it beside the tokens, and how that is gathered with the selected ones.

A plain block is told nothing: its tokens carry their position. A block with rotary embeddings is given a table of
the patches. A block with relative positions adds a bias for each pair of tokens to its logits; part of it or all is
made inside the block, for all tokens, so it is gathered on its way into the attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.layers import apply_keep_indices_nlc
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tosa_cli.model.sdpa import ARGUMENTS, additive

Extras = Mapping[str, Tensor]
"""What a block is given beside the tokens, by the block's own names."""


@dataclass(frozen=True)
class Places:
    """Where the tokens of a batch stand.

    Attributes:
        grid: Patches (rows, columns).
        extras: For each layer what its block is given beside the tokens, by the block's own names; empty for blocks
            that are given nothing.
        before: What a model adds to all tokens before a layer, (1 or B, N, D), by the number of the layer, where it
            adds anything between its blocks and somebody else runs them.
    """

    grid: tuple[int, int]
    extras: tuple[Extras, ...] = ()
    before: Mapping[int, Tensor] = field(default_factory=dict)

    def of(self, layer: int) -> Extras:
        """What the block of a layer, counted from 1, is given beside the tokens."""
        return self.extras[layer - 1] if self.extras else {}

    def entering(self, layer: int, tokens: Tensor) -> Tensor:
        """What enters a layer, by the tokens (B, N, D) that come out of the one before."""
        return tokens + self.before[layer] if layer in self.before else tokens


@dataclass(frozen=True)
class CallPlaces(Places):
    """Where tokens stand, where each block is called by somebody else, who gives it what it is given.

    Attributes:
        given: What the block that is called now is given beside the tokens.
    """

    given: Extras = field(default_factory=dict)

    def of(self, layer: int) -> Extras:
        """What was given, whichever layer it is."""
        return self.given


def gather_rope(rope: Tensor, indices: Tensor) -> Tensor:
    """Take the rows of the selected patches out of a rotary table.

    Args:
        rope: Table (n, d), (H, n, d), or (B, 1 or H, n, d) where each image has its own.
        indices: Selected patches (B, k).

    Returns:
        Table (B, 1 or H, k, d).
    """
    if rope.ndim == 4:
        return apply_keep_indices_nlc(rope, rope, indices, pos_embed_has_batch=True)
    tables = rope if rope.ndim == 3 else rope.unsqueeze(0)
    return tables.index_select(1, indices.flatten()).unflatten(1, indices.shape).transpose(0, 1)


def gather_bias(bias: Tensor, keep_indices: Tensor) -> Tensor:
    """Take the rows and columns of the selected tokens out of what is added to the logits.

    Args:
        bias: Bias (H, N, N) or (1, H, N, N), the same for all images.
        keep_indices: Selected tokens (B, K).

    Returns:
        Bias (B, H, K, K).
    """
    length = bias.shape[-1]
    pairs = keep_indices[:, :, None] * length + keep_indices[:, None, :]
    flat = bias.reshape(-1, length * length).index_select(1, pairs.flatten())
    return flat.unflatten(1, pairs.shape).transpose(0, 1)


class SelectedBias(TorchFunctionMode):
    """Fits the bias that a block makes for all tokens to the selected tokens that it runs on.

    While the mode is open it sees each call of `scaled_dot_product_attention` and takes the selected rows and columns
    out of the bias. It lives for one call of one block, and works under `torch.compile` and `torch.export`.

    Args:
        keep_indices: Selected tokens (B, K).
        size_bias: What is added for the sizes of the selected tokens besides, (B, 1, 1, K); None adds nothing.
    """

    def __init__(self, keep_indices: Tensor, size_bias: Tensor | None) -> None:
        super().__init__()
        self.keep_indices = keep_indices
        self.size_bias = size_bias

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        call = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        bias = additive(call.get("attn_mask"), call["query"].dtype)
        if bias is not None:
            bias = gather_bias(bias, self.keep_indices)
        if bias is None or self.size_bias is None:
            bias = self.size_bias if bias is None else bias
        else:
            bias = bias + self.size_bias.to(bias.dtype)
        return func(**{**call, "attn_mask": bias})
