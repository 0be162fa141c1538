"""timm's optimizers by name."""

from collections.abc import Iterable

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from tosa_cli.errors import ConfigError
from tosa_cli.train.config import TrainConfig


def make_optimizer(
    trained: nn.Module | Iterable[nn.Parameter], config: TrainConfig, layer_decay: float | None = None
) -> torch.optim.Optimizer:
    """Make the optimizer that the settings name.

    Args:
        trained: What is trained; of a module, norms and biases are left without weight decay.
        config: The settings.
        layer_decay: Factor between the learning rates of neighbouring layers; None is off.

    Raises:
        ConfigError: If timm does not know the optimizer, or it needs a package or a device that is not there.
    """
    parameters = trained if isinstance(trained, nn.Module) else list(trained)
    try:
        return create_optimizer_v2(
            parameters, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay, layer_decay=layer_decay
        )
    except (ValueError, AssertionError, KeyError, ImportError) as error:
        raise ConfigError(f"opt {config.opt!r} cannot be used ({error}): try adamw, sgd or lamb.") from error
