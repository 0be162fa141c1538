"""Selector training (paper 2.2): label-free, the backbone frozen."""

from pathlib import Path

from accelerate import Accelerator

from tosa_cli.errors import ConfigError
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.checkpoint import fingerprint
from tosa_cli.train.config import DistillConfig
from tosa_cli.train.data import Augmentation, Images
from tosa_cli.train.loop import Progress, TrainReport, train
from tosa_cli.train.objectives import DistillObjective
from tosa_cli.train.optimizer import make_optimizer
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
        ConfigError: If the model has no selectors to train, or the optimizer or the schedule is unknown.
        TrainingError: If the loss is not finite.
    """
    check_trainable(model)
    return train(
        accelerator,
        DistillObjective(model),
        images,
        make_optimizer(model.selector_parameters(), config),
        config,
        checkpoint=checkpoint,
        fingerprint=fingerprint(model),
        resume=resume,
        make_scheduler=make_scheduler(config),
        progress=progress,
    )
