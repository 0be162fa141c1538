"""How far tokens are from the dense model's: the loss of finetuning without labels, of every kind of model."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT_EPS = 1e-6
"""Added to a distance before its root is taken: at 0 the root has no gradient."""


def feature_loss(tokens: Sequence[Tensor], expected: Sequence[Tensor], num_prefix: int, num_class: int) -> Tensor:
    """Loss of the tokens of some layers.

    The final tokens count as much as the mean of the layers before, and class tokens as much as patch tokens. It is the
    mean over images of the root of their distance: of the distance itself, the gradients of the few images that are far
    off would drown those of all others.

    Args:
        tokens: Tokens (B, N, D) behind each layer that is matched, the final ones last.
        expected: The tokens they should be.
        num_prefix: Number of prefix tokens.
        num_class: How many of these are matched; the others, as registers, are read by nobody behind the last layer.
    """
    distances = [_distance(*pair, num_prefix, num_class) for pair in zip(tokens, expected, strict=True)]
    *others, final = distances
    summed = final + torch.stack(others).mean(dim=0) if others else final
    return (summed + ROOT_EPS).sqrt().mean()


def _distance(tokens: Tensor, expected: Tensor, num_prefix: int, num_class: int) -> Tensor:
    """Distance (B,) of tokens (B, N, D)."""
    patches = token_distance(tokens[:, num_prefix:], expected[:, num_prefix:])
    return (patches + token_distance(tokens[:, :num_class], expected[:, :num_class])) / 2 if num_class else patches


def token_distance(tokens: Tensor, expected: Tensor) -> Tensor:
    """How far tokens are from those expected.

    One minus the cosine is what is measured in the end, but a few large channels of a ViT rule it; smooth L1 between
    the layer-normalised tokens grows no more than linearly with those, so that the small channels count too.

    Args:
        tokens: Tokens (B, N, D).
        expected: The tokens they should be, (B, N, D).

    Returns:
        The mean over the tokens of each image, (B,) in float32.
    """
    tokens, expected = tokens.float(), expected.float()
    cosine = F.cosine_similarity(tokens, expected, dim=-1)
    width = tokens.shape[-1:]
    tokens, expected = F.layer_norm(tokens, width), F.layer_norm(expected, width)
    return 1 - cosine.mean(dim=1) + F.smooth_l1_loss(tokens, expected, reduction="none").mean(dim=(1, 2))
