"""Token merging in the run of a whole model, as a peer to measure against (ToMe, arXiv 2210.09461).

ToMe merges between the attention and the MLP of a block. The blocks of a whole model are called as they are, so tokens
are merged before a block, by the keys that its attention has for them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tosa_cli.model.families import attention_input, head_dim, kind_of, mean_key_projection
from tosa_cli.model.grouping import group_means
from tosa_cli.model.keys import MatchingKeys
from tosa_cli.model.runs.block import TosaBlock
from tosa_cli.model.runs.find import ADDED, ImageRun
from tosa_cli.model.runs.run import Patches, named_call
from tosa_cli.peers.merged_flops import least_merges, matching_macs, spread_merges
from tosa_cli.peers.merging import MergeMode, match_tokens, merge_tokens, size_bias, unmerge_tokens


class Merged(NamedTuple):
    """Tokens of which some are merged.

    Attributes:
        tokens: The tokens (B, K, D).
        sizes: How many tokens each stands for, (B, K); None is one each.
        position: Where each of all N tokens is found among them, (B, N).
        origin: Which of the N tokens each was before others were merged into it, (B, K).
    """

    tokens: Tensor
    sizes: Tensor | None
    position: Tensor
    origin: Tensor


class MergedRun(nn.Module):
    """Blocks that merge tokens; the model sees all tokens behind each, with merged ones copied back to their places.

    Args:
        blocks: The blocks, the first of a run.
        mode: `merge`, by which tokens stay merged up to the last block, or `merge-unmerge`, by which each block matches
            all tokens afresh.
        num_merged: Number of tokens to merge before each.
        patches: The tokens of an image.
        embed_dim: Width D of the tokens.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], mode: MergeMode, num_merged: Sequence[int], patches: Patches, embed_dim: int
    ) -> None:
        super().__init__()
        self.blocks, self.mode, self.num_merged, self.patch_embed = tuple(blocks), mode, tuple(num_merged), patches
        self.num_prefix_tokens = patches.num_prefix_tokens + patches.num_last_tokens
        self.keys = nn.ModuleList(MatchingKeys(*mean_key_projection(block)) for block in blocks)
        self._behind: tuple[Merged, Tensor] | None = None

    def forward_layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Run a layer as the model calls its block.

        Args:
            layer: Its number, from 1.
            args: What the block is called with: all tokens (B, N, D) first.
            kwargs: Likewise, by name.

        Returns:
            All tokens (B, N, D), in their order.
        """
        block = self.blocks[layer - 1]
        given, extras = named_call(block, args, kwargs)
        merged = self._merge(layer, self._entering(layer, given))
        bias = size_bias(merged.sizes, merged.tokens.dtype)
        tokens = kind_of(block).run_selected(block, merged.tokens, merged.origin, extras, bias)
        shown = self.patch_embed.leave(unmerge_tokens(tokens, merged.position))
        if self.mode == "merge" and layer < len(self.blocks):
            self._behind = merged._replace(tokens=tokens), shown
        return shown

    def _entering(self, layer: int, given: Tensor) -> Merged:
        """What enters a layer: the tokens that the layer before left merged, or all that are given, (B, N, D)."""
        behind, self._behind = self._behind, None
        if layer > 1 and behind is not None and behind[1].shape == given.shape:
            merged, shown = behind
            if shown is given:
                return merged
            # The model did something to them between its layers: those of one group are averaged again.
            return merged._replace(tokens=_averaged(self.patch_embed.enter(given), merged))
        tokens = self.patch_embed.enter(given)
        every = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[0], -1)
        return Merged(tokens, None, every, every)

    def _merge(self, layer: int, before: Merged) -> Merged:
        """Merge the tokens that a layer is to merge."""
        count = self.num_merged[layer - 1]
        if not count:
            return before
        keys = self.keys[layer - 1](attention_input(self.blocks[layer - 1], before.tokens))
        matching = match_tokens(keys, count, self.num_prefix_tokens)
        tokens, sizes = merge_tokens(before.tokens, before.sizes, matching)
        position = matching.position.gather(1, before.position)
        return Merged(tokens, sizes, position, before.origin.gather(1, matching.stay))


def _averaged(tokens: Tensor, merged: Merged) -> Tensor:
    """The means (B, K, D) of tokens (B, N, D) that are merged."""
    if merged.sizes is None:
        return tokens
    alone = torch.ones(tokens.shape[:2], device=tokens.device)
    return group_means(tokens, alone, merged.position, merged.sizes)


def merge_in(found: ImageRun, mode: MergeMode, num_merged: Sequence[int], patches: Patches) -> None:
    """Let the first blocks of a run merge tokens, as many blocks as there are numbers, in place."""
    blocks = found.blocks[: len(num_merged)]
    run: Any = MergedRun(blocks, mode, num_merged, patches, found.patches.out_channels)
    weight = next(found.owner.parameters())
    for index, block in enumerate(blocks):
        found.layers[index] = TosaBlock(block, run, index + 1)
    found.owner.add_module(ADDED, run.to(weight.device, weight.dtype))


def solve_run_merges(
    found: ImageRun, patches: Patches, mode: MergeMode, target_reduction: float, *, decreasing: bool = False
) -> tuple[tuple[int, ...], float]:
    """Find how many tokens to merge before each block to save a share of the MACs of a run's layers, matching included.

    Args:
        found: The run, of the dense model.
        patches: The tokens of an image.
        mode: `merge` or `merge-unmerge`.
        target_reduction: Share of the MACs of the layers to save.
        decreasing: Merge twice the mean in the first layer, and less and less behind it.

    Returns:
        The smallest numbers that save at least as much, and the share that they save.

    Raises:
        ConfigError: If merging cannot save as much.
    """
    depth = len(found.eligible_layers)
    prefix = patches.num_prefix_tokens + patches.num_last_tokens
    tokens = patches.num_patches + prefix
    dense = sum(kind_of(block).macs(block, tokens) for block in found.blocks)

    def saved(num_merged: Sequence[int]) -> float:
        left, macs = tokens, sum(kind_of(block).macs(block, tokens) for block in found.blocks[depth:])
        for block, merged in zip(found.blocks, num_merged, strict=False):
            macs += kind_of(block).macs(block, left - merged)
            if merged:
                width = head_dim(block)
                macs += left * found.patches.out_channels * width + matching_macs(left - prefix, width)
            left -= merged if mode == "merge" else 0
        return 1 - macs / dense

    spread = partial(spread_merges, mode, depth, tokens, prefix, decreasing)
    num_merged = least_merges(mode, map(spread, range(depth * (tokens + 1))), saved, target_reduction)
    return num_merged, saved(num_merged)
