"""The one evaluation loop: models on the same images, each batch in turn, and what a measure makes of it."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from tosa_cli.measure.turns import Clock, run_in_turns

Figures = TypeVar("Figures")
"""What is measured of one model, a dataclass."""


class Measure(ABC, Generic[Figures]):
    """What models do on images, summed up batch by batch; one object measures once."""

    def forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """The forward pass of a model whose outputs are measured, from images (B, C, height, width)."""
        return model

    @abstractmethod
    def add(self, images: Any, targets: Any, outputs: Mapping[str, Tensor]) -> None:
        """Take one batch in.

        Args:
            images: The images that are read, which can check targets.
            targets: The targets of the batch.
            outputs: What the forward pass of each model gave, by name.

        Raises:
            DataError: If a target is wrong.
        """

    def scores(self) -> list[float]:
        """One number an image, larger is better, in the order of the images; none where only all have one."""
        return []

    @abstractmethod
    def figures(self, samples: int) -> dict[str, Figures]:
        """The figures of the models that are measured, by name, after so many images."""


@dataclass(frozen=True)
class Measured(Generic[Figures]):
    """What models do on the same images.

    Attributes:
        samples: Images that were read and measured.
        skipped: Images that could not be read, with the reason.
        data_seconds: Time that loading took beyond the models'.
        models: Figures of each model by name.
        seconds: Time of each model alone, without loading.
    """

    samples: int
    skipped: list[str]
    data_seconds: float
    models: dict[str, Figures]
    seconds: dict[str, float]

    @property
    def images_per_second(self) -> dict[str, float]:
        """Images a second of each model alone, without loading."""
        return {name: self.samples / seconds for name, seconds in self.seconds.items()}


@torch.no_grad()
def measure_models(
    models: Mapping[str, nn.Module],
    images: Any,
    measure: Measure[Figures],
    *,
    device: torch.device | str = "cpu",
    amp: str = "no",
    strict: bool = False,
    advance: Callable[[int], None] = lambda num_images: None,
) -> Measured[Figures]:
    """Measure models on images.

    Args:
        models: Models by name; each sees the same images.
        images: `Images` to read once, in order.
        measure: What is measured.
        device: Where to compute.
        amp: Mixed precision: `no`, `bf16` or `fp16`.
        strict: Stop at an image that cannot be read.
        advance: Told how many images are done.

    Raises:
        DataError: If no image could be read, or one could not and `strict` is set; or a target is wrong.

    Returns:
        What was measured; of a model that gave outputs that are not finite, all figures are NaN.
    """
    device = torch.device(device)
    forwards = {name: measure.forward(model.to(device).eval()) for name, model in models.items()}
    clock = Clock()
    turns = run_in_turns(forwards, images, clock, device=device, amp=amp, strict=strict, advance=advance)
    for batch, outputs in turns:
        measure.add(images, batch.targets, outputs)
    figures = measure.figures(clock.samples)
    # What is not finite compares with anything, so that a guess is made of it; but it says nothing.
    figures |= {name: _without_numbers(figures[name]) for name in clock.not_finite & figures.keys()}
    return Measured(clock.samples, list(images.failed), clock.data_seconds, figures, clock.seconds)


def _without_numbers(figures: Any) -> Any:
    """Figures, all of which are NaN but those that there are not."""
    known = {name: math.nan for name, value in vars(figures).items() if value is not None}
    return dataclasses.replace(figures, **known)
