"""What a training step computes: a module from images and targets to a loss, so that it can run in parallel."""

from torch import Tensor, nn

from tosa_cli.model.selectors import attention_kl
from tosa_cli.model.tosa_vit import TosaViT


class DistillObjective(nn.Module):
    """Selector training: predict the maps of the pretrained model's next layer (paper 2.2, Eq. 5).

    The backbone runs dense and without gradients; the selectors alone are trained.

    Args:
        model: The ToSA model.
    """

    def __init__(self, model: TosaViT) -> None:
        super().__init__()
        self.model = model
        model.backbone.requires_grad_(False)
        model.selectors.requires_grad_(True)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of images (B, C, height, width), summed over the ToSA layers; `targets` are not read."""
        model = self.model
        layers = list(model.keep_rates)
        logits = model.dense_logits(images, {*layers, *(layer - 1 for layer in layers)})
        losses = [attention_kl(model.selectors[str(layer)](logits[layer - 1]), logits[layer]) for layer in layers]
        return sum(losses)  # type: ignore[return-value]

    def train(self, mode: bool = True) -> "DistillObjective":
        """Dropout and the like stay off: the maps are those of the pretrained model."""
        return super().train(False)


class FinetuneObjective(nn.Module):
    """Finetuning on the original task with frozen selectors (paper 2.3).

    Args:
        model: The ToSA model.
        loss: Loss from class logits (B, num_classes) and targets.
    """

    def __init__(self, model: TosaViT, loss: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        model.backbone.requires_grad_(True)
        model.selectors.requires_grad_(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of images (B, C, height, width) with class indices (B,) or class shares (B, num_classes)."""
        return self.loss(self.model(images), targets)
