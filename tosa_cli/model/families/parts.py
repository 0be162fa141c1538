"""What is read of any model and any block, by the family or the kind that it is of."""

import torch
from torch import Tensor, nn

from tosa_cli.model.families.backbone import Backbone
from tosa_cli.model.families.registry import family_of, kind_of
from tosa_cli.model.places import Places


def embed(model: Backbone, images: Tensor) -> Tensor:
    """Turn images (B, C, height, width) into the tokens (B, N, D) that enter layer 1."""
    return embed_with_places(model, images)[0]


def embed_with_places(model: Backbone, images: Tensor) -> tuple[Tensor, Places]:
    """Turn images (B, C, height, width) into the tokens (B, N, D) that enter layer 1, and say where they stand."""
    return family_of(model).embed(model, images)


def has_class_token(model: Backbone) -> bool:
    """Whether the first token of a model is a class token."""
    return family_of(model).has_class_token(model)


def num_attentions(block: nn.Module) -> int:
    """How many attentions a block has side by side."""
    return kind_of(block).num_attentions(block)


def num_heads(block: nn.Module) -> int:
    """Number of attention heads of a block, those of parallel attentions together."""
    return kind_of(block).num_heads(block)


def head_dim(block: nn.Module) -> int:
    """Width of a head of a block."""
    return kind_of(block).head_dim(block)


def attention_input(block: nn.Module, tokens: Tensor) -> Tensor:
    """What the attention of a block reads of tokens (B, N, D): (B, N, D). Of parallel attentions it is the first's."""
    return kind_of(block).attention_input(block, tokens)


def mean_key_projection(block: nn.Module) -> tuple[Tensor, Tensor]:
    """The projection to the mean over the heads of a block's attention keys, before any norm or rotation of them.

    Returns:
        Weight (head_dim, D) and bias (head_dim), detached.
    """
    return kind_of(block).mean_key_projection(block)


def key_dim(block: nn.Module, embed_dim: int) -> int:
    """Width of the keys by which tokens of a block are compared: a head's, or less in a narrow model."""
    return min(head_dim(block), max(1, embed_dim // 8))


def matching_projection(block: nn.Module, embed_dim: int) -> tuple[Tensor, Tensor]:
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
