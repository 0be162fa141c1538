"""A layer in which each head attends among tokens of its own (paper Eq. 4, read literally)."""

from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor
from torch.nn import functional as F


def run_block_per_head(block: Any, tokens: Tensor, keep_indices: Tensor) -> Tensor:
    """Run a block in which each head attends among its own selected tokens (paper Eq. 4).

    A head's skipped tokens get no output from that head; the output projection and the MLP see every token.

    Args:
        block: A timm `Block`.
        tokens: Tokens (B, N, D).
        keep_indices: Selected tokens of each head, (B, H, K).

    Returns:
        Tokens (B, N, D).
    """
    attention = block.attn
    attended = _attend_per_head(attention, block.norm1(tokens), keep_indices)
    attended = attention.proj_drop(attention.proj(attention.norm(attended)))
    tokens = tokens + block.drop_path1(block.ls1(attended))
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


def _attend_per_head(attention: Attention, tokens: Tensor, keep_indices: Tensor) -> Tensor:
    """Attention output (B, N, H * head_dim) of normalised tokens (B, N, D), zero where a head skips a token."""
    batch, length, dim = tokens.shape
    heads, head_dim, kept = attention.num_heads, attention.head_dim, keep_indices.shape[-1]
    index = keep_indices.flatten(1).unsqueeze(-1)
    selected = tokens.gather(1, index.expand(-1, -1, dim)).view(batch, heads, kept, dim)
    # qkv's rows are ordered (3, H, head_dim); each head projects only the tokens it selected.
    weight = attention.qkv.weight.view(3, heads, head_dim, dim)
    query, key, value = torch.einsum("bhkd,xhed->xbhke", selected, weight)
    if attention.qkv.bias is not None:
        bias = attention.qkv.bias.view(3, heads, 1, head_dim)
        query, key, value = query + bias[0], key + bias[1], value + bias[2]
    dropout = attention.attn_drop.p if attention.training else 0.0
    output = F.scaled_dot_product_attention(attention.q_norm(query), attention.k_norm(key), value, dropout_p=dropout)
    empty = output.new_zeros(batch, heads, length, head_dim)
    output = empty.scatter(2, keep_indices.unsqueeze(-1).expand(-1, -1, -1, head_dim), output)
    return output.transpose(1, 2).reshape(batch, length, attention.attn_dim)
