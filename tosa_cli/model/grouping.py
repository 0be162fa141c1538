"""Tokens in groups that only grow: pure functions behind the `ward` selector and the `mean` bypass.

A layer computes the mean of each group, and every token of a group takes the mean's update. Two groups that become one
add to the squared distances of tokens to the mean of their group what Ward (1963) says: the squared distance of the two
means times n m / (n + m), where n and m are their sizes. Groups are sought in pairs between two alternating halves, as
in token merging (ToMe, arXiv 2210.09461, section 3.1).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tosa_cli.model.matching import other_indices, positions, squared_distances
from tosa_cli.model.selection import flat_indices


class Grown(NamedTuple):
    """Which of M groups stay as they are or take others in, and where each has gone.

    Attributes:
        stay: Indices of those that stay, (B, K), rising.
        position: Position among them of each of the M groups, (B, M).
        sizes: How many tokens each of those that stay stands for, (B, K), in float32.
    """

    stay: Tensor
    position: Tensor
    sizes: Tensor


def num_mergeable(num_groups: int, num_prefix_tokens: int) -> int:
    """How many groups can be merged into others at once: half of those of patches."""
    return (num_groups - num_prefix_tokens) // 2


def grow_groups(means: Tensor, sizes: Tensor, num_groups: int, num_prefix_tokens: int) -> Grown:
    """Merge groups into others until so many are left, those first that add least to the spread within groups.

    Args:
        means: Mean of each group, (B, M, D), in the order of the tokens that are kept of them.
        sizes: How many tokens each stands for, (B, M), in float32.
        num_groups: How many groups K to leave, at least the prefix tokens and one more.
        num_prefix_tokens: Number of prefix tokens, which come first and stay alone.
    """
    stay = torch.arange(means.shape[1], device=means.device).expand(means.shape[:2])
    grown = Grown(stay, stay, sizes)
    while (left := grown.stay.shape[1] - num_groups) > 0:
        count = min(left, num_mergeable(means.shape[1], num_prefix_tokens))
        step = _merge_pairs(means, grown.sizes, count, num_prefix_tokens)
        means = group_means(means, grown.sizes, step.position, step.sizes)
        grown = Grown(grown.stay.gather(1, step.stay), step.position.gather(1, grown.position), step.sizes)
    return grown


def merge_costs(means: Tensor, sizes: Tensor, others: Tensor, other_sizes: Tensor) -> Tensor:
    """What merging each of some groups with each of others adds to the squared distances of tokens to their mean.

    Args:
        means: Means (B, A, D) of the first groups.
        sizes: Their sizes (B, A).
        others: Means (B, C, D) of the others.
        other_sizes: Their sizes (B, C).

    Returns:
        Costs (B, A, C) in float32 (Ward, 1963).
    """
    first, second = sizes.unsqueeze(2), other_sizes.unsqueeze(1)
    return squared_distances(means, others) * (first * second / (first + second))


def _merge_pairs(means: Tensor, sizes: Tensor, count: int, num_prefix_tokens: int) -> Grown:
    """Merge `count` groups of one half into their nearest of the other half; the halves alternate."""
    halves = (slice(num_prefix_tokens, None, 2), slice(num_prefix_tokens + 1, None, 2))
    (first, its_sizes), (second, other_sizes) = ((means[:, half], sizes[:, half]) for half in halves)
    nearest = merge_costs(first, its_sizes, second, other_sizes).min(dim=-1)
    chosen = nearest.values.topk(count, largest=False, sorted=False).indices
    goes = 2 * chosen + num_prefix_tokens
    takes = 2 * nearest.indices.gather(1, chosen) + num_prefix_tokens + 1
    return merge_into(goes, takes, sizes)


def merge_into(goes: Tensor, takes: Tensor, sizes: Tensor) -> Grown:
    """Merge groups `goes` (B, r) into groups `takes` (B, r), by their indices among groups of these sizes (B, M)."""
    length = sizes.shape[1]
    stay = other_indices(goes, length)
    position = positions(stay, length)
    into = position.gather(1, takes)
    grown_sizes = sizes.gather(1, stay).scatter_add(1, into, sizes.gather(1, goes))
    return Grown(stay, position.scatter(1, goes, into), grown_sizes)


def group_means(means: Tensor, sizes: Tensor, position: Tensor, grown_sizes: Tensor) -> Tensor:
    """Means of groups that groups were merged into.

    Args:
        means: Means (B, M, D) of the groups before, or tokens.
        sizes: Their sizes (B, M).
        position: Where each has gone, (B, M).
        grown_sizes: Sizes (B, K) of the groups after.

    Returns:
        Means (B, K, D).
    """
    shares = (sizes / grown_sizes.gather(1, position)).to(means.dtype)
    empty = means.new_zeros(*grown_sizes.shape, means.shape[-1])
    # Whole rows into (B * K, D): many times faster than scattering element by element.
    rows = flat_indices(empty, position)
    return empty.flatten(0, 1).index_add(0, rows, (means * shares.unsqueeze(-1)).flatten(0, 1)).view_as(empty)
