"""Features: the final tokens of the dense model, which any images teach, and which need no labels to measure."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from tosa_cli.data.loading import Images
from tosa_cli.errors import InputError
from tosa_cli.hub.original import dense_model
from tosa_cli.measure.features import measure_features
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.tasks.base import Column
from tosa_cli.tasks.tokens import TokensTask
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.weights import HeldOut

MAX_HELD_OUT = 200
"""Held-out images: they are measured often, and so many tell the cosines to the third decimal."""


class Features(TokensTask):
    """Cosines of final tokens to the dense model's."""

    name = "features"
    columns: ClassVar[Mapping[str, Column]] = {
        "patch_cosine": Column("patch cosine"),
        "class_cosine": Column("class cosine"),
    }
    measured = "Final tokens beside the dense model's"
    keeps_best = True
    needs_dense = True
    max_held_out = MAX_HELD_OUT

    def teacher(self, model: TosaViT) -> nn.Module:
        """A copy of the dense model that a converted one came from.

        Raises:
            InputError: If it is needed from its source, which cannot be loaded any more.
        """
        try:
            dense = dense_model(model)
        except InputError as error:
            raise InputError(
                f"The objective features learns from the dense source {model.provenance.source or 'model'}, which "
                f"cannot be loaded: bring it back, or finetune a model that was not finetuned before. "
                f"{error.__cause__ or error}"
            ) from error
        if dense.lost:
            raise InputError(
                f"The objective features learns from the dense source, whose weights are lost. {dense.lost} Finetune "
                f"with labels, or take a model that was not finetuned before."
            )
        return copy.deepcopy(dense.model).eval()

    def held_out(
        self, model: TosaViT, teacher: Any, images: Images, device: torch.device, config: TrainConfig
    ) -> HeldOut:
        """The cosines, by whose mean weights are ranked."""
        report = measure_features(model, teacher, images, device=device, amp=config.amp, strict=config.strict)
        return HeldOut(report.samples, sum(report.cosines.values()) / len(report.cosines), report.cosines)

    def next_words(self, config: Any) -> list[str]:
        """The same measurement."""
        return ["--task", "features"]

    def compare(self, model: TosaViT, dense: Any, images: Images, **how: Any) -> dict[str, Any]:
        """The cosines, and the time of both."""
        report = measure_features(model, dense.model, images, **how).to_dict()
        speed = report.pop("dense_images_per_second")
        return {**report, "dense": {"weights": dense.weights, "images_per_second": speed}}

    def dense_figures(self, report: Mapping[str, Any]) -> Mapping[str, Any]:
        """1 for itself, where there is something to measure."""
        return {key: None if report[key] is None else 1.0 for key in self.columns}
