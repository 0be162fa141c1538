"""Turns pretrained Vision Transformers into ToSA models.

    import tosa_cli

    model = tosa_cli.convert("deit_tiny", tosa_cli.TosaConfig(layers=(2, 4, 6, 8, 10)))
    tosa_cli.save(model, "deit_tiny-tosa")
    model = tosa_cli.load("deit_tiny-tosa")

Importing it also lets timm load converted models: `timm.create_model("local-dir:deit_tiny-tosa", pretrained=True)`.
"""

from typing import TYPE_CHECKING, Any

from tosa_cli._register import register
from tosa_cli.config import TosaConfig
from tosa_cli.errors import TosaError

if TYPE_CHECKING:
    from tosa_cli.api import convert, load, save
    from tosa_cli.config import Method
    from tosa_cli.convert_config import ConvertConfig
    from tosa_cli.data.description import Data
    from tosa_cli.measure.config import EvalConfig
    from tosa_cli.model.predictor import Predictor
    from tosa_cli.model.tosa_vit import TosaViT
    from tosa_cli.train.config import DistillConfig, FinetuneConfig
    from tosa_cli.train.predictor_config import PredictorConfig
    from tosa_cli.workflow.distill import distill
    from tosa_cli.workflow.evaluate import evaluate
    from tosa_cli.workflow.finetune import finetune
    from tosa_cli.workflow.push import push
    from tosa_cli.workflow.whole import calibrate, choose_rates, compare

__version__ = "0.1.0"

__all__ = [
    "ConvertConfig",
    "Data",
    "DistillConfig",
    "EvalConfig",
    "FinetuneConfig",
    "Method",
    "Predictor",
    "PredictorConfig",
    "TosaConfig",
    "TosaError",
    "TosaViT",
    "calibrate",
    "choose_rates",
    "compare",
    "convert",
    "distill",
    "evaluate",
    "finetune",
    "load",
    "push",
    "save",
]

_LAZY = {
    "ConvertConfig": "tosa_cli.convert_config",
    "Method": "tosa_cli.config",
    "push": "tosa_cli.workflow.push",
    "Data": "tosa_cli.data.description",
    "DistillConfig": "tosa_cli.train.config",
    "EvalConfig": "tosa_cli.measure.config",
    "FinetuneConfig": "tosa_cli.train.config",
    "Predictor": "tosa_cli.model.predictor",
    "PredictorConfig": "tosa_cli.train.predictor_config",
    "calibrate": "tosa_cli.workflow.whole",
    "choose_rates": "tosa_cli.workflow.whole",
    "compare": "tosa_cli.workflow.whole",
    "convert": "tosa_cli.api",
    "distill": "tosa_cli.workflow.distill",
    "evaluate": "tosa_cli.workflow.evaluate",
    "finetune": "tosa_cli.workflow.finetune",
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


register()
