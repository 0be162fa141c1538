"""Models with any bypass, and what its formula says."""

from typing import Any

import torch
from torch import nn

from tosa_cli.model.tosa_vit import TosaViT

from .tiny_models import make_tosa, randomize_

SELECTORS = ["attention", "similarity", "probe", "previous", "random"]


BYPASSES = ["identity", "linear", "nearest", "nearest+affine", "nearest+linear"]


def make_fitted(source: str | nn.Module = "test_vit", **settings: Any) -> TosaViT:
    """A ToSA model with bypasses as if fitted, small enough that the stream does not run away."""
    model = make_tosa(source, **settings)
    randomize_(model.bypasses, seed=3)
    with torch.no_grad():
        for parameter in model.bypass_parameters():
            parameter *= 0.3
    return model
