"""A call of PyTorch's `scaled_dot_product_attention`, however a block spells it."""

from typing import NamedTuple

import torch
from torch import Tensor

ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
"""PyTorch's names of the arguments, in their order."""


class AttentionCall(NamedTuple):
    """What a block attends with.

    Attributes:
        query: Queries (B, H, N, head_dim), after any normalisation or rotation.
        key: Keys (B, H, N, head_dim); those of heads that share them are repeated.
        value: Values, likewise.
        bias: What is added to the logits, (B or 1, H or 1, N or 1, N); None adds nothing.
        dropout: Probability of dropout of the map.
        scale: Factor of the logits.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    dropout: float
    scale: float


def read_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall:
    """Read the arguments of a call, as PyTorch names them.

    Raises:
        NotImplementedError: If the attention is causal: tokens of an image have no order.
    """
    if is_causal:
        raise NotImplementedError("Causal attention is not an image's.")
    if enable_gqa and key.shape[1] != query.shape[1]:
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    bias = additive(attn_mask, query.dtype)
    if bias is not None and bias.ndim == 3:
        bias = bias.unsqueeze(0)
    return AttentionCall(query, key, value, bias, dropout_p, query.shape[-1] ** -0.5 if scale is None else scale)


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as what is added to the logits: one of true and false, which says what is attended to, becomes 0 and -inf.

    Args:
        mask: The mask; None adds nothing.
        dtype: Number format of what is added in the place of true and false.
    """
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
