"""What the rest of the package knows of timm's models: which are supported, and how their parts are called.

This is the one list of supported model and block types. timm's modules are called as they are, never copied.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, DiffAttention, to_2tuple
from timm.models import beit, eva, vision_transformer, vision_transformer_relpos
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import (
    RelPosAttention,
    RelPosBlock,
    ResPostRelPosBlock,
    VisionTransformerRelPos,
)
from torch import Tensor, nn

from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.model.places import ROPE, Places
from tosa_cli.model.refusals import DIFFERENTIAL, NOT_FUSED, reason_against

Backbone = Any
"""A timm ViT. timm's attributes are set in ways that type checkers cannot follow."""

SUPPORTED_MODELS: tuple[type[nn.Module], ...] = (
    VisionTransformer,
    VisionTransformerDistilled,
    Eva,
    Beit,
    VisionTransformerRelPos,
)

SUPPORTED_BLOCKS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    Block: (Attention,),
    ResPostBlock: (Attention,),
    ParallelScalingBlock: (),
    ParallelThingsBlock: (Attention,),
    EvaBlock: (EvaAttention, AttentionRope),
    EvaBlockPostNorm: (EvaAttention, AttentionRope),
    beit.Block: (beit.Attention,),
    RelPosBlock: (RelPosAttention,),
    ResPostRelPosBlock: (RelPosAttention,),
}
"""Blocks, and what attention may be in each; a `ParallelScalingBlock` is its own."""

_BIASED_BLOCKS = (beit.Block, RelPosBlock, ResPostRelPosBlock)
_POST_NORM_BLOCKS = (ResPostBlock, EvaBlockPostNorm, ResPostRelPosBlock)


def check_supported(model: Backbone, selection: str = "shared") -> None:
    """Check that a model can be converted. The types must match exactly: a subclass may compute something else.

    Args:
        model: A timm model.
        selection: `shared` or `per-head`; the latter needs blocks of type `Block`.

    Raises:
        UnsupportedModelError: Naming the type that is not supported, and the reason.
    """
    reason = why_unsupported(model, selection)
    if reason is not None:
        hint = "" if type(model) in SUPPORTED_MODELS else " Type `tosa list` to see what can be."
        raise UnsupportedModelError(reason + hint)


def is_supported_kind(kind: object) -> bool:
    """Whether something is one of the model types that can be converted."""
    return any(kind is supported for supported in SUPPORTED_MODELS)


def is_supported(model: Backbone, selection: str) -> bool:
    """Whether a model can be converted with this selection."""
    return why_unsupported(model, selection) is None


def why_unsupported(model: Backbone, selection: str = "shared") -> str | None:
    """One sentence that says why a model cannot be converted with this selection; None if it can be."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or "The model"
    kind = type(model)
    if kind not in SUPPORTED_MODELS:
        own = "it is a subclass, which may compute something else" if isinstance(model, SUPPORTED_MODELS) else ""
        return f"{name} is a {kind.__name__}, which cannot be converted: {own or reason_against(kind.__module__)}."
    for layer, block in enumerate(model.blocks, start=1):
        where = f"Layer {layer} of {name}"
        attentions = {type(attention) for attention in _attentions(block)}
        if type(block) is DiffParallelScalingBlock or DiffAttention in attentions:
            return f"{where} has differential attention, which cannot be converted: {DIFFERENTIAL}."
        supported = SUPPORTED_BLOCKS if selection == "shared" else (Block,)
        if type(block) not in supported:
            return (
                f"{where} is a {type(block).__name__}, which cannot be converted with {selection} selection: "
                f"supported are {_names(supported)}."
            )
        expected = SUPPORTED_BLOCKS[type(block)]
        if expected and not attentions <= set(expected):
            return (
                f"{where} has attention of type {_names(attentions)}, which cannot be converted: supported is "
                f"{_names(expected)}."
            )
        if has_bias(block) and not block.attn.fused_attn:
            return f"{where} cannot be converted: {NOT_FUSED}."
        if selection == "per-head" and block.attn.gate is not None:
            return f"{where} has gated attention, which per-head selection does not support: use --selection shared."
    return None


# ---------------------------------------------------------------------- what surrounds the blocks


def check_img_size(model: Backbone, img_size: int | tuple[int, int]) -> None:
    """Check that an image size makes whole patches, where the model does not pad.

    Args:
        model: A supported model.
        img_size: Image size in pixels, one number or (height, width).

    Raises:
        ConfigError: If it does not; it names the nearest sizes that do.
    """
    size, patch = to_2tuple(img_size), model.patch_embed.feat_ratio(as_scalar=False)
    sides = list(zip(size, patch, strict=True))
    if model.patch_embed.dynamic_img_pad or not any(side % part for side, part in sides):
        return
    below = "x".join(str(max(1, side // part) * part) for side, part in sides)
    above = "x".join(str(-(-side // part) * part) for side, part in sides)
    raise ConfigError(
        f"An image of {size[0]}x{size[1]} pixels is no whole number of patches of {patch[0]}x{patch[1]}: use {below} "
        f"or {above}."
    )


def embed(model: Backbone, images: Tensor) -> Tensor:
    """Turn images (B, C, height, width) into the tokens (B, N, D) that enter layer 1."""
    return embed_with_places(model, images)[0]


def embed_with_places(model: Backbone, images: Tensor) -> tuple[Tensor, Places]:
    """Turn images (B, C, height, width) into the tokens (B, N, D) that enter layer 1, and say where they stand."""
    rows, columns = model.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
    tokens, extras = _EMBED[type(model)](model, model.patch_embed(images))
    num_patches = tokens.shape[1] - model.num_prefix_tokens
    # Where training drops patches (timm's patch_drop_rate), those that are left are no grid any more.
    grid = (rows, columns) if num_patches == rows * columns else (1, num_patches)
    return tokens, Places(grid, extras)


Extras = tuple[dict[str, Tensor], ...]


def _embed_plain(model: Backbone, patches: Tensor) -> tuple[Tensor, Extras]:
    return model.norm_pre(model.patch_drop(model._pos_embed(patches))), ()


def _embed_eva(model: Backbone, patches: Tensor) -> tuple[Tensor, Extras]:
    tokens, rope = model._pos_embed(patches)
    tokens = model.norm_pre(tokens)
    if rope is None:
        return tokens, ()
    # A mixed table differs from layer to layer.
    return tokens, tuple({ROPE: rope[i] if model.rope_mixed else rope} for i in range(len(model.blocks)))


def _embed_beit(model: Backbone, patches: Tensor) -> tuple[Tensor, Extras]:
    tokens = torch.cat([model.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
    if model.pos_embed is not None:
        tokens = tokens + model.pos_embed
    tokens = model.pos_drop(tokens)
    if model.rel_pos_bias is None:
        return tokens, ()
    return tokens, ({"shared_rel_pos_bias": model.rel_pos_bias()},) * len(model.blocks)


def _embed_relpos(model: Backbone, patches: Tensor) -> tuple[Tensor, Extras]:
    tokens = patches
    if model.cls_token is not None:
        tokens = torch.cat([model.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
    if model.shared_rel_pos is None:
        return tokens, ()
    return tokens, ({"shared_rel_pos": model.shared_rel_pos.get_bias()},) * len(model.blocks)


_EMBED: dict[type[nn.Module], Callable[[Backbone, Tensor], tuple[Tensor, Extras]]] = {
    VisionTransformer: _embed_plain,
    VisionTransformerDistilled: _embed_plain,
    Eva: _embed_eva,
    Beit: _embed_beit,
    VisionTransformerRelPos: _embed_relpos,
}


def has_class_token(model: Backbone) -> bool:
    """Whether the first token of a supported model is a class token."""
    return model.cls_token is not None


def fit_checkpoint(
    state: dict[str, Tensor], model: Backbone, adapt_layer_scale: bool = False, antialias: bool = True
) -> dict[str, Tensor]:
    """Bring a foreign state dict into a supported model's names and sizes, with timm's own code for its family.

    Args:
        state: Weights.
        model: The model they are for.
        adapt_layer_scale: Rename LayerScale's weights of DeiT III checkpoints.
        antialias: Whether a position embedding that is made smaller is smoothed, which timm does.
    """
    if isinstance(model, Eva):
        return eva.checkpoint_filter_fn(state, model, antialias=antialias)
    if isinstance(model, Beit):
        return beit.checkpoint_filter_fn(state, model, antialias=antialias)
    if isinstance(model, VisionTransformerRelPos):
        return vision_transformer_relpos.checkpoint_filter_fn(state, model)
    return vision_transformer.checkpoint_filter_fn(
        state, model, adapt_layer_scale=adapt_layer_scale, antialias=antialias
    )


# ---------------------------------------------------------------------- parts of a block


def has_bias(block: nn.Module) -> bool:
    """Whether a block takes its positions as a bias of its logits, and no mask."""
    return type(block) in _BIASED_BLOCKS


def num_attentions(block: Backbone) -> int:
    """How many attentions a block has side by side."""
    return len(_attentions(block))


def num_heads(block: Backbone) -> int:
    """Number of attention heads of a supported block, those of parallel attentions together."""
    return sum(attention.num_heads for attention in _attentions(block))


def head_dim(block: Backbone) -> int:
    """Width of a head of a supported block."""
    attention = _attentions(block)[0]
    # BEiT's attention does not say.
    return getattr(attention, "head_dim", None) or attention.proj.in_features // attention.num_heads


def attention_input(block: Backbone, tokens: Tensor) -> Tensor:
    """What the attention of a supported block reads of tokens (B, N, D): the tokens after the block's first norm.

    A block that normalises after its attention reads the tokens themselves. Of parallel attentions it is the first's.
    """
    if isinstance(block, _POST_NORM_BLOCKS):
        return tokens
    if isinstance(block, ParallelScalingBlock):
        return block.in_norm(tokens)
    norm = block.attns[0].norm if hasattr(block, "attns") else block.norm1
    return norm(tokens)


def mean_key_projection(block: Backbone) -> tuple[Tensor, Tensor]:
    """The projection to the mean over the heads of a block's attention keys, before any rotation.

    Returns:
        Weight (head_dim, D) and bias (head_dim), detached.
    """
    attention, width = _attentions(block)[0], head_dim(block)
    linear, start, heads = getattr(attention, "qkv", None), attention.num_heads * width, attention.num_heads
    if isinstance(block, ParallelScalingBlock):
        linear, start = block.in_proj, block.in_split[0] + start
    elif linear is None:
        linear, start, heads = attention.k_proj, 0, attention.k_proj.out_features // width
    keys = slice(start, start + heads * width)
    weight = linear.weight[keys].unflatten(0, (heads, width)).mean(0).detach().clone()
    # EVA and BEiT keep the biases of queries and values beside their projection; keys have none there.
    if linear.bias is None:
        return weight, weight.new_zeros(width)
    return weight, linear.bias[keys].unflatten(0, (heads, width)).mean(0).detach().clone()


def key_dim(block: Backbone, embed_dim: int) -> int:
    """Width of the keys by which tokens of a block are compared: a head's, or less in a narrow model."""
    return min(head_dim(block), max(1, embed_dim // 8))


def matching_projection(block: Backbone, embed_dim: int) -> tuple[Tensor, Tensor]:
    """The projection to the keys by which tokens of a block are compared.

    It is `mean_key_projection`, cut down to the `key_dim` directions in which that stretches tokens most.

    Returns:
        Weight (key_dim, D) and bias (key_dim), detached.
    """
    weight, bias = mean_key_projection(block)
    width = key_dim(block, embed_dim)
    if weight.is_meta or width == len(weight):
        return weight[:width], bias[:width]
    directions = torch.linalg.svd(weight.float(), full_matrices=False).U[:, :width].T.to(weight.dtype)
    return directions @ weight, directions @ bias


def _attentions(block: Backbone) -> list[Any]:
    """The attentions of a block, side by side; a `ParallelScalingBlock` is its own."""
    if isinstance(block, ParallelThingsBlock):
        return [parallel.attn for parallel in block.attns]
    return [getattr(block, "attn", block)]


def _names(types: Any) -> str:
    return ", ".join(kind.__name__ for kind in types)
