"""A smaller input as a peer to measure against: what everyone has without any change to a model."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.errors import ConfigError
from tosa_cli.model.families import Backbone
from tosa_cli.model.flops import count_flops


class SmallerInput(nn.Module):
    """A dense timm ViT on smaller images, whose final patch tokens are resized to the grid of the larger ones.

    Args:
        backbone: The dense model; it is copied, as its positions are resampled.
        img_size: The smaller image size (height, width) in pixels.
    """

    def __init__(self, backbone: Backbone, img_size: tuple[int, int]) -> None:
        super().__init__()
        self.img_size = img_size
        self.grid: tuple[int, int] = backbone.patch_embed.grid_size
        self.model: Backbone = with_size(backbone, img_size)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, C, height, width): logits (B, num_classes), or pooled features without a head."""
        return self.model(shrink(images, self.img_size))

    def forward_features(self, images: Tensor) -> Tensor:
        """Turn images (B, C, height, width) into final normalised tokens (B, N, D) of the larger grid, in its order."""
        tokens = self.model.forward_features(shrink(images, self.img_size))
        prefix, grid = self.model.num_prefix_tokens, self.model.patch_embed.grid_size
        patches = tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)
        resized = F.interpolate(patches, size=self.grid, mode="bilinear", align_corners=False)
        return torch.cat([tokens[:, :prefix], resized.flatten(2).transpose(1, 2)], dim=1)

    @property
    def settings(self) -> dict[str, Any]:
        """The smaller image size."""
        return {"img_size": list(self.img_size)}


def shrink(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, C, height, width) in a smaller size (height, width), smoothed."""
    # PyTorch has no antialiased resize in half precision on the CPU.
    resized = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.to(images.dtype)


def with_size(backbone: Backbone, img_size: tuple[int, int]) -> Backbone:
    """A copy of a dense model for images of another size (height, width) in pixels."""
    resized = copy.deepcopy(backbone)
    resized.set_input_size(img_size=img_size)
    return resized


def solve_img_size(backbone: Backbone, target_reduction: float) -> tuple[tuple[int, int], float]:
    """Find the largest image of about the same shape with which a dense model saves a share of its MACs.

    Args:
        backbone: The dense model.
        target_reduction: Share of the MACs to save, as 0.25 for 25 %.

    Returns:
        Its size (height, width) in pixels, of whole patches, and the GMACs of one such image.

    Raises:
        ConfigError: If no image saves as much.
    """
    rows, columns = backbone.patch_embed.grid_size
    patch_height, patch_width = backbone.patch_embed.patch_size
    dense = count_flops(backbone).dense_gmacs
    for fewer in range(1, rows):
        size = ((rows - fewer) * patch_height, max(1, round((rows - fewer) * columns / rows)) * patch_width)
        gmacs = count_flops(with_size(backbone, size)).dense_gmacs
        if gmacs <= (1 - target_reduction) * dense:
            return size, gmacs
    raise ConfigError(f"No smaller image saves {target_reduction:.1%} of the MACs.")
