"""Selector training (paper 2.2): label-free, the backbone frozen."""

from pathlib import Path

from accelerate import Accelerator
from timm.optim import create_optimizer_v2

from tosa_cli.errors import ConfigError
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.config import DistillConfig
from tosa_cli.train.data import Augmentation, Images
from tosa_cli.train.loop import Progress, TrainReport, train
from tosa_cli.train.objectives import DistillObjective
from tosa_cli.train.schedule import make_scheduler


def check_trainable(model: TosaViT) -> None:
    """Check that a model has selectors to train.

    Raises:
        ConfigError: If its selector needs no training.
    """
    if not len(model.selectors):
        raise ConfigError(
            f"The selector {model.config.selector!r} has nothing to train. Convert with "
            f"--selector attention to distill."
        )


def distill_augmentation(config: DistillConfig) -> Augmentation:
    """Crops and flips; colors stay as they are."""
    return Augmentation(crop_scale=config.crop_scale)


def distill(
    accelerator: Accelerator,
    model: TosaViT,
    images: Images,
    config: DistillConfig,
    *,
    checkpoint: Path,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainReport:
    """Train the selectors of a model in place.

    Args:
        accelerator: From `make_accelerator`.
        model: The ToSA model; its backbone is not changed.
        images: Training images; labels are not read.
        config: The settings.
        checkpoint: Where the checkpoint is written.
        resume: Continue from it.
        progress: Told about the advance.

    Raises:
        ConfigError: If the model has no selectors to train.
        TrainingError: If the loss is not finite.
    """
    check_trainable(model)
    objective = DistillObjective(model)
    optimizer = create_optimizer_v2(
        list(model.selector_parameters()), opt=config.opt, lr=config.lr, weight_decay=config.weight_decay
    )
    return train(
        accelerator,
        objective,
        images,
        optimizer,
        config,
        checkpoint=checkpoint,
        resume=resume,
        make_scheduler=make_scheduler(config),
        progress=progress,
    )
