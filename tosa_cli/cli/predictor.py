"""What `tosa finetune` and `tosa eval` share where a model has a decoder."""

import dataclasses
from typing import TYPE_CHECKING, Any

from tosa_cli.data.pair_images import PairImages
from tosa_cli.measure.depth import measure_depth
from tosa_cli.measure.segmentation import measure_segmentation
from tosa_cli.task import TaskConfig
from tosa_cli.train.config import TrainConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

NAMES = {
    "abs_rel": "Abs Rel",
    "sq_rel": "Sq Rel",
    "rmse": "RMSE",
    "rmse_log": "RMSE log",
    "log10": "log10",
    "d1": "δ<1.25",
    "d2": "δ<1.25²",
    "d3": "δ<1.25³",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
}


def measure_predictor(
    models: "dict[str, nn.Module]",
    images: PairImages,
    config: TaskConfig,
    device: "torch.device",
    settings: TrainConfig,
    flip: bool = False,
    advance: Any = lambda num_images: None,
) -> tuple[Any, dict[str, dict[str, float]]]:
    """Measure models by their task: the report, and the figures of each by name."""
    common: dict[str, Any] = {
        "flip": flip,
        "device": device,
        "amp": settings.amp,
        "strict": settings.strict,
        "advance": advance,
    }
    report: Any
    if config.task == "depth":
        report = measure_depth(models, images, min_depth=config.min_depth, max_depth=config.max_depth, **common)
    else:
        report = measure_segmentation(models, images, num_labels=config.num_labels, **common)
    return report, {name: dataclasses.asdict(figures) for name, figures in report.models.items()}
