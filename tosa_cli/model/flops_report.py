"""What is told of the multiply-accumulates (MACs) of a model, layer by layer."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

GIGA = 1e9

LayerKind = Literal["standard", "feeding", "tosa"]


@dataclass(frozen=True)
class LayerFlops:
    """MACs of one layer for one image.

    Attributes:
        layer: Number of the layer, from 1.
        kind: `standard`, `feeding` or `tosa`.
        tokens: Number of tokens N that enter.
        kept: Number of tokens that are computed.
        dense_macs: MACs of the layer in the source model.
        macs: MACs of the layer, without selector and bypass.
        selector_macs: MACs of the selector of this ToSA layer, its query rows included.
        bypass_macs: MACs of the bypass of this ToSA layer.
    """

    layer: int
    kind: LayerKind
    tokens: int
    kept: int
    dense_macs: int
    macs: int
    selector_macs: int = 0
    bypass_macs: int = 0


@dataclass(frozen=True)
class FlopsReport:
    """MACs of a model for one image, in GMACs.

    Attributes:
        model: Name of the model.
        img_size: Image size (height, width) in pixels.
        gmacs: All MACs, selector and bypass included.
        dense_gmacs: MACs of the source model.
        reduction: Share of the dense MACs that is saved.
        selector_gmacs: MACs of all selectors.
        bypass_gmacs: MACs of all bypasses.
        norm_gmacs: What timm's figures add for the norms of the source model; not in the other numbers.
        params: Number of parameters, selectors included.
        layers: One entry a layer.
    """

    model: str
    img_size: tuple[int, int]
    gmacs: float
    dense_gmacs: float
    reduction: float
    selector_gmacs: float
    bypass_gmacs: float
    norm_gmacs: float
    params: int
    layers: list[LayerFlops]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)
