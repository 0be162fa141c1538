"""Intermediate features in one form."""

from typing import Any

from torch import Tensor


def flatten(features: Any) -> list[tuple[str, Tensor]]:
    """All tensors of a nested result, each with its place in it."""
    if isinstance(features, Tensor):
        return [("", features)]
    items = features.items() if isinstance(features, dict) else enumerate(features)
    return [(f"{type(features).__name__}/{key}{rest}", t) for key, value in items for rest, t in flatten(value)]
