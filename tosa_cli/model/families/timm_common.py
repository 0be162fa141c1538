"""What timm's families have in common: patch embedding, class token, and blocks around timm's attentions."""

from abc import abstractmethod
from typing import Any

import torch
from timm.layers import DiffAttention, to_2tuple
from torch import Tensor, nn
from torch.fx import Proxy

from tosa_cli.config import Selection
from tosa_cli.errors import ConfigError
from tosa_cli.model.families.base import BlockKind, Family, names_of
from tosa_cli.model.graph_nodes import one_node, timms_nodes
from tosa_cli.model.places import Extras, Places
from tosa_cli.model.selection import plain_shape

DIFFERENTIAL = (
    "has differential attention, which cannot be converted: it takes one map of attention off another, so its logits "
    "do not tell what a token receives."
)
_NOT_FUSED = (
    "its position bias can be fitted to the selected tokens only in PyTorch's fused attention, which is off: unset "
    "TIMM_FUSED_ATTN"
)


class TimmFamily(Family):
    """A family of timm's, whose models turn images into patches by their `patch_embed`."""

    def embed(self, model: Any, images: Tensor) -> tuple[Tensor, Places]:
        """Embed the patches, and find their grid."""
        if isinstance(images, Proxy):
            with timms_nodes(self.models):
                tokens, extras = self.embed_patches(model, model.patch_embed(images))
        else:
            tokens, extras = self.embed_patches(model, model.patch_embed(images))
        return tokens, Places(grid_of(images, tokens, model.patch_embed, model.num_prefix_tokens), extras)

    @abstractmethod
    def embed_patches(self, model: Any, patches: Tensor) -> tuple[Tensor, tuple[Extras, ...]]:
        """Turn what `patch_embed` returns into tokens (B, N, D), with what the block of each layer is given beside."""

    def has_class_token(self, model: Any) -> bool:
        """Whether the model has a class token: timm puts it first."""
        return model.cls_token is not None

    def check_img_size(self, model: Any, img_size: int | tuple[int, int]) -> None:
        """Check that an image size makes whole patches, where the model does not pad."""
        size, patch = to_2tuple(img_size), model.patch_embed.feat_ratio(as_scalar=False)
        sides = list(zip(size, patch, strict=True))
        if model.patch_embed.dynamic_img_pad or not any(side % part for side, part in sides):
            return
        below = "x".join(str(max(1, side // part) * part) for side, part in sides)
        above = "x".join(str(-(-side // part) * part) for side, part in sides)
        raise ConfigError(
            f"An image of {size[0]}x{size[1]} pixels is no whole number of patches of {patch[0]}x{patch[1]}: use "
            f"{below} or {above}."
        )


@one_node
def grid_of(images: Tensor, tokens: Tensor, patch_embed: Any, num_prefix_tokens: int) -> tuple[int, int]:
    """Patches (rows, columns) of images (B, C, height, width) that became tokens (B, N, D).

    Where training drops patches (timm's `patch_drop_rate`), those that are left are no grid any more, but one row.
    """
    rows, columns = patch_embed.dynamic_feat_size(plain_shape(images)[-2:])
    num_patches = plain_shape(tokens)[1] - num_prefix_tokens
    return (rows, columns) if num_patches == rows * columns else (1, num_patches)


class TimmBlock(BlockKind):
    """A block with one attention, `attn`, that reads the tokens behind the block's first norm, `norm1`.

    Args:
        attentions: Types that the attention may have.
        norm_after: Whether the block normalises after its attention, which reads the tokens themselves.
    """

    mask_name: str | None = "attn_mask"

    def __init__(self, *attentions: type[nn.Module], norm_after: bool = False) -> None:
        self.supported = attentions
        self.norm_after = norm_after

    def attentions(self, block: Any) -> list[Any]:
        """The attentions of a block, side by side."""
        return [block.attn]

    def why_ineligible(self, block: Any, selection: Selection) -> str | None:
        """Say that an attention is of a type that is not known."""
        found = {type(attention): None for attention in self.attentions(block)}
        if DiffAttention in found:
            return DIFFERENTIAL
        if not set(found) <= set(self.supported):
            return (
                f"has attention of type {names_of(found)}, which cannot be converted: supported is "
                f"{names_of(self.supported)}."
            )
        return None

    def attention_input(self, block: Any, tokens: Tensor) -> Tensor:
        """The tokens behind the first norm, or the tokens themselves."""
        return tokens if self.norm_after else block.norm1(tokens)

    def num_attentions(self, block: Any) -> int:
        """The number of `attentions`."""
        return len(self.attentions(block))

    def num_heads(self, block: Any) -> int:
        """The heads of all attentions."""
        return sum(attention.num_heads for attention in self.attentions(block))

    def head_dim(self, block: Any) -> int:
        """What the first attention says."""
        return self.attentions(block)[0].head_dim

    def mean_key_projection(self, block: Any) -> tuple[Tensor, Tensor]:
        """The keys of the first attention: the second third of its `qkv`."""
        attention, width = self.attentions(block)[0], self.head_dim(block)
        return mean_of_heads(attention.qkv, attention.num_heads * width, attention.num_heads, width)


class TimmBiasBlock(TimmBlock):
    """A block that takes its positions as a bias of its logits, made inside for all tokens, and takes no mask."""

    mask_name = None

    def why_ineligible(self, block: Any, selection: Selection) -> str | None:
        """Say also that the bias cannot be fitted to selected tokens."""
        reason = super().why_ineligible(block, selection)
        if reason is None and not block.attn.fused_attn:
            return f"cannot be converted: {_NOT_FUSED}."
        return reason


def mean_of_heads(linear: nn.Linear, start: int, heads: int, width: int) -> tuple[Tensor, Tensor]:
    """The mean over so many heads, each `width` wide, of a projection's outputs from one on.

    Returns:
        Weight (width, D) and bias (width), detached; the bias is 0 where the projection has none.
    """
    rows = slice(start, start + heads * width)
    weight = linear.weight[rows].unflatten(0, (heads, width)).mean(0).detach().clone()
    if linear.bias is None:
        return weight, weight.new_zeros(width)
    return weight, linear.bias[rows].unflatten(0, (heads, width)).mean(0).detach().clone()


def after_class_token(class_token: Tensor | None, patches: Tensor) -> Tensor:
    """Put a class token (1, 1, D), if there is one, before patches (B, n, D): tokens (B, N, D)."""
    if class_token is None:
        return patches
    return torch.cat([class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
