"""Converted models small enough to be exported in seconds."""

from typing import Any

from tests.model.tiny_models import make_tosa, make_vit, randomize_
from tosa_cli.methods import SELECTORS
from tosa_cli.model.tosa_vit import TosaViT


def tiny_tosa(source: str = "test_vit", layers: tuple[int, ...] = (2,), **settings: Any) -> TosaViT:
    """A few blocks on 32 pixels, the last of them a ToSA layer; selector and bypass as if trained and fitted."""
    args = {name: settings.pop(name) for name in ("num_classes", "in_chans") if name in settings}
    dense = make_vit(source, depth=layers[-1], img_size=32, patch_size=4, **{"num_classes": 10, **args})
    model = make_tosa(dense, layers=layers, **settings)
    randomize_(model.bypasses, seed=2)
    return model


def shortest_tosa(source: str = "test_vit", **settings: Any) -> TosaViT:
    """A ToSA layer alone, or behind the standard one whose maps it reads: half of what there is to trace."""
    layer = 2 if SELECTORS[settings.get("selector", "attention")].reads_maps else 1
    return tiny_tosa(source, **{"layers": (layer,), **settings})
