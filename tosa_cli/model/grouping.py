"""Tokens in groups that only grow: pure functions behind the `ward` selector and the `mean` bypass.

A layer computes the mean of each group, and every token of a group takes the mean's update. What it costs that two
groups become one is the squared distance of their means times n m / (n + m), as Ward (1963) says, where n and m are the
roots of their sizes. With the sizes themselves a cost is what is added to the squared distances of tokens to their
mean, and large groups stay apart too long: errors of DINOv2 at half of the MACs were an eighth higher. Groups are
sought in pairs between two alternating halves, as in token merging (ToMe, arXiv 2210.09461, section 3.1).

A mean is shorter than the tokens that it is of, the more so the less they point one way, and a layer that normalises
its inputs takes it for more than it is. So it is brought to the mean length of its tokens (MLERP of Token Fusion, arXiv
2312.01026, brings it to the largest), and what it lost is kept as the coherence of the group, by which it counts less
often in the attention.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tosa_cli.model.choice import Choice, Grown
from tosa_cli.model.matching import centered_for_distances, other_indices, row_blocks
from tosa_cli.model.selection import flat_indices, gather_tokens


class Moved(NamedTuple):
    """How to undo that r of M groups were merged into others.

    Attributes:
        position: Where each of the M groups has gone, (B, M).
        pairs: Indices of the groups that went, and behind them of those that each of them went into, (B, 2 r).
        differences: What stood for each of `pairs` before, less what stands for it now, (B, 2 r, D); of r' that went
            into the same group each says 1 / r' of it of that group.
    """

    position: Tensor
    pairs: Tensor
    differences: Tensor


LEAST_COHERENCE = 0.05
"""Tokens that cancel each other out have a mean of no direction, which is not made longer than by this."""

TINY = 1e-12

COHERENCE_POWER = 4
"""How much less a group counts in the attention: a power of its coherence. On DINOv2, errors are lowest at 3 to 6."""


def each_alone(tokens: Tensor) -> Tensor:
    """Sizes (B, N) of groups of which each is one of tokens (B, N, D), in float32; likewise their coherence."""
    return torch.ones(tokens.shape[:2], device=tokens.device)


def num_mergeable(num_groups: int, num_prefix_tokens: int) -> int:
    """How many groups can be merged into others at once: half of those of patches."""
    return (num_groups - num_prefix_tokens) // 2


def grow_groups(means: Tensor, sizes: Tensor, num_groups: int, num_prefix_tokens: int) -> Grown:
    """Merge groups into others until so many are left, those first that are near and small.

    Args:
        means: Mean of each group, (B, M, D), in the order of the tokens that are kept of them.
        sizes: How many tokens each stands for, (B, M), in float32.
        num_groups: How many groups K to leave, at least the prefix tokens and one more.
        num_prefix_tokens: Number of prefix tokens, which come first and stay alone.
    """
    grown, before = None, sizes
    while (left := sizes.shape[1] - num_groups) > 0:
        count = min(left, num_mergeable(sizes.shape[1], num_prefix_tokens))
        step = _merge_pairs(means, sizes, count, num_prefix_tokens)
        if count < left:
            means = group_means(means, sizes, step.position, step.sizes)
        grown, sizes = step if grown is None else _in_turn(before, grown, step), step.sizes
    if grown is None:  # as many are to be left as there are
        every = torch.arange(sizes.shape[1], device=sizes.device).expand(sizes.shape)
        return _grown(every, every[:, :0], every, sizes, sizes)
    return grown


def _in_turn(sizes: Tensor, first: Grown, second: Grown) -> Grown:
    """What becomes of groups of these sizes (B, M) that are merged twice."""
    stay, position = first.stay.gather(1, second.stay), second.position.gather(1, first.position)
    goes = torch.cat([first.goes, first.stay.gather(1, second.goes)], dim=1)
    return _grown(stay, goes, position, sizes, second.sizes)


def _grown(stay: Tensor, goes: Tensor, position: Tensor, before: Tensor, sizes: Tensor) -> Grown:
    into = position.gather(1, goes)
    rows = torch.cat([stay, goes, stay.gather(1, into)], dim=1)
    return Grown(rows, before.gather(1, rows), into, position, sizes)


class Half(NamedTuple):
    """Every second of some groups, as they are compared with the others.

    Attributes:
        means: Their means (B, A, D) in float32.
        norms: The squares of their lengths, (B, A).
        inverse: 1 / root of the size of each, (B, A).
    """

    means: Tensor
    norms: Tensor
    inverse: Tensor


def halves(means: Tensor, sizes: Tensor) -> tuple[Half, Half]:
    """The groups 0, 2, ... and the groups 1, 3, ... of M, by their means (B, M, D) and sizes (B, M)."""
    # A runtime may run an exported graph in half precision, which could not hold the squares of whole tokens.
    means = centered_for_distances(means, means) if torch.compiler.is_exporting() else means.float()
    tables = means, _lengths(means).square(), sizes.rsqrt()
    return _half(tables, 0), _half(tables, 1)


def _half(tables: tuple[Tensor, Tensor, Tensor], first: int) -> Half:
    """Every second row of tables (B, M, ...) from the first or the second on."""
    if torch.compiler.is_exporting():  # runtimes copy rows by their numbers many times faster than by steps of two
        rows = torch.arange(first, tables[0].shape[1], 2, device=tables[0].device)
        return Half(*[table.index_select(1, rows) for table in tables])
    return Half(*[table[:, first::2] for table in tables])


def merge_costs(first: Half, second: Half) -> Tensor:
    """What it costs to merge each of A groups with each of C others.

    Returns:
        Costs (B, A, C) in float32. Their order is what counts: of equal ones rounding may make them negative, and
        exported graphs have them times the square of `length_scale(D)`.
    """
    # Sums of all pairs take a third of the time where the numbers along the rows lie side by side.
    norm_sums = first.norms.unsqueeze(2) + second.norms.contiguous().unsqueeze(1)
    # 1 / n + 1 / m is (n + m) / n m.
    share_sums = first.inverse.unsqueeze(2) + second.inverse.contiguous().unsqueeze(1)
    return torch.baddbmm(norm_sums, first.means, second.means.transpose(1, 2), alpha=-2) / share_sums


def cheapest_merges(means: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """What the cheapest merge of each of the groups 0, 2, ... costs, (B, A), and with which of the others it is."""
    first, second = halves(means, sizes)
    blocks = row_blocks(first.norms.shape[1], second.norms.shape[1])
    if len(blocks) == 1:
        least = merge_costs(first, second).min(dim=-1)
        return least.values, least.indices
    found = [merge_costs(Half(*(table[:, rows] for table in first)), second).min(dim=-1) for rows in blocks]
    return torch.cat([least.values for least in found], dim=1), torch.cat([least.indices for least in found], dim=1)


def _merge_pairs(means: Tensor, sizes: Tensor, count: int, num_prefix_tokens: int) -> Grown:
    """Merge `count` groups of one half into their nearest of the other half; the halves alternate."""
    costs, partners = cheapest_merges(means[:, num_prefix_tokens:], sizes[:, num_prefix_tokens:])
    chosen = costs.topk(count, largest=False, sorted=False).indices
    return merge_into(2 * chosen + num_prefix_tokens, 2 * partners.gather(1, chosen) + (num_prefix_tokens + 1), sizes)


def merge_into(goes: Tensor, takes: Tensor, sizes: Tensor) -> Grown:
    """Merge groups `goes` (B, r) into groups `takes` (B, r), by their indices among groups of these sizes (B, M)."""
    length, count = sizes.shape[1], goes.shape[1]
    left = length - count
    every = torch.arange(length, device=sizes.device).expand(sizes.shape)
    position = every - torch.zeros_like(every).scatter(1, goes, 1).cumsum(1)
    into = position.gather(1, takes)
    # Each that stays is written where it stands; those that go are written behind them, all in one place.
    places = position.scatter(1, goes, left)
    stay = places.new_zeros(sizes.shape[0], left + 1).scatter_(1, places, every)[:, :left]
    rows = torch.cat([stay, goes, takes], dim=1)
    row_sizes = sizes.gather(1, rows)
    grown_sizes = row_sizes[:, :left].scatter_add(1, into, row_sizes[:, left:length])
    return Grown(rows, row_sizes, into, position.scatter_(1, goes, into), grown_sizes)


def how_grown(before: Choice, choice: Choice) -> Grown:
    """How groups have become larger ones, by the two choices alone."""
    assert before.groups is not None and before.sizes is not None
    assert choice.groups is not None and choice.sizes is not None
    stay = before.groups.gather(1, choice.keep_indices)
    goes = other_indices(stay, before.sizes.shape[1])
    return _grown(stay, goes, choice.groups.gather(1, before.keep_indices), before.sizes, choice.sizes)


def join_groups(means: Tensor, coherence: Tensor, grown: Grown) -> tuple[Tensor, Tensor, Moved]:
    """What stands for groups that others were merged into.

    Args:
        means: What stands for the M groups before, (B, M, D): means at the mean length of their tokens.
        coherence: Their coherence (B, M): length of the mean of a group as a share of the mean length of its tokens.
        grown: Where each has gone.

    Returns:
        The same of the groups after, (B, K, D), their coherence (B, K) in float32, and how to undo it.
    """
    # Only the rows of groups that merge are computed, as they are few: (B, 2, r, D), those that go and what they go to.
    into, pairs, left = grown.into, grown.pairs, grown.sizes.shape[1]
    rows, row_coherence = gather_tokens(means, pairs).unflatten(1, (2, -1)), coherence.gather(1, grown.rows)
    its_coherence, its_sizes = (table[:, left:].unflatten(1, (2, -1)) for table in (row_coherence, grown.row_sizes))
    shares = its_sizes / grown.sizes.gather(1, into).unsqueeze(1)
    weights, lengths = (shares * its_coherence).to(rows.dtype).unsqueeze(3), (shares * _lengths(rows)).unsqueeze(3)

    # Of several that go into the same group each sums all of them up, and brings its part of the change of that group.
    together = (into.unsqueeze(2) == into.unsqueeze(1)).to(lengths.dtype)
    goes, takes = (rows * weights).unbind(1)
    true_means = torch.baddbmm(takes, together.to(rows.dtype), goes)
    length = torch.baddbmm(lengths[:, 1], together, lengths[:, 0]).squeeze(2)
    shortened, several = _coherence(true_means, length), together.sum(2)
    differences = rows - (true_means / shortened.unsqueeze(2).to(rows.dtype)).unsqueeze(1)
    change = differences[:, 1] / several.unsqueeze(2).to(rows.dtype)

    stay = gather_tokens(means, grown.stay)
    stay = stay.flatten(0, 1).index_add_(0, flat_indices(stay, into), change.flatten(0, 1), alpha=-1).view_as(stay)
    kept = row_coherence[:, :left].scatter_add(1, into, (shortened - its_coherence[:, 1]) / several)
    return stay, kept, Moved(grown.position, pairs, torch.cat([differences[:, 0], change], dim=1))


def part_into_groups(tokens: Tensor, groups: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Moved]:
    """What stands for groups that there are, of other tokens than those that they were chosen for.

    Args:
        tokens: All tokens (B, N, D).
        groups: The group of each, (B, N).
        sizes: Sizes of the groups, (B, K).

    Returns:
        What `join_groups` does of groups that merge: what stands for them, their coherence, and how to undo it.
    """
    every = torch.arange(tokens.shape[1], device=tokens.device).expand(groups.shape)
    true_means = group_means(tokens, torch.ones_like(groups, dtype=sizes.dtype), groups, sizes)
    length = torch.zeros_like(sizes).scatter_add(1, groups, _lengths(tokens)) / sizes
    coherence = _coherence(true_means, length)
    means = true_means / coherence.unsqueeze(2).to(tokens.dtype)
    return means, coherence, Moved(groups, every, tokens - gather_tokens(means, groups))


def unmerge_groups(means: Tensor, moved: Moved) -> Tensor:
    """What stands for groups before they were merged, (B, M, D), by means (B, K, D) that layers may have changed since.

    Every group of before takes the change of the one that it has gone into.
    """
    rows = gather_tokens(means, moved.position)
    where = flat_indices(rows, moved.pairs)
    return rows.flatten(0, 1).index_add_(0, where, moved.differences.flatten(0, 1)).view_as(rows)


def log_counts(sizes: Tensor, coherence: Tensor) -> Tensor:
    """Logarithm of how often groups (B, K) count in the attention: their size, less where tokens point several ways."""
    return torch.add(sizes.log(), coherence.log(), alpha=COHERENCE_POWER)


def _lengths(tokens: Tensor) -> Tensor:
    """Lengths (B, M) of tokens (B, M, D), in float32: half precision cannot hold the squares of large ones."""
    return torch.linalg.vector_norm(tokens, dim=-1, dtype=torch.float32)


def _coherence(true_means: Tensor, length: Tensor) -> Tensor:
    """Lengths of means (B, K, D) as a share of the mean length (B, K) of the tokens of each, in float32."""
    return (_lengths(true_means) / length.clamp_min(TINY)).clamp(LEAST_COHERENCE, 1.0)


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
    return empty.flatten(0, 1).index_add_(0, rows, (means * shares.unsqueeze(-1)).flatten(0, 1)).view_as(empty)
