"""What a model with a decoder predicts for one image, beside the same model with every token computed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tosa_cli.model.predictor import Predictor


@dataclass(frozen=True)
class PredictedMaps:
    """Maps of one image.

    Attributes:
        task: `depth` or `segmentation`.
        converted: Depth in metres, or class of each pixel, (height, width): the model as it is.
        dense: The same with every token computed in every layer; None if it was not asked for.
    """

    task: str
    converted: Tensor
    dense: Tensor | None = None

    @property
    def disagreement(self) -> Tensor | None:
        """How far apart both are at each pixel, (height, width); None without `dense`.

        Depth: the difference relative to the depth with every token. Segmentation: 1 where classes differ, 0 elsewhere.
        """
        if self.dense is None:
            return None
        if self.task == "depth":
            return (self.converted - self.dense).abs() / self.dense
        return (self.converted != self.dense).float()

    @property
    def depth_difference(self) -> float | None:
        """Mean difference of the depths, relative to the depth with every token; None where there is none."""
        apart = self.disagreement
        return apart.mean().item() if apart is not None and self.task == "depth" else None

    @property
    def equal_pixels(self) -> float | None:
        """Share of the pixels whose class is the same; None where there is none."""
        apart = self.disagreement
        return 1 - apart.mean().item() if apart is not None and self.task == "segmentation" else None


def class_shares(classes: Tensor) -> dict[int, float]:
    """Share of the pixels of each class of a mask (height, width), the largest first."""
    counts = classes.flatten().bincount()
    order = counts.argsort(descending=True, stable=True).tolist()
    return {number: counts[number].item() / classes.numel() for number in order if counts[number]}


@torch.no_grad()
def predict_maps(model: Predictor, images: Tensor, compare: bool = True) -> PredictedMaps:
    """Predict the map of an image, and set it beside that of the same weights with every token computed.

    Args:
        model: The model, in evaluation mode.
        images: One normalised image (1, C, height, width).
        compare: Whether to compute every token as well.
    """
    task = model.config.task
    converted = _to_map(model(images), task)
    return PredictedMaps(task, converted, _to_map(model.with_dense_encoder()(images), task) if compare else None)


def _to_map(output: Tensor, task: str) -> Tensor:
    """One output (1, channels, height, width) as a map (height, width)."""
    return (output[0, 0].float() if task == "depth" else output[0].argmax(dim=0)).cpu()
