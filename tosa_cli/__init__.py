"""Turns pretrained Vision Transformers into ToSA models.

    import tosa_cli

    model = tosa_cli.convert("deit_tiny", tosa_cli.TosaConfig(layers=(2, 4, 6, 8, 10)))
    tosa_cli.save(model, "deit_tiny-tosa")
    model = tosa_cli.load("deit_tiny-tosa")

Importing it also lets timm load converted models: `timm.create_model("local-dir:deit_tiny-tosa", pretrained=True)`.
"""

from typing import TYPE_CHECKING, Any

from tosa_cli._register import register_with_timm
from tosa_cli.config import TosaConfig
from tosa_cli.errors import TosaError

if TYPE_CHECKING:
    from tosa_cli.api import convert, load, save
    from tosa_cli.model.predictor import Predictor
    from tosa_cli.model.tosa_vit import TosaViT

__version__ = "0.1.0"

__all__ = ["Predictor", "TosaConfig", "TosaError", "TosaViT", "convert", "load", "save"]

_LAZY = {
    "Predictor": "tosa_cli.model.predictor",
    "convert": "tosa_cli.api",
    "load": "tosa_cli.api",
    "save": "tosa_cli.api",
    "TosaViT": "tosa_cli.model.tosa_vit",
}


_FORMER = {"DensePredictor": "Predictor"}
"""Former names, which go on working."""


def __getattr__(name: str) -> Any:
    name = _FORMER.get(name, name)
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_with_timm()
