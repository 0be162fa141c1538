"""Mean intersection over union of class maps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tosa_cli.measure.depth import flip_averaged
from tosa_cli.measure.turns import Clock, run_in_turns
from tosa_cli.task import IGNORED_LABEL


@dataclass(frozen=True)
class SegmentationFigures:
    """What one model does on a data set; shares of all pixels together, from 0 to 1.

    Attributes:
        miou: Mean over the classes of intersection over union; a class that is in no mask and no prediction is left
            out.
        pixel_accuracy: Share of pixels whose class is right.
    """

    miou: float
    pixel_accuracy: float


@dataclass(frozen=True)
class SegmentationReport:
    """What models do on the same images, each batch in turn.

    Attributes:
        samples: Images that were measured.
        skipped: Images that could not be read, with the reason.
        data_seconds: Time that loading took beyond the models'.
        models: Figures of each model by name.
        images_per_second: Images a second of each model alone, without loading.
    """

    samples: int
    skipped: list[str]
    data_seconds: float
    models: dict[str, SegmentationFigures]
    images_per_second: dict[str, float]


def figures_of(counts: np.ndarray) -> SegmentationFigures:
    """Figures of a confusion matrix of pixels (true class, predicted class)."""
    right, union = np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts)
    present = union > 0
    miou = float((right[present] / union[present]).mean()) if present.any() else float("nan")
    return SegmentationFigures(miou, float(right.sum() / max(1, counts.sum())))


@torch.no_grad()
def measure_segmentation(
    models: dict[str, nn.Module],
    images: Any,
    *,
    num_labels: int,
    flip: bool = False,
    device: torch.device | str = "cpu",
    amp: str = "no",
    strict: bool = False,
    advance: Callable[[int], None] = lambda num_images: None,
) -> SegmentationReport:
    """Measure segmentation models on images with masks; class logits are brought to the size of the mask.

    Args:
        models: Models by name, from images (B, C, height, width) to class logits (B, num_labels, height, width).
        images: Images to read once, in order; the targets are class indices (height, width), 255 for no class.
        num_labels: Number of classes.
        flip: Average the logits with those of the mirrored image.
        device: Where to compute.
        amp: Mixed precision: `no`, `bf16` or `fp16`.
        strict: Stop at an image that cannot be read.
        advance: Told how many images are done.

    Raises:
        DataError: If no image could be read, or one could not and `strict` is set; or a mask is wrong.
    """
    device = torch.device(device)
    forwards: dict[str, Any] = {name: model.to(device).eval() for name, model in models.items()}
    if flip:
        forwards = {name: flip_averaged(forward) for name, forward in forwards.items()}
    counts = {name: np.zeros((num_labels, num_labels), dtype=np.int64) for name in models}
    clock = Clock()
    turns = run_in_turns(forwards, images, clock, device=device, amp=amp, strict=strict, advance=advance)
    for batch, outputs in turns:
        for name, output in outputs.items():
            for logits, labels in zip(output.float(), batch.targets, strict=True):
                known = labels != IGNORED_LABEL
                if not known.any():
                    continue
                full = F.interpolate(logits[None], size=tuple(labels.shape), mode="bilinear")[0].argmax(dim=0).cpu()
                pairs = labels[known].long() * num_labels + full[known]
                counts[name] += pairs.bincount(minlength=num_labels**2).view(num_labels, num_labels).numpy()
    return SegmentationReport(
        samples=clock.samples,
        skipped=list(images.failed),
        data_seconds=clock.data_seconds,
        models={name: figures_of(count) for name, count in counts.items()},
        images_per_second={name: clock.samples / seconds for name, seconds in clock.seconds.items()},
    )
