"""Multiply-accumulates (MACs) of copying neighbours, by arithmetic on shapes, and the keep rate for a budget."""

from tosa_cli.model.families import Backbone
from tosa_cli.peers.copying import ATTENDED, check_copying, num_changed
from tosa_cli.peers.merged_flops import DenseMacs
from tosa_cli.peers.pruned_flops import largest_keep_rate


def count_copied_macs(backbone: Backbone, keep_rate: float, layer: int) -> int:
    """Count the MACs of a `CopiedViT` for one image of the backbone's size, the search for neighbours included.

    Args:
        backbone: A dense timm ViT.
        keep_rate: Share of the patch tokens that is kept.
        layer: The layer behind which the others are taken out, numbered from 1.

    Raises:
        UnsupportedModelError: If tokens cannot be taken out of the backbone so.
        ConfigError: If there is no such keep rate or layer.
    """
    check_copying(backbone, keep_rate, layer)
    return _CopiedMacs(backbone, layer).count(keep_rate)


def solve_copied_keep_rate(backbone: Backbone, layer: int, target_reduction: float) -> float:
    """Find the largest keep rate, to three decimals, with which at least a share of the dense MACs is saved.

    Args:
        backbone: A dense timm ViT.
        layer: The layer behind which tokens are taken out, numbered from 1.
        target_reduction: Share of the dense MACs to save, as 0.25 for 25 %.

    Raises:
        UnsupportedModelError: If tokens cannot be taken out of the backbone so.
        ConfigError: If as much cannot be saved behind this layer, or it is none.
    """
    check_copying(backbone, 1.0, layer)
    macs = _CopiedMacs(backbone, layer)
    return largest_keep_rate(macs.count, macs.dense, target_reduction, "copy", f"behind layer {layer}")


class _CopiedMacs(DenseMacs):
    """MACs of a `CopiedViT`."""

    def __init__(self, backbone: Backbone, layer: int) -> None:
        super().__init__(backbone)
        self.layer = layer
        self.width: int = backbone.embed_dim

    def count(self, keep_rate: float) -> int:
        """MACs of all layers and of what is around them."""
        kept = num_changed(self.tokens, keep_rate, self.prefix)
        macs = self.outside + (self.tokens - kept) * kept * self.width
        for layer, (attention, dim, mlp) in enumerate(self.shapes, start=1):
            attending = self.tokens if layer <= self.layer + ATTENDED else kept
            left = self.tokens if layer <= self.layer else kept
            macs += attending * attention + 2 * attending * attending * dim + left * mlp
        return macs
