"""Depth: metres for every pixel.

The loss is the scale-invariant one; what is measured are the errors of Eigen et al. 2014 (arXiv 1406.2283, section 4),
as the field does on NYU Depth v2 and KITTI: over the pixels that have a measured depth, first averaged over an image
and then over the images.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tosa_cli.data.formats import FORMATS
from tosa_cli.task import TaskConfig
from tosa_cli.tasks.base import Column
from tosa_cli.tasks.predictor import MapMeasure, PredictorTask
from tosa_cli.train.predictor_config import VARIANCE_FOCUS

MIN_DEPTH = 1e-3
"""Smallest depth in metres that counts in NYU Depth v2 and KITTI."""

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


@dataclass(frozen=True)
class DepthErrors:
    """Mean errors over images; depth in metres, logarithms natural where nothing else is said.

    Attributes:
        abs_rel: Absolute error, relative to the true depth.
        sq_rel: Squared error in metres, relative to the true depth.
        rmse: Root mean squared error in metres.
        rmse_log: Root mean squared error of the logarithm.
        log10: Absolute error of the logarithm to the base 10.
        d1: Share of pixels with max(predicted / true, true / predicted) below 1.25.
        d2: The same below 1.25².
        d3: The same below 1.25³.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    log10: float
    d1: float
    d2: float
    d3: float


DEPTH_FIGURES = tuple(field.name for field in dataclasses.fields(DepthErrors))


def depth_errors(predicted: Tensor, depth: Tensor) -> Tensor:
    """Errors over the pixels of one image.

    Args:
        predicted: Predicted depth in metres at the measured pixels (P,), above 0.
        depth: True depth there (P,), above 0.

    Returns:
        The errors (8,) in float64, in the order of `DEPTH_FIGURES`.
    """
    predicted, depth = predicted.double(), depth.double()
    difference, ratio = predicted - depth, torch.maximum(predicted / depth, depth / predicted)
    log = predicted.log() - depth.log()
    return torch.stack(
        [
            (difference.abs() / depth).mean(),
            (difference**2 / depth).mean(),
            (difference**2).mean().sqrt(),
            (log**2).mean().sqrt(),
            (predicted.log10() - depth.log10()).abs().mean(),
            *((ratio < 1.25**power).double().mean() for power in (1, 2, 3)),
        ]
    )


class DepthMeasure(MapMeasure[DepthErrors]):
    """Errors of maps of depth in metres (B, 1, height, width) on depth maps (height, width), 0 where nothing counts.

    A prediction is brought to the size of the true map, bilinearly, and clamped to the range that counts.

    Args:
        min_depth: Smallest depth in metres.
        max_depth: Largest depth in metres.
        flip: Average the prediction with that of the mirrored image.
    """

    def __init__(self, min_depth: float, max_depth: float, flip: bool = False) -> None:
        super().__init__(flip)
        self.min_depth, self.max_depth = min_depth, max_depth
        self.sums: dict[str, Tensor] = {}

    def add(self, images: Any, targets: Any, outputs: Mapping[str, Tensor]) -> None:
        """Sum up the errors of each image."""
        for name, output in outputs.items():
            for predicted, depth in zip(output.float(), targets, strict=True):
                full = _resized(predicted, depth.shape).cpu().clamp(self.min_depth, self.max_depth)
                counted = depth > 0
                found = depth_errors(full[counted], depth[counted])
                self.sums[name] = self.sums[name] + found if name in self.sums else found

    def figures(self, samples: int) -> dict[str, DepthErrors]:
        """The means over the images."""
        return {name: DepthErrors(*(total / samples).tolist()) for name, total in self.sums.items()}


class Depth(PredictorTask):
    """Errors of depth maps."""

    name = "depth"
    columns: ClassVar[Mapping[str, Column]] = {
        "abs_rel": Column("Abs Rel"),
        "sq_rel": Column("Sq Rel"),
        "rmse": Column("RMSE"),
        "rmse_log": Column("RMSE log"),
        "log10": Column("log10"),
        "d1": Column("δ<1.25"),
        "d2": Column("δ<1.25²"),
        "d3": Column("δ<1.25³"),
    }
    measured = "Depth"
    pipeline = "depth-estimation"

    def loss(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """The scale-invariant log loss."""
        return silog_loss(predicted[:, 0], targets)

    def measure_maps(self, config: TaskConfig, flip: bool) -> DepthMeasure:
        """The errors within the range that counts."""
        return DepthMeasure(config.min_depth, config.max_depth, flip)

    def score(self, figures: Mapping[str, float]) -> float:
        """The smaller Abs Rel, the better."""
        return -figures["abs_rel"]

    def measured_config(self, config: TaskConfig, data_format: str) -> TaskConfig:
        """What counts in NYU Depth v2 and KITTI is the same for every model."""
        if data_format == "folder":
            return config
        return dataclasses.replace(config, min_depth=MIN_DEPTH, max_depth=FORMATS[data_format].max_depth)

    def about_evaluation(self, config: TaskConfig, data_format: str) -> dict[str, Any]:
        """The crop and the range that counted."""
        crop = FORMATS[data_format].crop
        return {"crop": crop, "min_depth": config.min_depth, "max_depth": config.max_depth}

    def counted(self, report: Mapping[str, Any]) -> str:
        """The crop and the range."""
        crop = f"the {report['crop'].capitalize()} crop, " if report["crop"] != "none" else ""
        return f"Measured: {crop}{report['min_depth']:g} to {report['max_depth']:g} m, mean over the images. "

    def predicts(self, config: TaskConfig) -> str:
        """Metres, within the range that was trained."""
        return f"depth between {config.min_depth:g} and {config.max_depth:g} m"

    def counted_on_card(self, measured: Mapping[str, Any]) -> str:
        """The range and the crop."""
        return f"Depths from {measured['min_depth']:g} to {measured['max_depth']:g} m, crop {measured['crop']}."


def _resized(predicted: Tensor, size: torch.Size) -> Tensor:
    if predicted.shape[-2:] == size:
        return predicted[0]
    return F.interpolate(predicted[None], size=tuple(size), mode="bilinear")[0, 0]
