"""What is used of a backbone, by timm's names. A model of another library is given these names by its family's file."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn


class PatchEmbed(Protocol):
    """The part of a backbone that turns an image into patches; sizes are (height, width) in pixels or patches."""

    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    grid_size: tuple[int, int]
    num_patches: int

    def dynamic_feat_size(self, img_size: tuple[int, ...], /) -> tuple[int, int]:
        """Patches (rows, columns) of an image of a size in pixels."""


class Backbone(Protocol):
    """A model whose blocks all work on one grid of tokens; it is an `nn.Module` besides.

    Attributes:
        blocks: Its layers, in their order.
        norm: What normalises the tokens after the last layer.
        patch_embed: What turns an image into patches.
        embed_dim: Width D of the tokens.
        num_prefix_tokens: Number of class, distillation and register tokens, which come first, in this order.
        in_chans: Number of image channels.
        num_features: Width of what `forward_features` returns.
        head_hidden_size: Width of the pooled features before the classifier.
        num_classes: Number of classes of the head; 0 without a head.
        global_pool: How the tokens are pooled.
        grad_checkpointing: Whether layers are computed again in the backward pass.
        pretrained_cfg: What timm knows of its weights: architecture, image size, mean, standard deviation.
    """

    blocks: nn.Sequential
    norm: nn.Module
    patch_embed: PatchEmbed
    embed_dim: int
    num_prefix_tokens: int
    in_chans: int
    num_features: int
    head_hidden_size: int
    num_classes: int
    global_pool: str
    grad_checkpointing: bool
    pretrained_cfg: dict[str, Any]

    def __call__(self, images: Tensor, /) -> Tensor:
        """Classify images (B, C, height, width): logits (B, num_classes)."""

    def forward_features(self, images: Tensor, /) -> Tensor:
        """Turn images (B, C, height, width) into final normalised tokens (B, N, D)."""

    def forward_head(self, tokens: Tensor, /, pre_logits: bool = False) -> Tensor:
        """Pool tokens (B, N, D) and classify them."""

    def get_classifier(self) -> Any:
        """The classifier head, or heads."""

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute layers again in the backward pass, or not."""

    def set_input_size(
        self, img_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Change the image size (height, width) in pixels."""

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers behind the last one asked for."""

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of any module."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As of any module."""

    def modules(self) -> Iterator[nn.Module]:
        """As of any module."""

    def state_dict(self) -> dict[str, Tensor]:
        """As of any module."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """As of any module."""

    def to(self, target: torch.device | torch.dtype | str, /) -> Self:
        """As of any module."""

    def eval(self) -> Self:
        """As of any module."""
