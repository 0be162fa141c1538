"""Finetuning on the original task with frozen selectors (paper 2.3)."""

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from timm.data import Mixup
from timm.layers import DropPath, calculate_drop_path_rates
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from tosa_cli.errors import ConfigError
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.checkpoint import fingerprint
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.data import Augmentation, Images
from tosa_cli.train.loop import Progress, TrainReport, train
from tosa_cli.train.objectives import FinetuneObjective
from tosa_cli.train.optimizer import make_optimizer
from tosa_cli.train.schedule import make_scheduler


def finetune_augmentation(config: FinetuneConfig) -> Augmentation:
    """timm's augmentation by the settings."""
    return Augmentation(config.crop_scale, config.hflip, config.color_jitter, config.auto_augment, config.reprob)


def finetune(
    accelerator: Accelerator,
    model: TosaViT,
    images: Images,
    config: FinetuneConfig,
    *,
    checkpoint: Path,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainReport:
    """Finetune the backbone of a model in place, its selectors frozen.

    Args:
        accelerator: From `make_accelerator`.
        model: The ToSA model.
        images: Training images with labels.
        config: The settings.
        checkpoint: Where the checkpoint is written.
        resume: Continue from it.
        progress: Told about the advance.

    Raises:
        ConfigError: If the optimizer or the schedule is unknown.
        DataError: If a label does not fit the model's head.
        TrainingError: If the loss is not finite.
    """
    if config.drop_path is not None:
        _set_drop_path(model, config.drop_path)
    model.set_grad_checkpointing(config.grad_checkpointing)
    mixup = _make_mixup(config, model.num_classes)

    def change_batch(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images.check_targets(targets, model.num_classes)
        return mixup(inputs, targets) if mixup else (inputs, targets)

    loss: nn.Module = SoftTargetCrossEntropy() if mixup else LabelSmoothingCrossEntropy(config.smoothing)
    objective = FinetuneObjective(model, loss).train()
    # On its device before it is copied: the average stays where the model is.
    model.to(accelerator.device)
    ema = ModelEmaV3(model.backbone, decay=config.model_ema_decay) if config.model_ema else None
    report = train(
        accelerator,
        objective,
        images,
        make_optimizer(model.backbone, config, config.layer_decay),
        config,
        checkpoint=checkpoint,
        fingerprint=fingerprint(model),
        resume=resume,
        make_scheduler=make_scheduler(config),
        change_batch=change_batch,
        ema=ema,
        progress=progress,
    )
    if ema is not None:
        model.backbone.load_state_dict(ema.module.state_dict())
    model.set_grad_checkpointing(False)
    model.eval()
    return report


def _make_mixup(config: FinetuneConfig, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    if not (config.mixup or config.cutmix):
        return None
    if config.batch_size % 2:
        raise ConfigError(f"Mixup and CutMix need an even batch size, not {config.batch_size}.")
    mixup = Mixup(
        mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, label_smoothing=config.smoothing, num_classes=num_classes
    )
    # timm's Mixup makes its targets on the device of the labels, and changes the images in place.
    return lambda images, targets: mixup(images, targets)


def _set_drop_path(model: TosaViT, rate: float) -> None:
    rates: list[float] = calculate_drop_path_rates(rate, len(model.blocks))  # type: ignore[assignment]
    for block, probability in zip(model.blocks, rates, strict=True):
        for name in ("drop_path1", "drop_path2"):
            if hasattr(block, name):
                setattr(block, name, DropPath(probability) if probability > 0 else nn.Identity())
