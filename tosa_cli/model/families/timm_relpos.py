"""timm's ViTs with relative positions alone: a bias for pairs of positions from a table or a small network."""

from typing import ClassVar

from timm.layers import RelPosMlp
from timm.models import vision_transformer_relpos
from timm.models.vision_transformer_relpos import (
    RelPosAttention,
    RelPosBlock,
    ResPostRelPosBlock,
    VisionTransformerRelPos,
)
from torch import Tensor, nn

from tosa_cli.model.families.base import Blocks
from tosa_cli.model.families.macs import linear_macs
from tosa_cli.model.families.timm_common import TimmBiasBlock, TimmFamily, after_class_token
from tosa_cli.model.places import Extras


class RelPosBiasBlock(TimmBiasBlock):
    """A block whose attention makes its bias by `rel_pos`, or is given the one that all layers share."""

    def macs(self, block: RelPosBlock | ResPostRelPosBlock, tokens: int) -> int:
        """Count the bias once, and not for each token."""
        bias = block.attn.rel_pos
        per_token = 0 if bias is None else linear_macs(bias)
        return super().macs(block, tokens) - tokens * per_token + bias_macs(bias)


class TimmRelPos(TimmFamily):
    """`VisionTransformerRelPos`."""

    models = (VisionTransformerRelPos,)
    blocks: ClassVar[Blocks] = {
        RelPosBlock: RelPosBiasBlock(RelPosAttention),
        ResPostRelPosBlock: RelPosBiasBlock(RelPosAttention, norm_after=True),
    }
    modules = ("vision_transformer_relpos",)

    def embed_patches(self, model: VisionTransformerRelPos, patches: Tensor) -> tuple[Tensor, tuple[Extras, ...]]:
        """Add the class token, if any; each block is given the bias that they share, if any."""
        tokens = after_class_token(model.cls_token, patches)
        if model.shared_rel_pos is None:
            return tokens, ()
        return tokens, ({"shared_rel_pos": model.shared_rel_pos.get_bias()},) * len(model.blocks)

    def shared_macs(self, model: VisionTransformerRelPos) -> int:
        """MACs of the bias that all layers share."""
        return bias_macs(model.shared_rel_pos)

    def fit_checkpoint(
        self,
        state: dict[str, Tensor],
        model: VisionTransformerRelPos,
        adapt_layer_scale: bool = False,
        antialias: bool = True,
    ) -> dict[str, Tensor]:
        """Use timm's filter."""
        return vision_transformer_relpos.checkpoint_filter_fn(state, model)


def bias_macs(bias: nn.Module | None) -> int:
    """MACs of a position bias: a small network may make it, for every distance of two patches, in any kind of layer."""
    if not isinstance(bias, RelPosMlp):
        return 0
    rows, columns = bias.window_size
    return (2 * rows - 1) * (2 * columns - 1) * linear_macs(bias)
