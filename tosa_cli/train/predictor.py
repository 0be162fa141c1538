"""Finetuning for depth and segmentation: the decoder, and the encoder with frozen selectors (paper, section 3.3)."""

from pathlib import Path

import torch
from accelerate import Accelerator
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.data.loading import Images
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Progress
from tosa_cli.task import IGNORED_LABEL
from tosa_cli.train.loop import TrainReport
from tosa_cli.train.optimizer import finetuned_groups
from tosa_cli.train.predictor_config import VARIANCE_FOCUS, PredictorConfig
from tosa_cli.train.tune import Learned, tune
from tosa_cli.train.weights import Watch, finetuned_parts

SILOG_FACTOR = 10.0
"""Factor of the scale-invariant log loss (BTS; NeWCRFs, section 4)."""


def silog_loss(predicted: Tensor, depth: Tensor, variance_focus: float = VARIANCE_FOCUS) -> Tensor:
    """The scale-invariant log loss (Eigen et al. 2014, equation 4), with the parameters of BTS and NeWCRFs.

    Args:
        predicted: Predicted depth in metres (B, height, width), above 0.
        depth: True depth; 0 where nothing was measured.
        variance_focus: How much of the squared mean of the log difference is left out, from 0 to 1.

    Returns:
        Ten times the root of mean(d²) - variance_focus * mean(d)², where d is the difference of the logarithms at the
        measured pixels of the whole batch; 0 without any.
    """
    measured = depth > 0
    if not measured.any():
        return predicted.sum() * 0.0
    difference = predicted[measured].float().log() - depth[measured].float().log()
    # At a perfect fit the root has no gradient.
    squared = (difference**2).mean() - variance_focus * difference.mean() ** 2
    return SILOG_FACTOR * (squared + 1e-8).sqrt()


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of class logits (B, num_labels, height, width) with class indices (B, height, width).

    Returns:
        Its mean over the pixels of the whole batch that have a class, that is another value than 255; 0 without any.
    """
    if not (labels != IGNORED_LABEL).any():
        return logits.sum() * 0.0
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL)


def predictor_parts(model: Predictor, freeze_encoder: bool = False) -> nn.ModuleDict:
    """The parts of a predictor that finetuning trains, as one module: decoder, backbone and bypasses."""
    parts = nn.ModuleDict({"decoder": model.decoder})
    if not freeze_encoder:
        converted = isinstance(model.encoder, TosaViT)
        parts["encoder"] = finetuned_parts(model.encoder) if converted else model.encoder
    return parts


class PredictorObjective(nn.Module):
    """Depth or classes of every pixel.

    Args:
        model: The predictor.
        freeze_encoder: Train the decoder alone.
    """

    def __init__(self, model: Predictor, freeze_encoder: bool = False) -> None:
        super().__init__()
        self.model = model
        self.freeze_encoder = freeze_encoder
        model.requires_grad_(False)
        predictor_parts(model, freeze_encoder).requires_grad_(True)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Several processes need to know which weights no gradient reaches, as of a final norm that is not read.
        images = torch.zeros(1, model.in_chans, *model.img_size, device=trained[0].device)
        reached = torch.autograd.grad(model(images).sum(), trained, allow_unused=True)
        for parameter, gradient in zip(trained, reached, strict=True):
            parameter.requires_grad_(gradient is not None)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of images (B, C, height, width) with depth in metres or class indices (B, height, width)."""
        predicted = self.model(images)
        if self.model.config.task == "depth":
            return silog_loss(predicted[:, 0], targets)
        return segmentation_loss(predicted, targets)

    def train(self, mode: bool = True) -> "PredictorObjective":
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze_encoder:
            self.model.encoder.eval()
        return self


def finetune_predictor(
    accelerator: Accelerator,
    model: Predictor,
    images: Images,
    config: PredictorConfig,
    *,
    checkpoint: Path | None,
    watch: Watch | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainReport:
    """Finetune a predictor in place: its decoder, and its encoder but for the selectors.

    Args:
        accelerator: From `make_accelerator`.
        model: The predictor.
        images: Training images with maps.
        config: The settings.
        checkpoint: Where the checkpoint is written.
        watch: Measures on held-out images on the way, and hands back the best weights if it keeps them.
        resume: Continue from the checkpoint.
        progress: Told about the advance.

    Raises:
        ConfigError: If the optimizer or the schedule is unknown.
        DataError: If a map is wrong, or too many images cannot be read.
        TrainingError: If the loss is not finite.
    """

    def learn() -> Learned:
        objective = PredictorObjective(model, config.freeze_encoder).train()
        return Learned(objective, predictor_parts(model, config.freeze_encoder), _groups(model, config))

    report = tune(
        accelerator,
        model,
        images,
        config,
        learn,
        recompute=config.grad_checkpointing and not config.freeze_encoder,
        checkpoint=checkpoint,
        watch=watch,
        resume=resume,
        progress=progress,
    )
    model.requires_grad_(True)
    if isinstance(model.encoder, TosaViT):
        model.encoder.selectors.requires_grad_(False)
    return report


def _groups(model: Predictor, config: PredictorConfig) -> list[dict[str, object]]:
    """Groups of parameters as timm's optimizers and schedules take them; `lr_scale` is a share of the rate."""
    groups = [{**group, "lr_scale": 1.0} for group in param_groups_weight_decay(model.decoder, config.weight_decay)]
    if not config.freeze_encoder:
        if isinstance(model.encoder, TosaViT):
            encoder = finetuned_groups(model.encoder, config.weight_decay)
        else:
            spared = model.encoder.no_weight_decay()
            encoder = param_groups_weight_decay(model.encoder, config.weight_decay, no_weight_decay_list=spared)
        groups += [{**group, "lr_scale": config.encoder_lr_scale} for group in encoder]
    return [group for group in groups if group["params"]]
