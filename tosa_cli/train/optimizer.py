"""timm's optimizers by name."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from timm.optim import create_optimizer_v2
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from tosa_cli.errors import ConfigError
from tosa_cli.model.timm_interface import FinetunableViT
from tosa_cli.train.config import TrainConfig


def make_optimizer(
    trained: Iterable[nn.Parameter] | list[dict[str, Any]], config: TrainConfig
) -> torch.optim.Optimizer:
    """Make the optimizer that the settings name.

    Args:
        trained: Parameters that are trained, or groups of them as from `finetuned_groups`.
        config: The settings.

    Raises:
        ConfigError: If timm does not know the optimizer, or it needs a package or a device that is not there.
    """
    parameters: Any = list(trained)
    try:
        return create_optimizer_v2(parameters, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
    except (ValueError, AssertionError, KeyError, ImportError) as error:
        raise ConfigError(f"--opt {config.opt!r} cannot be used ({error}): try adamw, sgd or lamb.") from error


def finetuned_groups(
    model: FinetunableViT, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Groups of the parameters that finetuning trains and that require gradients: backbone, then bypasses.

    Args:
        model: The model to finetune.
        weight_decay: Weight decay, which norms and biases are left without.
        layer_decay: Factor between the learning rates of neighbouring layers of the backbone; None is off.

    Returns:
        Groups as timm's optimizers and schedules take them.
    """
    backbone, spared = cast(nn.Module, model.backbone), model.backbone.no_weight_decay()
    if layer_decay is None:
        groups = param_groups_weight_decay(backbone, weight_decay, no_weight_decay_list=spared)
    else:
        groups = param_groups_layer_decay(backbone, weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay)
    return groups + param_groups_weight_decay(model.bypasses, weight_decay)
