"""timm's plain ViTs, and DeiT's distilled ones."""

from typing import Any, ClassVar

from timm.layers import Attention
from timm.models import vision_transformer
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor

from tosa_cli.config import Selection
from tosa_cli.model.families.base import Blocks, OpaqueBlock
from tosa_cli.model.families.timm_common import DIFFERENTIAL, TimmBlock, TimmFamily, mean_of_heads
from tosa_cli.model.places import Extras


class PlainBlock(TimmBlock):
    """timm's `Block`, whose parts are known so well that each head can select tokens of its own."""

    selections = ("shared", "per-head")

    def why_ineligible(self, block: Block, selection: Selection) -> str | None:
        """Say also that attention is gated, which selection by head does not do."""
        reason = super().why_ineligible(block, selection)
        if reason is None and selection == "per-head" and block.attn.gate is not None:
            return "has gated attention, which per-head selection does not support: use --selection shared."
        return reason


class AttentionBesideMlp(TimmBlock):
    """`ParallelScalingBlock`: attention and MLP share one projection, and the block is its own attention."""

    def attentions(self, block: ParallelScalingBlock) -> list[Any]:
        """The block."""
        return [block]

    def attention_input(self, block: ParallelScalingBlock, tokens: Tensor) -> Tensor:
        """The tokens behind the block's one norm."""
        return block.in_norm(tokens)

    def mean_key_projection(self, block: ParallelScalingBlock) -> tuple[Tensor, Tensor]:
        """The keys, which follow the MLP's part and the queries in `in_proj`."""
        width = block.head_dim
        return mean_of_heads(block.in_proj, block.in_split[0] + block.num_heads * width, block.num_heads, width)


class ParallelAttentions(TimmBlock):
    """`ParallelThingsBlock`: attentions side by side, each with a norm of its own."""

    def attentions(self, block: ParallelThingsBlock) -> list[Any]:
        """The attention of each branch."""
        return [branch.attn for branch in block.attns]

    def attention_input(self, block: ParallelThingsBlock, tokens: Tensor) -> Tensor:
        """The tokens behind the norm of the first attention."""
        first: Any = block.attns[0]
        return first.norm(tokens)


class TimmVit(TimmFamily):
    """`VisionTransformer`, and DeiT's with a distillation token."""

    models = (VisionTransformer, VisionTransformerDistilled)
    blocks: ClassVar[Blocks] = {
        Block: PlainBlock(Attention),
        ResPostBlock: TimmBlock(Attention, norm_after=True),
        ParallelScalingBlock: AttentionBesideMlp(ParallelScalingBlock),
        ParallelThingsBlock: ParallelAttentions(Attention),
        DiffParallelScalingBlock: OpaqueBlock(DIFFERENTIAL),
    }
    modules = ("vision_transformer", "deit")
    short_names = ("{}_patch16_224", "vit_{}_patch14_dinov2", "{}_patch14_dinov2")

    def embed_patches(self, model: VisionTransformer, patches: Tensor) -> tuple[Tensor, tuple[Extras, ...]]:
        """Add position embeddings and prefix tokens."""
        return model.norm_pre(model.patch_drop(model._pos_embed(patches))), ()

    def num_register_tokens(self, model: VisionTransformer) -> int:
        """What the model says."""
        return model.num_reg_tokens

    def fit_checkpoint(
        self,
        state: dict[str, Tensor],
        model: VisionTransformer,
        adapt_layer_scale: bool = False,
        antialias: bool = True,
    ) -> dict[str, Tensor]:
        """Use timm's filter."""
        return vision_transformer.checkpoint_filter_fn(
            state, model, adapt_layer_scale=adapt_layer_scale, antialias=antialias
        )
