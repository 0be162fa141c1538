"""What a training step computes: a module from images and targets to a loss, so that it can run in parallel."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.model.selectors.attention import attention_kl
from tosa_cli.model.timm_interface import FinetunableViT
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.weights import finetuned_parts

ROOT_EPS = 1e-6
"""Added to a distance before its root is taken: at 0 the root has no gradient."""


class DistillObjective(nn.Module):
    """Selector training: predict the maps of the pretrained model's next layer (paper 2.2, Eq. 5).

    The backbone runs dense and without gradients; the selectors alone are trained.

    Args:
        model: The ToSA model.
    """

    def __init__(self, model: TosaViT) -> None:
        super().__init__()
        self.model = model
        model.requires_grad_(False)
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
        model: The ToSA model, or a peer of it; or a dense model, all of which is trained.
        loss: Loss from class logits (B, num_classes) and targets.
    """

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        if isinstance(model, FinetunableViT):
            model.requires_grad_(False)
            finetuned_parts(model).requires_grad_(True)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of images (B, C, height, width) with class indices (B,) or class shares (B, num_classes)."""
        return self.loss(self.model(images), targets)


class FeaturesObjective(nn.Module):
    """Label-free finetuning: match the final tokens of the dense model that the ToSA model came from.

    Selection stays as it is, and so does what needs no learning: up to the first ToSA layer the teacher's tokens are
    computed already, and a classification head, which reads the tokens, goes on fitting them.

    Args:
        model: The ToSA model.
        teacher: The dense model; it is frozen.
        feature_layers: Number of evenly spread layers before the last whose tokens are matched too.
    """

    def __init__(self, model: TosaViT, teacher: nn.Module, feature_layers: int = 0) -> None:
        super().__init__()
        self.model = model
        self.teacher: Any = teacher.requires_grad_(False)
        depth = len(model.blocks)
        self.indices = [depth * i // (feature_layers + 1) - 1 for i in range(1, feature_layers + 1)]
        self.num_prefix = model.num_prefix_tokens
        # Registers are read by nobody behind the last layer.
        self.num_class = self.num_prefix - model.family.num_register_tokens(model)
        model.requires_grad_(False)
        later = nn.ModuleList([*model.blocks[min(model.keep_rates) - 1 :], model.norm, model.bypasses])
        parameters = list(later.requires_grad_(True).parameters())
        # Several processes need to know which weights no gradient reaches, as of a bypass that no token takes.
        images = torch.zeros(1, model.in_chans, *model.patch_embed.img_size, device=parameters[0].device)
        reached = torch.autograd.grad(self._tokens(model, images)[0].sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, reached, strict=True):
            parameter.requires_grad_(gradient is not None)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of images (B, C, height, width); `targets` are not read.

        The final tokens count as much as the mean of the layers before, and class tokens as much as patch tokens. It
        is the mean over images of the root of their distance: of the distance itself, the gradients of the few images
        that are far off would drown those of all others.
        """
        with torch.no_grad():
            expected = self._tokens(self.teacher, images)
        losses = [self._distance(*pair) for pair in zip(self._tokens(self.model, images), expected, strict=True)]
        final, others = losses[0], losses[1:]
        distances = final + torch.stack(others).mean(dim=0) if others else final
        return (distances + ROOT_EPS).sqrt().mean()

    def train(self, mode: bool = True) -> "FeaturesObjective":
        """Dropout and the like stay off, as a model that only has to stay close to its teacher needs no noise."""
        return super().train(False)

    def _distance(self, tokens: Tensor, expected: Tensor) -> Tensor:
        """Distance (B,) of tokens (B, N, D)."""
        patches = token_distance(tokens[:, self.num_prefix :], expected[:, self.num_prefix :])
        if not self.num_class:
            return patches
        return (patches + token_distance(tokens[:, : self.num_class], expected[:, : self.num_class])) / 2

    def _tokens(self, model: Any, images: Tensor) -> list[Tensor]:
        """Final normalised tokens (B, N, D), then those behind each of the other layers."""
        if not self.indices:
            return [model.forward_features(images)]
        final, others = model.forward_intermediates(
            images, indices=self.indices, return_prefix_tokens=True, output_fmt="NLC"
        )
        if self.num_prefix:
            others = [torch.cat([prefix, patches], dim=1) for patches, prefix in others]
        return [final, *others]


def token_distance(tokens: Tensor, expected: Tensor) -> Tensor:
    """How far tokens are from those expected.

    One minus the cosine is what is measured in the end, but a few large channels of a ViT rule it; smooth L1 between
    the layer-normalised tokens grows no more than linearly with those, so that the small channels count too.

    Args:
        tokens: Tokens (B, N, D).
        expected: The tokens they should be, (B, N, D).

    Returns:
        The mean over the tokens of each image, (B,) in float32.
    """
    tokens, expected = tokens.float(), expected.float()
    cosine = F.cosine_similarity(tokens, expected, dim=-1)
    width = tokens.shape[-1:]
    tokens, expected = F.layer_norm(tokens, width), F.layer_norm(expected, width)
    return 1 - cosine.mean(dim=1) + F.smooth_l1_loss(tokens, expected, reduction="none").mean(dim=(1, 2))
