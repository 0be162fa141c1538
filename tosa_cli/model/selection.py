"""Choosing tokens and applying the choice: pure functions (paper, section 2.1)."""

import torch
from torch import Tensor


def plain_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a tensor; under `torch.jit.trace`, where sizes are tensors, their values, as constants."""
    return tuple(int(size) for size in tensor.shape) if torch.jit.is_tracing() else tuple(tensor.shape)


def num_kept(num_tokens: int, keep_rate: float, num_prefix_tokens: int) -> int:
    """How many tokens a ToSA layer computes: K = round(keep_rate * N), at least the prefix tokens and one more."""
    return min(num_tokens, max(round(keep_rate * num_tokens), num_prefix_tokens + 1))


def num_query_rows(num_tokens: int, query_rows: int | str) -> int:
    """How many query rows M a selector reads of a map of `num_tokens` rows."""
    return num_tokens if query_rows == "all" else min(int(query_rows), num_tokens)


def take_query_rows(query: Tensor, query_rows: int | str) -> Tensor:
    """Take evenly spread query rows, the first and the last among them.

    A column sum is a mean over the queries times their number, so a few rows estimate it.

    Args:
        query: Queries of all tokens, (B, H, N, head_dim).
        query_rows: Number of rows M, or `"all"`.

    Returns:
        Queries (B, H, M, head_dim).
    """
    num_tokens = plain_shape(query)[2]
    rows = num_query_rows(num_tokens, query_rows)
    if rows == num_tokens:
        return query
    indices = torch.linspace(0, num_tokens - 1, rows, device=query.device).round().long()
    return query.index_select(2, indices)


def column_sum(maps: Tensor) -> Tensor:
    """Importance of each token: the attention it receives, summed over the query rows (paper 2.1).

    Args:
        maps: Attention maps (B, H, M, N).

    Returns:
        Importance (B, H, N), in float32.
    """
    return maps.sum(dim=2, dtype=torch.float32)


def choose_tokens(importance: Tensor, num_kept: int, num_prefix_tokens: int) -> Tensor:
    """Choose the most important tokens; prefix tokens are always chosen.

    Args:
        importance: One score a token, (..., N).
        num_kept: Number of tokens K to choose, prefix tokens included.
        num_prefix_tokens: Number of class, distillation and register tokens, which come first.

    Returns:
        Keep indices (..., K) in rising order.
    """
    patches = importance[..., num_prefix_tokens:]
    chosen = patches.topk(num_kept - num_prefix_tokens, dim=-1, sorted=False).indices.sort(dim=-1).values
    prefix = torch.arange(num_prefix_tokens, device=importance.device).expand(*importance.shape[:-1], -1)
    return torch.cat([prefix, chosen + num_prefix_tokens], dim=-1)


def gather_tokens(tokens: Tensor, keep_indices: Tensor) -> Tensor:
    """Take the selected tokens out.

    Args:
        tokens: All tokens (B, N, D).
        keep_indices: Indices (B, K).

    Returns:
        Selected tokens (B, K, D).
    """
    selected = tokens.flatten(0, 1).index_select(0, flat_indices(tokens, keep_indices))
    return selected.view(*keep_indices.shape, tokens.shape[-1])


def scatter_tokens(tokens: Tensor, keep_indices: Tensor, selected: Tensor) -> Tensor:
    """Put the selected tokens back in their old places; the others stay as they are (paper Eq. 4).

    Args:
        tokens: All tokens (B, N, D).
        keep_indices: Indices (B, K).
        selected: New values of the selected tokens (B, K, D).

    Returns:
        All tokens (B, N, D), a new tensor.
    """
    flat = tokens.flatten(0, 1).index_copy(0, flat_indices(tokens, keep_indices), selected.flatten(0, 1))
    return flat.view_as(tokens)


def merge_tokens(first_indices: Tensor, first: Tensor, second_indices: Tensor, second: Tensor) -> Tensor:
    """Put two groups that together are all tokens in their places.

    Args:
        first_indices: Indices (B, K) of the first group.
        first: Its tokens (B, K, D).
        second_indices: Indices (B, N - K) of the second group.
        second: Its tokens (B, N - K, D).

    Returns:
        All tokens (B, N, D).
    """
    # Copying rows out is faster than copying them in: each place looks up where its token stands in the two groups.
    indices = torch.cat([first_indices, second_indices], dim=1)
    order = torch.arange(indices.shape[1], device=indices.device).expand_as(indices)
    places = torch.empty_like(indices).scatter(1, indices, order)
    return gather_tokens(torch.cat([first, second], dim=1), places)


def flat_indices(tokens: Tensor, indices: Tensor) -> Tensor:
    """Rows of tokens (B, N, D), seen as (B * N, D), that indices (B, n) name: (B * n). Whole rows can be copied so."""
    batch = tokens.shape[0]
    if isinstance(batch, int) and batch == 1:  # a graph for any number of images has no number here
        return indices.flatten()
    offsets = torch.arange(batch, device=tokens.device) * tokens.shape[1]
    return (indices + offsets[:, None]).flatten()
