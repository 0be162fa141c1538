"""What finetuning trains of a predictor: the decoder, and the encoder with frozen selectors (paper, section 3.3)."""

from collections.abc import Callable
from typing import Any

import torch
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor, nn

from tosa_cli.model.predictor import Predictor
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.optimizer import finetuned_groups
from tosa_cli.train.predictor_config import PredictorConfig
from tosa_cli.train.weights import finetuned_parts

Loss = Callable[[Tensor, Tensor], Tensor]
"""From what a model predicts and what it should predict to a loss."""


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
        loss: Loss from the model's output and the maps.
        freeze_encoder: Train the decoder alone.
    """

    def __init__(self, model: Predictor, loss: Loss, freeze_encoder: bool = False) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
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
        return self.loss(self.model(images), targets)

    def train(self, mode: bool = True) -> "PredictorObjective":
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze_encoder:
            self.model.encoder.eval()
        return self


def predictor_groups(model: Predictor, config: PredictorConfig) -> list[dict[str, Any]]:
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
