"""Errors of depth maps, as the field measures them on NYU Depth v2 and KITTI.

The errors are those of Eigen et al. 2014 (arXiv 1406.2283, section 4), over the pixels that have a measured depth,
first averaged over an image and then over the images.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.measure.turns import Clock, run_in_turns


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


@dataclass(frozen=True)
class DepthReport:
    """What models do on the same images, each batch in turn.

    Attributes:
        samples: Images that were measured.
        skipped: Images that could not be read, or have no measured depth, with the reason.
        data_seconds: Time that loading took beyond the models'.
        models: Errors of each model by name.
        images_per_second: Images a second of each model alone, without loading.
    """

    samples: int
    skipped: list[str]
    data_seconds: float
    models: dict[str, DepthErrors]
    images_per_second: dict[str, float]


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


def flip_averaged(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A forward pass from images (B, C, height, width) to maps that is averaged with that of the mirrored images."""

    def run(images: Tensor) -> Tensor:
        return (forward(images) + forward(images.flip(-1)).flip(-1)) / 2

    return run


@torch.no_grad()
def measure_depth(
    models: dict[str, nn.Module],
    images: Any,
    *,
    min_depth: float,
    max_depth: float,
    flip: bool = False,
    device: torch.device | str = "cpu",
    amp: str = "no",
    strict: bool = False,
    advance: Callable[[int], None] = lambda num_images: None,
) -> DepthReport:
    """Measure depth models on images with depth maps.

    A prediction is brought to the size of the true map, bilinearly, and clamped to the range that counts.

    Args:
        models: Models by name, from images (B, C, height, width) to depth in metres (B, 1, height, width).
        images: Images to read once, in order; the targets are depth maps (height, width) in metres, 0 where a pixel
            does not count.
        min_depth: Smallest depth in metres.
        max_depth: Largest depth in metres.
        flip: Average the prediction with that of the mirrored image.
        device: Where to compute.
        amp: Mixed precision: `no`, `bf16` or `fp16`.
        strict: Stop at an image that cannot be read.
        advance: Told how many images are done.

    Raises:
        DataError: If no image could be read, or one could not and `strict` is set; or a depth map is wrong.
    """
    device = torch.device(device)
    forwards: dict[str, Any] = {name: model.to(device).eval() for name, model in models.items()}
    if flip:
        forwards = {name: flip_averaged(forward) for name, forward in forwards.items()}
    sums = {name: torch.zeros(len(DEPTH_FIGURES), dtype=torch.float64) for name in models}
    clock = Clock()
    turns = run_in_turns(forwards, images, clock, device=device, amp=amp, strict=strict, advance=advance)
    for batch, outputs in turns:
        for name, output in outputs.items():
            for predicted, depth in zip(output.float(), batch.targets, strict=True):
                full = _resized(predicted, depth.shape).cpu().clamp(min_depth, max_depth)
                counted = depth > 0
                sums[name] += depth_errors(full[counted], depth[counted])
    return DepthReport(
        samples=clock.samples,
        skipped=list(images.failed),
        data_seconds=clock.data_seconds,
        models={name: DepthErrors(*(total / clock.samples).tolist()) for name, total in sums.items()},
        images_per_second={name: clock.samples / seconds for name, seconds in clock.seconds.items()},
    )


def _resized(predicted: Tensor, size: torch.Size) -> Tensor:
    if predicted.shape[-2:] == size:
        return predicted[0]
    return F.interpolate(predicted[None], size=tuple(size), mode="bilinear")[0, 0]
