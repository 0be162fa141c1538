"""timm's EVA and what it builds in the same way, as DINOv3: blocks with rotary position embeddings."""

from typing import ClassVar

from timm.layers import AttentionRope
from timm.models import eva
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor

from tosa_cli.model.families.base import Blocks
from tosa_cli.model.families.timm_common import TimmBlock, TimmFamily, mean_of_heads
from tosa_cli.model.places import Extras, gather_rope

ROPE = "rope"
"""What the blocks call the rotary table of the patches."""


class RotaryBlock(TimmBlock):
    """A block that rotates queries and keys of the patches by a table that it is given."""

    def gather_extras(self, block: EvaBlock | EvaBlockPostNorm, extras: Extras, keep_indices: Tensor) -> Extras:
        """Take the rows of the selected patches out of the table."""
        if ROPE not in extras:
            return extras
        prefix = block.attn.num_prefix_tokens
        return {**extras, ROPE: gather_rope(extras[ROPE], keep_indices[:, prefix:] - prefix)}

    def mean_key_projection(self, block: EvaBlock | EvaBlockPostNorm) -> tuple[Tensor, Tensor]:
        """The keys, which may have a projection of their own, with fewer heads."""
        if block.attn.qkv is not None:
            # The biases of queries and values are kept beside the projection; keys have none there.
            return super().mean_key_projection(block)
        keys, width = block.attn.k_proj, self.head_dim(block)
        return mean_of_heads(keys, 0, keys.out_features // width, width)


class TimmEva(TimmFamily):
    """`Eva`."""

    models = (Eva,)
    blocks: ClassVar[Blocks] = {
        EvaBlock: RotaryBlock(EvaAttention, AttentionRope),
        EvaBlockPostNorm: RotaryBlock(EvaAttention, AttentionRope, norm_after=True),
    }
    modules = ("eva",)

    def embed_patches(self, model: Eva, patches: Tensor) -> tuple[Tensor, tuple[Extras, ...]]:
        """Add position embeddings and prefix tokens; each block is given the rotary table, if there is one."""
        tokens, rope = model._pos_embed(patches)
        tokens = model.norm_pre(tokens)
        if rope is None:
            return tokens, ()
        # A mixed table differs from layer to layer.
        return tokens, tuple({ROPE: rope[i] if model.rope_mixed else rope} for i in range(len(model.blocks)))

    def num_register_tokens(self, model: Eva) -> int:
        """The length of what they begin as."""
        return 0 if model.reg_token is None else model.reg_token.shape[1]

    def fit_checkpoint(
        self, state: dict[str, Tensor], model: Eva, adapt_layer_scale: bool = False, antialias: bool = True
    ) -> dict[str, Tensor]:
        """Use timm's filter."""
        return eva.checkpoint_filter_fn(state, model, antialias=antialias)
