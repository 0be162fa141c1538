"""What a skipped token becomes, by name: one file a bypass."""

from tosa_cli.model.bypasses.base import Bypass
from tosa_cli.model.bypasses.identity import Identity
from tosa_cli.model.bypasses.linear import Linear
from tosa_cli.model.bypasses.mean import Mean
from tosa_cli.model.bypasses.nearest import Nearest
from tosa_cli.model.bypasses.nearest_affine import NearestAffine
from tosa_cli.model.bypasses.nearest_linear import NearestLinear

BYPASSES: dict[str, type[Bypass]] = {
    "identity": Identity,
    "linear": Linear,
    "nearest": Nearest,
    "nearest+affine": NearestAffine,
    "nearest+linear": NearestLinear,
    "mean": Mean,
}

__all__ = ["BYPASSES", "Bypass", "Identity", "Linear", "Mean", "Nearest", "NearestAffine", "NearestLinear"]
