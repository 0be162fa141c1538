"""The ToSA model: a timm ViT whose block loop is ours (paper, section 2.3)."""

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from tosa_cli.config import TosaConfig
from tosa_cli.model.families import Backbone, check_convertible
from tosa_cli.model.layer_loop import LayerLoop
from tosa_cli.provenance import Provenance


class TosaViT(LayerLoop):
    """A timm ViT in which chosen layers compute the selected tokens only, and the others bypass the layer.

    The number and the order of the tokens never change, so the model serves depth and segmentation as its source does.
    It speaks timm's language: `forward`, `forward_features`, `forward_intermediates`, `forward_head`, and modules and
    parameters under the backbone's own names, with what was added under `selectors.<layer>`, `keys.<layer>` and
    `bypasses.<layer>`. Selectors are frozen: only `distill` trains them.

    Args:
        backbone: A timm ViT, whose modules and parameters become those of the new model; it is not changed.
        config: Where and how tokens are selected.

    Raises:
        UnsupportedModelError: If the backbone is of a type that cannot be converted, or a layer is.
        ConfigError: If the backbone does not have the layers asked for.
    """

    added: ClassVar[tuple[str, ...]] = ("selectors", "keys", "bypasses", "outputs")
    added_args: ClassVar[frozenset[str]] = frozenset({"base_architecture", "norm_eps", *TosaConfig.field_names()})

    def __init__(self, backbone: Backbone, config: TosaConfig) -> None:
        check_convertible(backbone, config)
        super().__init__(backbone)
        self.config = config
        self.keep_rates = config.keep_rates
        self.choosing_layers = config.choosing_layers
        self.outputs = nn.ModuleDict({str(layer): nn.Identity() for layer in range(1, len(self.blocks) + 1)})
        self.add_parts(self.backbone)
        self.provenance = Provenance()

    # ------------------------------------------------------------------ forward

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, C, height, width): logits (B, num_classes), or pooled features without a head."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Turn images (B, C, height, width) into final normalised tokens (B, N, D), in their original order."""
        return self.norm(self.run_layers(*self.embed(images)).tokens)

    def forward_selection(self, images: Tensor) -> dict[int, Tensor]:
        """Which tokens each ToSA layer selects in images (B, C, height, width).

        Returns:
            Keep indices of each ToSA layer: (B, K), or (B, H, K) for per-head selection.
        """
        return self.run_layers(*self.embed(images)).keep_indices

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

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the names of parameters by which timm groups them: what was added is of the layer that it is for.

        Args:
            coarse: As in timm, one group for all that is before the layers.
        """
        matcher: dict[str, Any] = super().group_matcher(coarse)  # type: ignore[misc]
        layers = matcher["blocks"] if isinstance(matcher["blocks"], list) else [(matcher["blocks"], None)]
        # timm counts layers from 0.
        added = [(rf"^(?:{'|'.join(self.added)})\.{layer}\.", (layer - 1,)) for layer in self.keep_rates]
        return {**matcher, "blocks": [*added, *layers]}

    def init_weights(self, **options: Any) -> None:
        """Draw all weights of the backbone anew, as it does itself; what was added is as it is after a conversion.

        Args:
            options: The backbone's own, such as `mode` and `needs_reset`.
        """
        super().init_weights(**options)  # type: ignore[misc]
        self.add_parts(self.backbone)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers behind the last one asked for, with their selectors; indices count from 0 as in timm."""
        kept: list[int] = super().prune_intermediate_layers(  # type: ignore[misc]
            indices, prune_norm=prune_norm, prune_head=prune_head
        )
        for layer in [layer for layer in self.keep_rates if layer > len(self.blocks)]:
            del self.keep_rates[layer], self.choosing_layers[layer]
            for parts in (self.selectors, self.keys, self.bypasses):
                if str(layer) in parts:
                    del parts[str(layer)]
        return kept
