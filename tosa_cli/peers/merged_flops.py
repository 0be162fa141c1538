"""Multiply-accumulates (MACs) of token merging, by arithmetic on shapes, and the schedule that reaches a budget."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from tosa_cli.errors import ConfigError
from tosa_cli.model.families import Backbone, linear_macs
from tosa_cli.model.flops import count_flops
from tosa_cli.model.flops_report import GIGA
from tosa_cli.peers.merging import MergeMode, check_mergeable, num_mergeable


def count_merged_macs(backbone: Backbone, mode: MergeMode, num_merged: Sequence[int]) -> int:
    """Count the MACs of a `MergedViT` for one image of the backbone's size, matching included.

    Args:
        backbone: A dense timm ViT.
        mode: `merge` or `merge-unmerge`.
        num_merged: Number of tokens to merge in each layer.
    """
    check_mergeable(backbone)
    return _MergedMacs(backbone, mode).count(num_merged)


def solve_num_merged(
    backbone: Backbone, mode: MergeMode, target_reduction: float, *, decreasing: bool = False
) -> tuple[int, ...]:
    """Find how many tokens to merge in each layer to save a share of the dense MACs, matching included.

    The number is the same in every layer but for rounding, or falls steadily to none, ToMe's two schedules; a layer
    with fewer tokens merges half of them.

    Args:
        backbone: A dense timm ViT.
        mode: `merge` or `merge-unmerge`.
        target_reduction: Share of the dense MACs to save, as 0.25 for 25 %.
        decreasing: Merge twice the mean in the first layer, and less and less behind it.

    Returns:
        The smallest numbers that save at least as much.

    Raises:
        UnsupportedModelError: If tokens cannot be merged in the backbone's blocks.
        ConfigError: If merging cannot save as much.
    """
    check_mergeable(backbone)
    macs = _MergedMacs(backbone, mode)
    spread = partial(spread_merges, mode, macs.depth, macs.tokens, macs.prefix, decreasing)
    totals = range(macs.depth * (macs.tokens + 1))
    return least_merges(mode, map(spread, totals), lambda merged: 1 - macs.count(merged) / macs.dense, target_reduction)


def least_merges(
    mode: MergeMode,
    schedules: Iterable[tuple[int, ...]],
    saved: Callable[[tuple[int, ...]], float],
    target_reduction: float,
) -> tuple[int, ...]:
    """The first of some schedules, which merge more and more, that saves as much as is asked for.

    Args:
        mode: `merge` or `merge-unmerge`.
        schedules: Number of tokens to merge in each layer, of each.
        saved: The share of the MACs that one saves.
        target_reduction: Share of the MACs to save.

    Raises:
        ConfigError: If none does.
    """
    most = 0.0
    for num_merged in schedules:
        reduction = saved(num_merged)
        if reduction >= target_reduction:
            return num_merged
        most = max(most, reduction)
    raise ConfigError(
        f"The reduction {target_reduction:.1%} cannot be reached: {mode} saves at most {most:.1%} of this model's MACs."
    )


def spread_merges(
    mode: MergeMode, depth: int, tokens: int, prefix: int, decreasing: bool, total: int
) -> tuple[int, ...]:
    """Spread a number of tokens to merge over layers, evenly or falling; no layer merges more than it can.

    Args:
        mode: `merge` or `merge-unmerge`.
        depth: Number of layers.
        tokens: Number of tokens N that enter the first.
        prefix: Number of those that are never merged.
        decreasing: Merge twice the mean in the first layer, and less and less behind it.
        total: The number.
    """

    def merged_by(layer: int) -> int:
        if decreasing:
            return (2 * depth - layer) * layer * total // depth**2
        return layer * total // depth

    schedule = []
    for layer in range(depth):
        merged = min(merged_by(layer + 1) - merged_by(layer), num_mergeable(tokens, prefix))
        schedule.append(merged)
        tokens -= merged if mode == "merge" else 0
    return tuple(schedule)


def matching_macs(patches: int, width: int) -> int:
    """MACs of the similarities between the two halves of so many patch tokens, by keys of a width (ToMe 3.1)."""
    return (patches + 1) // 2 * (patches // 2) * width


class DenseMacs:
    """MACs of a timm ViT in parts, by arithmetic; its shapes are read once, as solvers count many times.

    Attributes:
        tokens: Number of tokens N.
        prefix: Number of prefix tokens.
        dense: All MACs.
        outside: MACs of what is around the layers.
        shapes: Of each layer the MACs of its attention's linear layers for one token, the width of its heads together,
            and the MACs of its MLP for one token.
    """

    def __init__(self, backbone: Backbone) -> None:
        report = count_flops(backbone)
        self.tokens = report.layers[0].tokens
        self.prefix: int = backbone.num_prefix_tokens
        self.dense = round(report.dense_gmacs * GIGA)
        self.outside = self.dense - sum(layer.dense_macs for layer in report.layers)
        blocks: Any = backbone.blocks
        self.shapes = [
            (linear_macs(block.attn), block.attn.num_heads * block.attn.head_dim, linear_macs(block.mlp))
            for block in blocks
        ]


class _MergedMacs(DenseMacs):
    """MACs of a `MergedViT`."""

    def __init__(self, backbone: Backbone, mode: MergeMode) -> None:
        super().__init__(backbone)
        self.mode = mode
        self.depth = len(self.shapes)
        blocks: Any = backbone.blocks
        self.keys = [(block.attn.head_dim, backbone.embed_dim) for block in blocks]

    def count(self, num_merged: Sequence[int]) -> int:
        """MACs of all layers and of what is around them."""
        tokens, macs = self.tokens, self.outside
        for merged, (attention, dim, mlp), (head_dim, width) in zip(num_merged, self.shapes, self.keys, strict=True):
            left = tokens - merged
            attending = tokens if self.mode == "merge" else left
            macs += attending * attention + 2 * attending * attending * dim + left * mlp
            if merged:
                macs += matching_macs(tokens - self.prefix, head_dim)
                macs += tokens * width * head_dim if self.mode == "merge-unmerge" else 0
            tokens = left if self.mode == "merge" else tokens
        return macs
