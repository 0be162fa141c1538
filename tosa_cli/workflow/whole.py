"""Whole models: converted in place, whatever they are made of besides a run of blocks that is known."""

from typing import Any

from torch import nn

from tosa_cli.config import TosaConfig
from tosa_cli.hub.transformers_config import record_settings
from tosa_cli.hub.weights import check_finite
from tosa_cli.model.families import is_supported_kind
from tosa_cli.model.runs import convert_runs


def is_whole(model: nn.Module) -> bool:
    """Whether a model is converted as a whole: it is none of timm's, which become a `TosaViT`."""
    of_timm = type(model).__module__.partition(".")[0] == "timm" or hasattr(model, "pretrained_cfg")
    return not of_timm and not is_supported_kind(type(model))


def convert_whole(model: nn.Module, config: TosaConfig, example: Any = None) -> nn.Module:
    """Convert the encoder inside a model, in place, and check that with every token kept the model equals its source.

    Args:
        model: A model of transformers, or any module with a run of blocks that are known. Its weights are not changed.
        config: Where and how tokens are selected.
        example: A batch that the model takes: images (B, C, height, width), a tuple or a dictionary; None makes one of
            random images of the model's own size.

    Returns:
        The model. One of transformers has the settings in its config, and is saved with them.

    Raises:
        TosaError: If it cannot be converted; the subclass and the message say why. It is as it was then.
    """
    check_finite(model, type(model).__name__)
    convert_runs(model, config, example)
    record_settings(model)
    return model
