"""timm's BEiT and BEiT v2: a bias for pairs of positions in each block, or one for all of them."""

from typing import ClassVar

from timm.models import beit
from timm.models.beit import Attention, Beit, Block
from torch import Tensor

from tosa_cli.model.families.base import Blocks
from tosa_cli.model.families.timm_common import TimmBiasBlock, TimmFamily, after_class_token
from tosa_cli.model.places import Extras


class BeitBlock(TimmBiasBlock):
    """BEiT's block, whose attention does not say how wide its heads are."""

    def head_dim(self, block: Block) -> int:
        """Width of the attention's output, by heads."""
        return block.attn.proj.in_features // block.attn.num_heads


class TimmBeit(TimmFamily):
    """`Beit`."""

    models = (Beit,)
    blocks: ClassVar[Blocks] = {Block: BeitBlock(Attention)}
    modules = ("beit",)

    def embed_patches(self, model: Beit, patches: Tensor) -> tuple[Tensor, tuple[Extras, ...]]:
        """Add the class token and position embeddings; each block is given the bias that they share, if any."""
        tokens = after_class_token(model.cls_token, patches)
        if model.pos_embed is not None:
            tokens = tokens + model.pos_embed
        tokens = model.pos_drop(tokens)
        if model.rel_pos_bias is None:
            return tokens, ()
        return tokens, ({"shared_rel_pos_bias": model.rel_pos_bias()},) * len(model.blocks)

    def fit_checkpoint(
        self, state: dict[str, Tensor], model: Beit, adapt_layer_scale: bool = False, antialias: bool = True
    ) -> dict[str, Tensor]:
        """Use timm's filter."""
        return beit.checkpoint_filter_fn(state, model, antialias=antialias)
