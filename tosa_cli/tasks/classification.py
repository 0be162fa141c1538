"""Classification: labels are learned, and the shares of right guesses measured."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from tosa_cli.data.labels import check_labels
from tosa_cli.data.loading import Images
from tosa_cli.errors import DataError
from tosa_cli.hub.original import DenseModel
from tosa_cli.measure.accuracy import measure_accuracy
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Listener
from tosa_cli.tasks.base import Column
from tosa_cli.tasks.tokens import TokensTask
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.weights import HeldOut


class Classification(TokensTask):
    """Top-1 and top-5 accuracy on labelled images."""

    name = "classification"
    columns: ClassVar[Mapping[str, Column]] = {"top1": Column("top-1", 2, "%"), "top5": Column("top-5", 2, "%")}
    measured = "Accuracy"
    reads_head = True

    def check_images(self, training: Images, held_out: Images, model: TosaViT) -> None:
        """Check that both have the model's classes."""
        check_labels(training, model.num_classes)
        check_labels(held_out, model.num_classes)
        if training.classes != held_out.classes:
            raise DataError(f"The held-out images of {held_out.name} are of other classes than {training.name}.")

    def held_out(
        self, model: TosaViT, teacher: Any, images: Images, device: torch.device, config: FinetuneConfig
    ) -> HeldOut:
        """The accuracy; weights are ranked by top-1."""
        report = measure_accuracy({"tosa": model}, images, device=device, amp=config.amp, strict=config.strict)
        found = report.models["tosa"]
        return HeldOut(report.samples, found.top1, {"top1": found.top1, "top5": found.top5})

    def next_words(self, config: FinetuneConfig) -> list[str]:
        """The dense model beside it."""
        return ["--compare"]

    def check_evaluated(self, images: Images, model: TosaViT, listener: Listener) -> None:
        """Check that the labels fit the head."""
        check_labels(images, model.num_classes)
        if images.by_name:
            listener.say("Labels were matched with the model's classes by name.")

    def compare(self, model: TosaViT, dense: DenseModel | None, images: Images, **how: Any) -> dict[str, Any]:
        """Accuracy and time of both."""
        models: dict[str, nn.Module] = {"tosa": model}
        if dense is not None:
            models["dense"] = dense.model
        measured = measure_accuracy(models, images, **how)
        figures = {name: {**vars(found)} for name, found in measured.models.items()}
        report = {
            "samples": measured.samples,
            "skipped": measured.skipped,
            "labels": "by name" if images.by_name else "by position",
            **figures["tosa"],
            "data_seconds": measured.data_seconds,
        }
        if dense is not None:
            report["dense"] = {"weights": dense.weights, **figures["dense"]}
        return report

    def dense_figures(self, report: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those that were measured."""
        return report["dense"]
