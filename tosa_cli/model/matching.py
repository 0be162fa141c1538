"""Which tokens resemble each other: pure functions behind the `similarity` selector and the `nearest` bypasses.

Tokens are compared by the squared distance of short keys. A skipped token and its partners, the nearest of the kept
tokens, hang together: its update is made of theirs, and in the attention of the layer they stand for it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tosa_cli.model.choice import Choice
from tosa_cli.model.selection import flat_indices, gather_tokens

FLOOR = 2.0**-14
"""The least number that half precision holds in full."""

AT_ONCE = 2**22
"""Of how many pairs of tokens of an image distances are there at once: of all pairs up to some 4,000 tokens."""


def partner_spacing(grid: tuple[int, int], num_skipped: int) -> int:
    """How far apart possible partners stand, so that there are candidates enough to choose the skipped ones from.

    Args:
        grid: Patches (rows, columns).
        num_skipped: Number of patches S to skip.

    Returns:
        1 for the other color of a checkerboard; n from 2 up for one patch of each square of n x n.
    """
    num_patches = grid[0] * grid[1]
    if 3 * num_skipped <= num_patches:
        return 1
    spacing = 2
    while num_skipped > 0.9 * (num_patches - num_partners(grid, spacing)) and spacing < max(grid):
        spacing += 1
    return spacing


def two_sets(grid: tuple[int, int], spacing: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Split the patches of a grid into candidates, which may be skipped, and possible partners, which stay.

    The partners are spread evenly, so that each candidate has some beside it.

    Args:
        grid: Patches (rows, columns).
        spacing: From `partner_spacing`.
        device: Where the indices live.

    Returns:
        Indices among the patches, rising: candidates (A,) and partners (C,).
    """
    rows, columns = grid
    patch = torch.arange(rows * columns, device=device)
    row, column = patch // columns, patch % columns
    is_partner = (row + column) % 2 == 1 if spacing == 1 else (row % spacing == 0) & (column % spacing == 0)
    # A stable sort puts the candidates first; their number is known without a look at the device.
    order = is_partner.to(torch.uint8).sort(stable=True).indices
    num_candidates = rows * columns - num_partners(grid, spacing)
    return order[:num_candidates], order[num_candidates:]


def num_partners(grid: tuple[int, int], spacing: int) -> int:
    """How many possible partners `two_sets` finds: at least one, which is all there is of a grid of one patch."""
    rows, columns = grid
    return max(1, rows * columns // 2) if spacing == 1 else -(-rows // spacing) * -(-columns // spacing)


def similarity_sets(
    grid: tuple[int, int], num_skipped: int, num_prefix_tokens: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Split the patches as `choose_by_similarity` does: candidates (A,) and possible partners (C,) among all tokens."""
    candidates, others = two_sets(grid, partner_spacing(grid, num_skipped), device)
    return candidates + num_prefix_tokens, others + num_prefix_tokens


def length_scale(width: int) -> float:
    """By what keys of a width are multiplied before distances are taken: about 1 / sqrt(width), a power of two.

    So the squared distances, which are sums over the channels, are about as large as the squares of single channels:
    a runtime that computes in half precision can hold them, and float32 is wrong by nothing.
    """
    return 2.0 ** -round(math.log2(width) / 2)


def centered_for_distances(keys: Tensor, center: Tensor) -> Tensor:
    """Keys (B, n, d) in float32, less the mean of some (B, m, d), times `length_scale(d)`.

    Distances are small differences of large norms, so what all keys share is taken off.
    """
    scale = length_scale(keys.shape[-1])
    return torch.add(center.float().mean(1, keepdim=True) * -scale, keys.float(), alpha=scale)


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distance of each of the keys (B, A, d) to each of the keys (B, C, d), times `length_scale(d)` squared.

    Returns:
        Distances (B, A, C) in float32.
    """
    first, second = (centered_for_distances(keys, second) for keys in (first, second))
    norms = first.square().sum(-1, keepdim=True) + second.square().sum(-1).unsqueeze(1)
    return torch.baddbmm(norms, first, second.transpose(1, 2), alpha=-2).clamp_min(0)


def row_blocks(rows: int, columns: int) -> list[slice]:
    """Blocks of the rows of a table, each of `AT_ONCE` entries at most: its memory grows with its columns alone."""
    size = max(1, AT_ONCE // max(1, columns))
    return [slice(start, start + size) for start in range(0, rows, size)] or [slice(0, 0)]


def least_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distance (B, A) of each of the keys (B, A, d) to the nearest of the keys (B, C, d); in float32."""
    blocks = row_blocks(first.shape[1], second.shape[1])
    return torch.cat([squared_distances(first[:, rows], second).amin(-1) for rows in blocks], dim=1)


def nearest_of(first: Tensor, second: Tensor, count: int) -> "Smallest":
    """The `count` nearest of the keys (B, C, d) to each of the keys (B, A, d): their distances and where they stand."""
    blocks = row_blocks(first.shape[1], second.shape[1])
    found = [smallest(squared_distances(first[:, rows], second), count) for rows in blocks]
    return Smallest(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))


def choose_by_similarity(
    keys: Tensor, num_kept: int, num_prefix_tokens: int, grid: tuple[int, int], neighbors: int
) -> Choice:
    """Skip the patches that have the nearest partner.

    Args:
        keys: Keys (B, N, d).
        num_kept: Number of tokens K to keep, at least the prefix tokens and one more.
        num_prefix_tokens: Number of prefix tokens, which are always kept.
        grid: Patches (rows, columns).
        neighbors: Number k of partners of each skipped token.

    Returns:
        The choice, with partners.
    """
    batch, length, _ = keys.shape
    num_skipped = length - num_kept
    if num_skipped == 0:
        everything = torch.arange(length, device=keys.device).expand(batch, length)
        nothing = everything[:, :0]
        return Choice(everything, nothing, nothing.unsqueeze(-1), keys.new_empty(batch, 0, 1, dtype=torch.float32))
    candidates, others = similarity_sets(grid, num_skipped, num_prefix_tokens, keys.device)
    first, second, count = keys.index_select(1, candidates), keys.index_select(1, others), min(neighbors, len(others))
    # In one piece distances are taken once, else once to choose and once to match.
    distances = squared_distances(first, second) if len(candidates) * len(others) <= AT_ONCE else None
    least = least_distances(first, second) if distances is None else distances.amin(-1)
    chosen = least.topk(num_skipped, largest=False, sorted=False).indices.sort(-1).values
    skip_indices = candidates[chosen]
    if distances is None:
        nearest = nearest_of(gather_tokens(first, chosen), second, count)
    else:
        nearest = smallest(gather_tokens(distances, chosen), count)
    keep_indices = other_indices(skip_indices, length)
    partners = positions(keep_indices, length).gather(1, others[nearest.indices.flatten(1)])
    return Choice(keep_indices, skip_indices, partners.view_as(nearest.indices), partner_weights(nearest.values))


def match_with_kept(keys: Tensor, keep_indices: Tensor, num_prefix_tokens: int, neighbors: int) -> Choice:
    """Find the partners of the skipped tokens among the kept patches.

    Args:
        keys: Keys (B, N, d).
        keep_indices: Kept tokens (B, K), rising, the prefix tokens first.
        num_prefix_tokens: Number of prefix tokens, which are no partners.
        neighbors: Number k of partners of each skipped token.

    Returns:
        The choice, with partners.
    """
    skip_indices = other_indices(keep_indices, keys.shape[1])
    kept = keep_indices[:, num_prefix_tokens:]
    count = min(neighbors, kept.shape[1])
    nearest = nearest_of(gather_tokens(keys, skip_indices), gather_tokens(keys, kept), count)
    return Choice(keep_indices, skip_indices, nearest.indices + num_prefix_tokens, partner_weights(nearest.values))


class Smallest(NamedTuple):
    """The smallest numbers of each row, rising, and where they stand; both (..., k)."""

    values: Tensor
    indices: Tensor


def smallest(numbers: Tensor, count: int) -> Smallest:
    """The `count` smallest of each row (..., n); numbers that are equal come in any order.

    For a few of them it looks for the smallest several times, which in PyTorch on a CPU is faster than `topk`. Exported
    graphs have `topk`: it needs no fill that half precision may not hold.
    """
    if numbers.is_cuda or count > 4 or torch.compiler.is_exporting() or not numbers.numel():
        return Smallest(*numbers.topk(count, largest=False))
    rest, values, indices = numbers, [], []
    for number in range(count):
        value, index = rest.min(dim=-1, keepdim=True)
        values.append(value)
        indices.append(index)
        if number + 1 < count:
            rest = rest.scatter(-1, index, float("inf"))
    return Smallest(torch.cat(values, dim=-1), torch.cat(indices, dim=-1))


def partner_weights(distances: Tensor) -> Tensor:
    """Share of each partner by its squared distance (B, S, k): its inverse squared, so that near ones count most.

    The shares are float32.
    """
    # By the distance of the last partner, and with floors, so that equal tokens, at distance 0, share: every number
    # and its inverse is one that half precision holds.
    distances = distances.float()
    relative = (distances / distances[..., -1:].clamp_min(FLOOR)).clamp_min(FLOOR)
    inverse = (relative[..., :1] / relative).square()
    return inverse / inverse.sum(-1, keepdim=True)


def token_sizes(num_kept: int, partners: Tensor, weights: Tensor) -> Tensor:
    """How many tokens each kept token stands for, itself included.

    Args:
        num_kept: Number of kept tokens K.
        partners: Positions (B, S, k) of each skipped token's partners among them.
        weights: Shares (B, S, k) of the partners.

    Returns:
        Sizes (B, K) in float32; their sum is N.
    """
    sizes = weights.new_ones(weights.shape[0], num_kept)
    return sizes.scatter_add(1, partners.flatten(1), weights.flatten(1))


def mean_of_partners(tokens: Tensor, partners: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the partners of each skipped token.

    Args:
        tokens: Values (B, K, D).
        partners: Which of them, (B, S, k).
        weights: Their shares (B, S, k).

    Returns:
        Values (B, S, D).
    """
    batch, num_skipped, neighbors = partners.shape
    # One weighted sum of rows for each skipped token: an embedding bag, which reads each row once and keeps no copy.
    means = F.embedding_bag(
        flat_indices(tokens, partners.flatten(1)).view(batch * num_skipped, neighbors),
        tokens.flatten(0, 1),
        per_sample_weights=weights.to(tokens.dtype).flatten(0, 1),
        mode="sum",
    )
    return means.view(batch, num_skipped, tokens.shape[-1])


def other_indices(indices: Tensor, length: int) -> Tensor:
    """The indices below `length` that are not among the given ones (B, n), rising: (B, length - n)."""
    taken = torch.zeros(indices.shape[0], length, dtype=torch.uint8, device=indices.device)
    taken = taken.scatter(1, indices, 1)
    # A stable sort puts the free ones first and keeps their order.
    return taken.sort(dim=1, stable=True).indices[:, : length - indices.shape[1]]


def positions(keep_indices: Tensor, length: int) -> Tensor:
    """For each of `length` tokens its position among the kept ones (B, K); 0 for the others."""
    batch, kept = keep_indices.shape
    order = torch.arange(kept, device=keep_indices.device).expand(batch, -1)
    return torch.zeros(batch, length, dtype=order.dtype, device=order.device).scatter(1, keep_indices, order)
