"""The ToSA model: a timm ViT whose block loop is ours (paper, section 2.3)."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from tosa_cli.config import TosaConfig
from tosa_cli.model.bypasses import BYPASSES
from tosa_cli.model.families import (
    Backbone,
    check_convertible,
    matching_projection,
)
from tosa_cli.model.keys import MatchingKeys
from tosa_cli.model.layer_loop import LayerLoop
from tosa_cli.model.selectors import SELECTORS
from tosa_cli.model.timm_interface import name_weights_as
from tosa_cli.provenance import Provenance

_BACKBONE = "backbone."
_ADDED = ("selectors.", "keys.", "bypasses.")


class TosaViT(LayerLoop):
    """A timm ViT in which chosen layers compute the selected tokens only, and the others bypass the layer.

    The number and the order of the tokens never change, so the model serves depth and segmentation as its source does.
    It speaks timm's language: `forward`, `forward_features`, `forward_intermediates`, `forward_head`, and a
    state dict under the backbone's own key names, with what was added under `selectors.<layer>`, `keys.<layer>` and
    `bypasses.<layer>`.

    Args:
        backbone: A timm ViT; it becomes part of the new model and is not changed.
        config: Where and how tokens are selected.

    Raises:
        UnsupportedModelError: If the backbone is of a type that cannot be converted, or a layer is.
        ConfigError: If the backbone does not have the layers asked for.
    """

    def __init__(self, backbone: Backbone, config: TosaConfig) -> None:
        super().__init__()
        check_convertible(backbone, config)
        self.backbone: Backbone = backbone
        self.config = config
        self.keep_rates = config.keep_rates
        self.choosing_layers = config.choosing_layers
        self.selectors = nn.ModuleDict()
        self.keys = nn.ModuleDict()
        self.bypasses = nn.ModuleDict()
        for layer in config.layers:
            self._add_parts(layer)
        weights = next(backbone.parameters())
        for added in (self.selectors, self.keys, self.bypasses):
            added.to(weights.device, weights.dtype)
        name_weights_as(self, _BACKBONE, _ADDED)
        # timm reads this from any model it wraps.
        self.feature_info = getattr(backbone, "feature_info", [])
        self.provenance = Provenance()

    def _add_parts(self, layer: int) -> None:
        """Add what a ToSA layer needs besides its block."""
        config, name = self.config, str(layer)
        self.bypasses[name] = BYPASSES[config.bypass](self.embed_dim)
        if self.choosing_layers[layer] != layer:
            return
        self.selectors[name] = SELECTORS[config.selector].for_layer(self.backbone, layer, config)
        if config.needs_keys:
            self.keys[name] = MatchingKeys(*matching_projection(self.blocks[layer - 1], self.embed_dim))

    # ------------------------------------------------------------------ forward

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, C, height, width): logits (B, num_classes), or pooled features without a head."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Turn images (B, C, height, width) into final normalised tokens (B, N, D), in their original order."""
        return self.backbone.norm(self.run_layers(*self.family.embed(self.backbone, images)).tokens)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens (B, N, D) and classify them, as the backbone does."""
        return self.backbone.forward_head(tokens, pre_logits=pre_logits)

    def forward_selection(self, images: Tensor) -> dict[int, Tensor]:
        """Which tokens each ToSA layer selects in images (B, C, height, width).

        Returns:
            Keep indices of each ToSA layer: (B, K), or (B, H, K) for per-head selection.
        """
        return self.run_layers(*self.family.embed(self.backbone, images)).keep_indices

    @property
    def settings(self) -> dict[str, Any]:
        """The config, as plain JSON values."""
        return self.config.to_dict()

    # ------------------------------------------------------------------ parameters

    def selector_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that `distill` trains and `finetune` freezes."""
        return self.selectors.parameters()

    def bypass_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the bypasses, which `distill` fits and `finetune` trains."""
        return self.bypasses.parameters()

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that `distill` freezes and `finetune` trains."""
        return self.backbone.parameters()

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers behind the last one asked for, with their selectors; indices count from 0 as in timm."""
        kept = self.backbone.prune_intermediate_layers(indices, prune_norm=prune_norm, prune_head=prune_head)
        for layer in [layer for layer in self.keep_rates if layer > len(self.blocks)]:
            del self.keep_rates[layer], self.choosing_layers[layer]
            for parts in (self.selectors, self.keys, self.bypasses):
                if str(layer) in parts:
                    del parts[str(layer)]
        return kept

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone."""
        return {_BACKBONE + name for name in self.backbone.no_weight_decay()}
