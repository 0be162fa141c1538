"""Multiply-accumulates (MACs) of pruning, by arithmetic on shapes, and the keep rate that reaches a budget."""

from collections.abc import Callable, Sequence
from functools import cache, partial

from tosa_cli.errors import ConfigError
from tosa_cli.model.families import Backbone
from tosa_cli.model.flops import head_macs
from tosa_cli.peers.merged_flops import DenseMacs
from tosa_cli.peers.pruning import check_prunable, check_pruning, num_attentive, num_left


def count_pruned_macs(backbone: Backbone, keep_rate: float, layers: Sequence[int]) -> int:
    """Count the MACs of a `PrunedViT` for one image of the backbone's size, the class token's row and fusing included.

    Args:
        backbone: A dense timm ViT.
        keep_rate: Share of the patch tokens that each of the layers keeps.
        layers: The layers that prune, numbered from 1.

    Raises:
        UnsupportedModelError: If the backbone cannot be pruned so.
        ConfigError: If there is no such keep rate, or the backbone does not have the layers.
    """
    check_prunable(backbone)
    check_pruning(keep_rate, layers, len(backbone.blocks))
    return _PrunedMacs(backbone, layers).count(keep_rate)


def solve_pruned_keep_rate(backbone: Backbone, layers: Sequence[int], target_reduction: float) -> float:
    """Find the keep rate with which pruning in these layers saves a share of the dense MACs.

    Args:
        backbone: A dense timm ViT.
        layers: The layers that prune, numbered from 1.
        target_reduction: Share of the dense MACs to save, as 0.25 for 25 %.

    Returns:
        The largest keep rate, to three decimals, that saves at least as much.

    Raises:
        UnsupportedModelError: If the backbone cannot be pruned so.
        ConfigError: If pruning in these layers cannot save as much, or the backbone does not have them.
    """
    check_prunable(backbone)
    check_pruning(1.0, layers, len(backbone.blocks))
    macs = _PrunedMacs(backbone, layers)
    return largest_keep_rate(
        macs.count, macs.dense, target_reduction, "prune", f"in layers {','.join(map(str, layers))}"
    )


def largest_keep_rate(
    count: Callable[[float], int], dense: int, target_reduction: float, name: str, where: str
) -> float:
    """Find the largest keep rate, to three decimals, with which at least a share of the dense MACs is saved.

    Args:
        count: Counts the MACs at a keep rate.
        dense: MACs of the dense model.
        target_reduction: The share, as 0.25 for 25 %.
        name: Name of the peer, for the error.
        where: In which layers it saves, for the error.

    Raises:
        ConfigError: If no keep rate saves as much.
    """
    most = 0.0
    for thousandths in range(1000, 0, -1):
        reduction = 1 - count(thousandths / 1000) / dense
        if reduction >= target_reduction:
            return thousandths / 1000
        most = max(most, reduction)
    raise ConfigError(
        f"The reduction {target_reduction:.1%} cannot be reached: {name} saves at most {most:.1%} of this model's MACs "
        f"{where}."
    )


class _PrunedMacs(DenseMacs):
    """MACs of a `PrunedViT`."""

    def __init__(self, backbone: Backbone, layers: Sequence[int]) -> None:
        super().__init__(backbone)
        self.layers = frozenset(layers)
        self.width: int = backbone.embed_dim
        # What pools may read all tokens, of which there are fewer.
        self.head = cache(partial(head_macs, backbone))

    def count(self, keep_rate: float) -> int:
        """MACs of all layers and of what is around them."""
        tokens, macs = self.tokens, self.outside - self.head(self.tokens)
        for layer, (attention, dim, mlp) in enumerate(self.shapes, start=1):
            patches = tokens - self.prefix
            prunes = layer in self.layers and num_attentive(patches, keep_rate) < patches
            left = num_left(tokens, keep_rate, self.prefix) if prunes else tokens
            macs += tokens * attention + 2 * tokens * tokens * dim + left * mlp
            macs += tokens * (dim + self.width) if prunes else 0
            tokens = left
        return macs + self.head(tokens)
