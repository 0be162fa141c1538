"""Random changes to a training image and its map together."""

import math
from typing import Any, Protocol

from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from tosa_cli.data.formats import Format
from tosa_cli.task import IGNORED_LABEL, TaskConfig


class MapChanges(Protocol):
    """Random changes to a training image and its map together; the settings of finetuning are such."""

    @property
    def crop_scale(self) -> float:
        """Smallest share of an image that a crop covers, where images do not keep their size."""

    @property
    def hflip(self) -> float:
        """Probability of a horizontal flip."""

    @property
    def color_jitter(self) -> float:
        """Strength of color jitter, which leaves the map."""

    @property
    def rotation(self) -> float:
        """Largest angle in degrees."""


class ImageAlone(nn.Module):
    """Applies a transform to the image and leaves its map as it is."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, image: Any, target: Any) -> tuple[Any, Any]:
        """The changed image, and the map as it is."""
        return self.transform(image), target


def map_augmentation(config: MapChanges, defaults: Format, task: TaskConfig, size: tuple[int, int]) -> list[Any]:
    """The transforms of torchvision that change a training image of size (height, width) in pixels with its map."""
    fill = {tv_tensors.Mask: 0 if task.task == "depth" else IGNORED_LABEL, "others": 0}
    steps: list[Any] = []
    if config.rotation:
        steps.append(v2.RandomRotation(config.rotation, interpolation=InterpolationMode.BILINEAR, fill=fill))
    if defaults.full_size:
        steps.append(v2.RandomCrop(size, pad_if_needed=True, fill=fill))
    else:
        # Scaled as for evaluation, and so that the smallest crop has the size already.
        height, width = size
        larger = [math.ceil(extent / math.sqrt(config.crop_scale)) for extent in size]
        scale, ratio = (config.crop_scale, 1.0), (width / height, width / height)
        steps += [v2.Resize(larger, antialias=True), v2.RandomResizedCrop(size, scale, ratio, antialias=True)]
    steps.append(v2.RandomHorizontalFlip(config.hflip))
    if config.color_jitter:
        strength = config.color_jitter
        steps.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
    return steps
