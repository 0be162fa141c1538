"""Finetuning with frozen selectors (paper 2.3): on the original task, or on the dense model's features."""

from pathlib import Path

from accelerate import Accelerator
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from tosa_cli.data.loading import Augmentation, Images
from tosa_cli.errors import ConfigError
from tosa_cli.model.timm_interface import FinetunableViT
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Progress
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.loop import TrainReport
from tosa_cli.train.objectives import FeaturesObjective, FinetuneObjective
from tosa_cli.train.optimizer import finetuned_groups
from tosa_cli.train.tune import ChangeBatch, Learned, tune
from tosa_cli.train.weights import Watch, finetuned_parts


def finetune_augmentation(config: FinetuneConfig) -> Augmentation:
    """timm's augmentation by the settings."""
    return Augmentation(config.crop_scale, config.hflip, config.color_jitter, config.auto_augment, config.reprob)


def finetune(
    accelerator: Accelerator,
    model: FinetunableViT,
    images: Images,
    config: FinetuneConfig,
    *,
    checkpoint: Path | None,
    teacher: nn.Module | None = None,
    watch: Watch | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainReport:
    """Finetune the backbone and the bypasses of a model in place, its selectors frozen.

    Args:
        accelerator: From `make_accelerator`.
        model: The ToSA model, or a peer of it that is to be finetuned in the same way, as `MergedViT`.
        images: Training images; the objective labels needs labels.
        config: The settings.
        checkpoint: Where the checkpoint is written.
        teacher: The dense model that the objective features matches, another module than the model's backbone.
        watch: Measures on held-out images on the way and hands back the best weights, the start included.
        resume: Continue from it.
        progress: Told about the advance.

    Raises:
        ConfigError: If the optimizer or the schedule is unknown, or the settings do not fit the model.
        DataError: If a label does not fit the model's head.
        TrainingError: If the loss is not finite.
    """

    def learn() -> Learned:
        objective, change_batch = _make_objective(model, images, config, teacher)
        groups = finetuned_groups(model, config.weight_decay, config.layer_decay)
        return Learned(objective, finetuned_parts(model), groups, change_batch)

    return tune(
        accelerator,
        model,
        images,
        config,
        learn,
        recompute=config.grad_checkpointing,
        checkpoint=checkpoint,
        watch=watch,
        resume=resume,
        progress=progress,
    )


def _make_objective(
    model: FinetunableViT, images: Images, config: FinetuneConfig, teacher: nn.Module | None
) -> tuple[nn.Module, ChangeBatch | None]:
    """What is learned, and what is done to a batch before."""
    if config.objective == "features":
        if not isinstance(model, TosaViT):
            raise ConfigError(
                f"The objective features is for converted models, not for a {type(model).__name__}: use labels."
            )
        if teacher is None or getattr(teacher, "blocks", None) is model.blocks:
            raise ConfigError("The objective features needs a teacher: a copy of the dense model.")
        if config.feature_layers >= len(model.blocks):
            raise ConfigError(
                f"--feature-layers must be below {len(model.blocks)}, as the model has so many layers and the last is "
                f"matched anyway; not {config.feature_layers}."
            )
        return FeaturesObjective(model, teacher, config.feature_layers).train(), None
    mixup = _make_mixup(config, model.num_classes)

    def change_batch(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images.check_targets(targets, model.num_classes)
        return mixup(inputs, targets) if mixup else (inputs, targets)

    loss: nn.Module = SoftTargetCrossEntropy() if mixup else LabelSmoothingCrossEntropy(config.smoothing)
    return FinetuneObjective(model, loss).train(), change_batch


def _make_mixup(config: FinetuneConfig, num_classes: int) -> ChangeBatch | None:
    if not (config.mixup or config.cutmix):
        return None
    if config.batch_size % 2:
        raise ConfigError(f"Mixup and CutMix need an even batch size, not {config.batch_size}.")
    mixup = Mixup(
        mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, label_smoothing=config.smoothing, num_classes=num_classes
    )
    # timm's Mixup makes its targets on the device of the labels, and changes the images in place.
    return lambda images, targets: mixup(images, targets)
