"""A call of PyTorch's `scaled_dot_product_attention`, however a block spells it."""

from typing import NamedTuple

import torch
from torch import Tensor


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
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask.unsqueeze(0)
    return AttentionCall(query, key, value, attn_mask, dropout_p, query.shape[-1] ** -0.5 if scale is None else scale)
