"""transformers' ViT blocks, by their names: it is not imported, as a model that has such a block has done so.

They come in one form, a norm before the attention and one before the MLP, under a few spellings. Which spelling a block
has is read from the block, so that a release of transformers that renames a part needs no change here.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tosa_cli.config import Selection
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.families.base import BlockKind, OpaqueBlock
from tosa_cli.model.families.timm_common import mean_of_heads
from tosa_cli.model.places import Extras, gather_rope

NORMS = ("layernorm_before", "layer_norm1", "norm1")
ATTENTIONS = ("attention", "self_attn")
KEYS = ("k_proj", "key")
HEADS = ("num_attention_heads", "num_heads")
MASK, ROPE = "attention_mask", "position_embeddings"

TAKES_BIAS = ("eager", "sdpa")
"""Implementations of attention in transformers that add a mask of numbers to the logits."""


class TransformersBlock(BlockKind):
    """A block that normalises before its attention, which has projections of its own for keys."""

    how_to_fuse = "Load the model with attn_implementation='sdpa'."

    def why_ineligible(self, block: Any, selection: Selection) -> str | None:
        """Say that a part is not where it is looked for, or that tokens of an image are not all computed alike."""
        if getattr(block, "num_experts", 1) > 1:
            return "has experts, one for each data set, which cannot be converted."
        if _first(block, NORMS) is None or _first(block, ATTENTIONS) is None:
            return f"is a {type(block).__name__} without a norm and an attention by the names that are known."
        if not isinstance(_first(_attention(block), KEYS), nn.Linear):
            return f"is a {type(block).__name__} whose attention has no projection of keys by a name that is known."
        return None

    def attention_input(self, block: Any, tokens: Tensor) -> Tensor:
        """The tokens behind the first norm."""
        return _first(block, NORMS)(tokens)

    def num_heads(self, block: Any) -> int:
        """What the attention says."""
        return int(_first(_attention(block), HEADS))

    def head_dim(self, block: Any) -> int:
        """The width of all keys, shared out among the heads."""
        return _first(_attention(block), KEYS).out_features // self.num_heads(block)

    def mean_key_projection(self, block: Any) -> tuple[Tensor, Tensor]:
        """The mean over the heads of the projection of keys."""
        return mean_of_heads(_first(_attention(block), KEYS), 0, self.num_heads(block), self.head_dim(block))

    def num_last_tokens(self, block: Any) -> int:
        """How many tokens come behind the patches: YOLOS has them, one for each object that it may detect."""
        return int(getattr(getattr(_attention(block), "config", None), "num_detection_tokens", 0))

    def num_plain_layers(self, block: Any) -> int | None:
        """How many layers of a run come before queries enter it, as in EoMT; None where none do."""
        config = getattr(_attention(block), "config", None)
        if getattr(config, "model_type", "") not in WITH_QUERIES:
            return None
        return int(config.num_hidden_layers - config.num_blocks)  # type: ignore[union-attr]

    def run(self, block: Any, tokens: Tensor, extras: Extras) -> Tensor:
        """Run a block; some return their tokens first of several."""
        output = block(tokens, **extras)
        return output[0] if isinstance(output, tuple) else output

    def run_selected(
        self, block: Any, selected: Tensor, keep_indices: Tensor, extras: Extras, size_bias: Tensor | None = None
    ) -> Tensor:
        """Give the bias to the block as its mask, if it takes one; else on the way into PyTorch's fused attention."""
        takes_mask = MASK in parameters(type(block))
        if size_bias is not None:
            self._check_attention(block, takes_mask)
        if takes_mask:
            if extras.get(MASK) is not None and not _lets_all_through(extras[MASK]):
                raise UnsupportedModelError(
                    "The images were given with an attention mask, as images of different shapes are: a ToSA layer "
                    "selects among all tokens of an image. Give images of one shape."
                )
            given = {**self.gather_extras(block, extras, keep_indices), MASK: size_bias}
            return self.run(block, selected, given)  # type: ignore[arg-type]
        run = super().run_selected
        if size_bias is None:
            return run(block, selected, keep_indices, extras)
        return self.run_within(block, lambda tokens: run(block, tokens, keep_indices, extras, size_bias), selected)

    def run_within(self, block: Any, run: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """Let `run` be computed again, and not the block alone."""
        if not (getattr(block, "gradient_checkpointing", False) and block.training):
            return run(tokens)

        def run_without(tokens: Tensor) -> Tensor:
            block.gradient_checkpointing = False
            try:
                return run(tokens)
            finally:
                block.gradient_checkpointing = True

        computed: Tensor = block._gradient_checkpointing_func(run_without, tokens)
        return computed

    def gather_extras(self, block: Any, extras: Extras, keep_indices: Tensor) -> Extras:
        """Take the rows of the selected patches out of the rotary table, if the block is given one."""
        rope: Any = extras.get(ROPE)
        if rope is None:
            return extras
        # The table is of the patches alone, which come behind class token and registers.
        prefix = 1 + int(_attention(block).config.num_register_tokens)
        gathered: Any = tuple(gather_rope(table, keep_indices[:, prefix:] - prefix) for table in rope)
        return {**extras, ROPE: gathered}

    def _check_attention(self, block: Any, takes_mask: bool) -> None:
        used = getattr(getattr(_attention(block), "config", None), "_attn_implementation", None) or "sdpa"
        if used not in TAKES_BIAS or (used != "sdpa" and not takes_mask):
            raise UnsupportedModelError(
                f"The attention {used!r} takes no bias for the sizes of groups of tokens in a {type(block).__name__}: "
                f"load the model with attn_implementation='sdpa'."
            )


PLAIN = {
    "chinese_clip": "ChineseCLIPVisionLayer",
    "clip": "CLIPEncoderLayer",
    "clipseg": "CLIPSegEncoderLayer",
    "deit": "DeiTLayer",
    "dinov2": "Dinov2Layer",
    "dinov2_with_registers": "Dinov2WithRegistersLayer",
    "dinov3_vit": "DINOv3ViTLayer",
    "dpt": "DPTViTLayer",
    "eomt": "EomtLayer",
    "eomt_dinov3": "EomtDinov3Layer",
    "ijepa": "IJepaLayer",
    "internvl": "InternVLVisionLayer",
    "metaclip_2": "MetaClip2EncoderLayer",
    "owlv2": "Owlv2EncoderLayer",
    "owlvit": "OwlViTEncoderLayer",
    "pixio": "PixioLayer",
    "siglip": "SiglipEncoderLayer",
    "vit": "ViTLayer",
    "vit_msn": "ViTMSNLayer",
    "vitpose_backbone": "VitPoseBackboneLayer",
    "yolos": "YolosLayer",
}
"""The block of each of transformers' model types that can select tokens; text towers have the same blocks."""

WITH_QUERIES = ("eomt", "eomt_dinov3")
"""Model types in which queries for segments enter before the last layers, with masks of their own."""

REFUSED = {
    ("beit", "BeitLayer"): "has a relative position bias, which is not read from transformers' models.",
    ("data2vec", "Data2VecVisionLayer"): "has a relative position bias, which is not read from transformers' models.",
    ("lw_detr", "LwDetrViTLayer"): "attends in windows, to which the tokens that it is given belong.",
    ("pixtral", "PixtralAttentionLayer"): "takes images of different shapes, one behind the other, told apart by a "
    "mask.",
    ("rf_detr", "RfDetrDinov2Layer"): "attends in windows, to which the tokens that it is given belong.",
    ("sam", "SamVisionLayer"): "attends in windows, or by relative positions on a map of patches.",
    ("sam3", "Sam3ViTLayer"): "attends in windows, or on a map of patches.",
    ("sam_hq", "SamHQVisionLayer"): "attends in windows, or by relative positions on a map of patches.",
    ("siglip2", "Siglip2EncoderLayer"): "takes images of different shapes (NaFlex), filled up to one length and told "
    "apart by a mask. The SigLIP 2 models of one shape are of the type siglip, and can be converted.",
    ("swin", "SwinLayer"): "attends in windows.",
    ("swinv2", "Swinv2Layer"): "attends in windows.",
    ("vit_mae", "ViTMAELayer"): "is given a random part of the patches, so that there is no grid of them.",
    ("vitdet", "VitDetLayer"): "attends in windows, or by relative positions, and ends in convolutions over the map.",
}
"""Blocks of vision models that cannot, and why, in words that follow "Layer 3"."""

_BLOCK = TransformersBlock()


def transformers_kind(block: type[nn.Module]) -> BlockKind | None:
    """What is known of a type of block of transformers; None if it is no such type, or nothing is."""
    places = block.__module__.split(".")  # transformers.models.<type>.modeling_<type>
    if len(places) < 3 or places[0] != "transformers":
        return None
    folder = places[2]
    if PLAIN.get(folder) == block.__name__:
        return _BLOCK
    reason = REFUSED.get((folder, block.__name__))
    return OpaqueBlock(reason) if reason else None


def parameters(block: Any) -> tuple[str, ...]:
    """Names of what blocks of a type are called with, the tokens first."""
    return _parameters(block)


@functools.cache
def _parameters(block: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(block.forward).parameters)[1:]


def _lets_all_through(mask: Tensor) -> bool:
    """Whether a mask of attention, true and false or added to the logits, leaves nothing out.

    While a graph is traced there is none to look at, and transformers makes one for all images: that of one shape.
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return True
    return bool(mask.all() if mask.dtype == torch.bool else (mask == 0).all())


def _attention(block: Any) -> Any:
    """The part of a block that attends; some have it one step further down."""
    attention = _first(block, ATTENTIONS)
    return attention if _first(attention, KEYS) is not None else getattr(attention, "attention", attention)


def _first(part: Any, names: tuple[str, ...]) -> Any:
    return next((getattr(part, name) for name in names if getattr(part, name, None) is not None), None)
