"""Top-1 and top-5 accuracy and images a second, alone or beside the dense model on the same images."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import accuracy
from torch import nn

from tosa_cli.measure.turns import Clock, run_in_turns


@dataclass(frozen=True)
class Accuracy:
    """What one model does on a data set.

    Attributes:
        top1: Share of images whose class is the first guess, in percent.
        top5: Share of images whose class is among the first five guesses, in percent.
        images_per_second: Images a second of the model alone, without loading.
        model_seconds: Time of the model.
    """

    top1: float
    top5: float
    images_per_second: float
    model_seconds: float


@dataclass(frozen=True)
class AccuracyReport:
    """What models do on the same images, each batch in turn.

    Attributes:
        samples: Images that were read and measured.
        skipped: Images that could not be read, with the reason.
        data_seconds: Time that loading took beyond the models'.
        models: Result of each model by name.
    """

    samples: int
    skipped: list[str]
    data_seconds: float
    models: dict[str, Accuracy]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


@torch.no_grad()
def measure_accuracy(
    models: dict[str, nn.Module],
    images: Any,
    *,
    device: torch.device | str = "cpu",
    amp: str = "no",
    strict: bool = False,
    advance: Callable[[int], None] = lambda num_images: None,
) -> AccuracyReport:
    """Measure classifiers on labelled images.

    Args:
        models: Models by name; each sees the same images.
        images: `Images` to read once, in order.
        device: Where to compute.
        amp: Mixed precision: `no`, `bf16` or `fp16`.
        strict: Stop at an image that cannot be read.
        advance: Told how many images are done.

    Raises:
        DataError: If no image could be read, or one could not and `strict` is set; or a label does not fit.
    """
    device = torch.device(device)
    models = {name: model.to(device).eval() for name, model in models.items()}
    num_classes: Any = next(iter(models.values())).num_classes
    correct = {name: [0, 0] for name in models}
    clock = Clock()
    turns = run_in_turns(models, images, clock, device=device, amp=amp, strict=strict, advance=advance)
    for batch, outputs in turns:
        images.check_targets(batch.targets, num_classes)
        targets = batch.targets.to(device)
        for name, output in outputs.items():
            top = accuracy(output.float(), targets, topk=(1, min(5, output.shape[-1])))
            for k, value in enumerate(top):
                correct[name][k] += round(value.item() * len(targets) / 100)
    samples, seconds = clock.samples, clock.seconds
    return AccuracyReport(
        samples,
        list(images.failed),
        clock.data_seconds,
        {
            name: Accuracy(
                100 * correct[name][0] / samples,
                100 * correct[name][1] / samples,
                samples / seconds[name],
                seconds[name],
            )
            for name in models
        },
    )
