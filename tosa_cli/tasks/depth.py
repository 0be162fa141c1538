"""Depth: metres for every pixel, measured by the errors of Eigen et al. 2014."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from tosa_cli.data.formats import FORMATS
from tosa_cli.data.pair_images import PairImages
from tosa_cli.measure.depth import measure_depth
from tosa_cli.task import TaskConfig
from tosa_cli.tasks.base import Column
from tosa_cli.tasks.predictor import PredictorTask

MIN_DEPTH = 1e-3
"""Smallest depth in metres that counts in NYU Depth v2 and KITTI."""


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

    def measure(self, models: dict[str, nn.Module], images: PairImages, config: TaskConfig, **how: Any) -> Any:
        """The errors within the range that counts."""
        return measure_depth(models, images, min_depth=config.min_depth, max_depth=config.max_depth, **how)

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
