"""Segmentation: a class for every pixel, learned by cross entropy and measured by intersection over union."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from tosa_cli.data.pair_images import PairImages, count_labels
from tosa_cli.errors import DataError
from tosa_cli.measure.config import EvalConfig
from tosa_cli.model.predictor import Predictor
from tosa_cli.progress import Listener, counted
from tosa_cli.task import IGNORED_LABEL, TaskConfig
from tosa_cli.tasks.base import Column
from tosa_cli.tasks.predictor import MapMeasure, PredictorTask


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of class logits (B, num_labels, height, width) with class indices (B, height, width).

    Returns:
        Its mean over the pixels of the whole batch that have a class, that is another value than 255; 0 without any.
    """
    if not (labels != IGNORED_LABEL).any():
        return logits.sum() * 0.0
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL)


@dataclass(frozen=True)
class SegmentationFigures:
    """What one model does on a data set; shares of all pixels together, from 0 to 1.

    Attributes:
        miou: Mean of intersection over union, over the classes that have a pixel in the masks.
        pixel_accuracy: Share of pixels whose class is right.
    """

    miou: float
    pixel_accuracy: float


def figures_of(counts: np.ndarray) -> SegmentationFigures:
    """Figures of a confusion matrix of pixels (true class, predicted class); NaN where no pixel has a class."""
    right, union = np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts)
    present = counts.sum(axis=1) > 0
    if not present.any():
        return SegmentationFigures(float("nan"), float("nan"))
    return SegmentationFigures(float((right[present] / union[present]).mean()), float(right.sum() / counts.sum()))


class SegmentationMeasure(MapMeasure[SegmentationFigures]):
    """Overlap of class logits (B, num_labels, height, width) with masks (height, width), 255 for no class.

    Logits are brought to the size of the mask, bilinearly.

    Args:
        num_labels: Number of classes.
        flip: Average the logits with those of the mirrored image.
    """

    def __init__(self, num_labels: int, flip: bool = False) -> None:
        super().__init__(flip)
        self.num_labels = num_labels
        self.counts: dict[str, np.ndarray] = {}
        self._pixels = np.zeros(IGNORED_LABEL + 1, dtype=np.int64)

    @property
    def pixels(self) -> list[int]:
        """Pixels of each class in the masks, and at last of none."""
        return [*self._pixels[: self.num_labels].tolist(), int(self._pixels[IGNORED_LABEL])]

    def add(self, images: Any, targets: Any, outputs: Mapping[str, Tensor]) -> None:
        """Count the pixels of each pair of classes."""
        shape = (self.num_labels, self.num_labels)
        for labels in targets:
            self._pixels += labels.flatten().long().bincount(minlength=len(self._pixels)).numpy()
        for name, output in outputs.items():
            counts = self.counts.setdefault(name, np.zeros(shape, dtype=np.int64))
            for logits, labels in zip(output.float(), targets, strict=True):
                known = labels != IGNORED_LABEL
                if not known.any():
                    continue
                full = F.interpolate(logits[None], size=tuple(labels.shape), mode="bilinear")[0].argmax(dim=0).cpu()
                pairs = labels[known].long() * self.num_labels + full[known]
                counts += pairs.bincount(minlength=self.num_labels**2).view(shape).numpy()

    def figures(self, samples: int) -> dict[str, SegmentationFigures]:
        """The figures of all pixels together."""
        return {name: figures_of(counts) for name, counts in self.counts.items()}


class Segmentation(PredictorTask):
    """Mean intersection over union of class maps."""

    name = "segmentation"
    columns: ClassVar[Mapping[str, Column]] = {"miou": Column("mIoU"), "pixel_accuracy": Column("pixel accuracy")}
    measured = "Segmentation"
    pipeline = "image-segmentation"

    def loss(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """The cross entropy of the pixels that have a class."""
        return segmentation_loss(predicted, targets)

    def measure_maps(self, config: TaskConfig, flip: bool) -> SegmentationMeasure:
        """The overlap of the classes, over all pixels that have one."""
        return SegmentationMeasure(config.num_labels, flip)

    def score(self, figures: Mapping[str, float]) -> float:
        """The mean intersection over union."""
        return figures["miou"]

    def read_as_trained(self, model: Predictor, name: str, config: EvalConfig, listener: Listener) -> EvalConfig:
        """The settings, with the value of masks that was no class in training where none is named."""
        learned = model.provenance.steps.get("finetune", {}).get("ignore_index")
        if config.ignore_index is not None or not isinstance(learned, int):
            return config
        listener.say(f"In the masks {learned} is no class, as it was when {name} was trained.")
        return replace(config, ignore_index=learned)

    def training_notes(self, training: PairImages, model: Predictor) -> list[str]:
        """Which classes have no pixel in masks to train on; of many masks some are looked at."""
        return _without_pixels(*count_labels(training.samples, model.config.num_labels), training.name)

    def measured_notes(self, measure: SegmentationMeasure, samples: int) -> list[str]:
        """Which classes have no pixel in the masks, and are left out of the mean."""
        return _without_pixels(measure.pixels, samples, samples, "")

    def predicts(self, config: TaskConfig) -> str:
        """The classes."""
        return f"{config.num_labels} classes"


def _without_pixels(pixels: Sequence[int], seen: int, total: int, name: str) -> list[str]:
    """A sentence that names classes without a pixel, if there are any; without any class it is an error.

    Args:
        pixels: Pixels of each class, and at last of none.
        seen: So many masks were looked at.
        total: So many there are.
        name: What to call the data.

    Raises:
        DataError: If no mask has a class.
    """
    *of_classes, of_none = pixels
    missing = [str(label) for label, count in enumerate(of_classes) if not count]
    if not missing:
        return []
    if not any(of_classes) and seen == total:
        raise DataError(
            f"No pixel in the {counted(total, 'mask')}{f' of {name}' if name else ''} is of a class (0 to "
            f"{len(of_classes) - 1}): each has a value that is none, 255 or --ignore-index. A mask holds the number of "
            f"its class in each pixel, from 0 up."
        )
    shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
    part = counted(total, "mask") if seen == total else f"{seen} of {counted(total, 'mask')}"
    where = f"{part} of {name}" if name else part
    share = of_none / max(1, sum(pixels))
    return [
        f"No pixel in the {where} is of class {shown} (of 0 to {len(of_classes) - 1}), and {share:.0%} have a value "
        f"that is no class: 255, or --ignore-index. A mask holds the number of its class in each pixel, from 0 up."
    ]
