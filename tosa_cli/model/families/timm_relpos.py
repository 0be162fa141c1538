"""timm's ViTs with relative positions alone: a bias for pairs of positions from a table or a small network."""

from typing import ClassVar

from timm.models import vision_transformer_relpos
from timm.models.vision_transformer_relpos import (
    RelPosAttention,
    RelPosBlock,
    ResPostRelPosBlock,
    VisionTransformerRelPos,
)
from torch import Tensor, nn

from tosa_cli.model.families.base import Backbone, Blocks
from tosa_cli.model.families.timm_common import TimmBiasBlock, TimmFamily, after_class_token
from tosa_cli.model.places import Extras


class RelPosBiasBlock(TimmBiasBlock):
    """A block whose attention makes its bias by `rel_pos`, or is given the one that all layers share."""

    def position_bias(self, block: Backbone) -> nn.Module | None:
        """The attention's."""
        return block.attn.rel_pos


class TimmRelPos(TimmFamily):
    """`VisionTransformerRelPos`."""

    models = (VisionTransformerRelPos,)
    blocks: ClassVar[Blocks] = {
        RelPosBlock: RelPosBiasBlock(RelPosAttention),
        ResPostRelPosBlock: RelPosBiasBlock(RelPosAttention, norm_after=True),
    }
    modules = ("vision_transformer_relpos",)

    def embed_patches(self, model: Backbone, patches: Tensor) -> tuple[Tensor, tuple[Extras, ...]]:
        """Add the class token, if any; each block is given the bias that they share, if any."""
        tokens = after_class_token(model.cls_token, patches)
        if model.shared_rel_pos is None:
            return tokens, ()
        return tokens, ({"shared_rel_pos": model.shared_rel_pos.get_bias()},) * len(model.blocks)

    def position_bias(self, model: Backbone) -> nn.Module | None:
        """The one that all layers share."""
        return model.shared_rel_pos

    def fit_checkpoint(
        self, state: dict[str, Tensor], model: Backbone, adapt_layer_scale: bool = False, antialias: bool = True
    ) -> dict[str, Tensor]:
        """Use timm's filter."""
        return vision_transformer_relpos.checkpoint_filter_fn(state, model)
