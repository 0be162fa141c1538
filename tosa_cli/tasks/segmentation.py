"""Segmentation: a class for every pixel, measured by intersection over union."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from tosa_cli.data.pair_images import PairImages
from tosa_cli.measure.segmentation import measure_segmentation
from tosa_cli.task import TaskConfig
from tosa_cli.tasks.base import Column
from tosa_cli.tasks.predictor import PredictorTask


class Segmentation(PredictorTask):
    """Mean intersection over union of class maps."""

    name = "segmentation"
    columns: ClassVar[Mapping[str, Column]] = {"miou": Column("mIoU"), "pixel_accuracy": Column("pixel accuracy")}
    measured = "Segmentation"

    def measure(self, models: dict[str, nn.Module], images: PairImages, config: TaskConfig, **how: Any) -> Any:
        """The overlap of the classes, over all pixels that have one."""
        return measure_segmentation(models, images, num_labels=config.num_labels, **how)

    def score(self, figures: Mapping[str, float]) -> float:
        """The mean intersection over union."""
        return figures["miou"]
