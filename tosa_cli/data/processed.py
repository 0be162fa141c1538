"""Photos of a folder as a model of transformers is given them, by its own processor."""

import inspect
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tosa_cli.data.images import to_color_mode
from tosa_cli.data.photos import find_photos
from tosa_cli.errors import CheckpointError, DataError, InputError
from tosa_cli.progress import NoProgress, Progress

NO_PROCESSOR = (
    "The model has no processor of images beside it, so photos cannot be prepared for it: save it there with "
    "processor.save_pretrained(FOLDER), or call tosa_cli from Python on your own batches."
)


class ProcessedPhotos:
    """Batches of photos, each a dictionary with `pixel_values`; those that can be put together are.

    Args:
        folder: The folder.
        processor: The model's processor.
        batch_size: Most images of a batch: processors that keep the shape of an image give them one by one.
        max_samples: Use so many, evenly spread; None uses all.
        files: The photos, where they are known already.

    Raises:
        DataError: If there are none, or, where they are read, if none can be used.
        InputError: If there is no processor.

    Attributes:
        skipped: Files that could not be read, with the reason.
    """

    def __init__(
        self,
        folder: str | Path,
        processor: Any,
        batch_size: int = 8,
        max_samples: int | None = None,
        files: Sequence[Path] | None = None,
    ) -> None:
        if processor is None:
            raise InputError(NO_PROCESSOR)
        if not folder:
            raise InputError("No photos were named: pass --data-dir PHOTOS.")
        self.processor = getattr(processor, "image_processor", processor)
        self.folder = folder
        files = find_photos([Path(folder)]) if files is None else files
        count = min(max_samples or len(files), len(files))
        self.files = [files[i * len(files) // count] for i in range(count)]
        self.batch_size = batch_size
        self.skipped: list[str] = []
        self.progress: Progress = NoProgress()

    def __len__(self) -> int:
        return -(-len(self.files) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.skipped = []
        waiting: list[Tensor] = []
        for file in self.files:
            pixels = self._read(file)
            if pixels is None:
                continue
            if waiting and (len(waiting) == self.batch_size or waiting[0].shape != pixels.shape):
                yield {"pixel_values": torch.cat(waiting)}
                waiting = []
            waiting.append(pixels)
        if not waiting:
            raise DataError(f"No image of {self.folder} can be used, the first of them {self.skipped[0]}.")
        yield {"pixel_values": torch.cat(waiting)}

    def _read(self, file: Path) -> Tensor | None:
        try:
            return _read_and_process(file, self.processor)
        except Exception as error:
            self.skipped.append(f"{file} ({_reason(error)})")
            return None


def prepare(file: Path, processor: Any) -> Tensor:
    """One photo as a model is given it, (1, C, height, width).

    Args:
        file: The photo.
        processor: The model's processor.

    Raises:
        DataError: If it cannot be read.
        InputError: If there is no processor.
    """
    if processor is None:
        raise InputError(NO_PROCESSOR)
    try:
        return _read_and_process(file, processor)
    except Exception as error:
        raise DataError(f"{file} cannot be read ({_reason(error)}). Name another image.") from error


def _read_and_process(file: Path, processor: Any) -> Tensor:
    with Image.open(file) as opened:
        image = to_color_mode(ImageOps.exif_transpose(opened), "RGB")
    return process(image, processor)


def process(image: Image.Image, processor: Any) -> Tensor:
    """One image in RGB as a model is given it, (1, C, height, width)."""
    processor = getattr(processor, "image_processor", processor)
    options: dict[str, Any] = {}
    if "boxes" in inspect.signature(processor.preprocess).parameters:
        options["boxes"] = [[[0.0, 0.0, float(image.width), float(image.height)]]]  # the whole image
    pixels: Tensor = processor(images=[image], return_tensors="pt", **options)["pixel_values"]
    if not pixels.isfinite().all():
        raise ValueError("by the mean, deviation and factor of the processor, its pixels are no finite numbers")
    return pixels


def _reason(error: Exception) -> str:
    """Why an image cannot be used: broken files make decoders, and odd ones processors, raise errors of any kind."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image, or broken"
    return " ".join(str(error).split())[:300] or type(error).__name__


def norm_of(processor: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel by which a processor normalises; 0.5 where it says nothing.

    Raises:
        CheckpointError: If they are none.
    """
    processor = getattr(processor, "image_processor", processor)
    found = []
    for name in ("image_mean", "image_std"):
        values = getattr(processor, name, None)
        channels = [0.5] * 3 if values is None else list(values) if isinstance(values, (list, tuple)) else [values] * 3
        numbers = [value for value in channels if isinstance(value, (int, float)) and math.isfinite(value)]
        if len(numbers) != len(channels) or len(channels) not in (1, 3) or (name == "image_std" and 0 in channels):
            raise CheckpointError(
                f"The processor of images has the {name} {values!r}, by which nothing can be normalised: it is one "
                f"finite number a channel, and as a deviation not 0."
            )
        found.append(channels)
    return found[0], found[1]


def shown_pixels(images: Tensor, processor: Any) -> Tensor:
    """One prepared image (1, 3, height, width) to look at, (height, width, 3) in 0..1."""
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in norm_of(processor))
    return (images[0].cpu() * std + mean).clamp(0, 1).permute(1, 2, 0)
