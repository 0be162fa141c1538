"""Photos of a folder as a model of transformers is given them, by its own processor."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tosa_cli.data.photos import find_photos
from tosa_cli.errors import InputError
from tosa_cli.progress import NoProgress, Progress


class ProcessedPhotos:
    """Batches of photos, each a dictionary with `pixel_values`; those that can be put together are.

    Args:
        folder: The folder.
        processor: The model's processor.
        batch_size: Most images of a batch: processors that keep the shape of an image give them one by one.
        max_samples: Use so many, evenly spread; None uses all.

    Raises:
        DataError: If there are none.
        InputError: If there is no processor.

    Attributes:
        skipped: Files that could not be read, with the reason.
    """

    def __init__(self, folder: str | Path, processor: Any, batch_size: int = 8, max_samples: int | None = None) -> None:
        if processor is None:
            raise InputError(
                "The model has no processor of images beside it, so photos cannot be prepared for it: save it there "
                "with processor.save_pretrained(FOLDER), or call tosa_cli from Python on your own batches."
            )
        if not folder:
            raise InputError("No photos were named: pass --data-dir PHOTOS.")
        self.processor = getattr(processor, "image_processor", processor)
        files = find_photos([Path(folder)])
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
            image = self._read(file)
            if image is None:
                continue
            pixels = self._process(image)
            if waiting and (len(waiting) == self.batch_size or waiting[0].shape != pixels.shape):
                yield {"pixel_values": torch.cat(waiting)}
                waiting = []
            waiting.append(pixels)
        if waiting:
            yield {"pixel_values": torch.cat(waiting)}

    def _read(self, file: Path) -> Image.Image | None:
        try:
            with Image.open(file) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, UnidentifiedImageError, ValueError) as error:
            self.skipped.append(f"{file} ({' '.join(str(error).split())})")
            return None

    def _process(self, image: Image.Image) -> Tensor:
        options: dict[str, Any] = {}
        if "boxes" in inspect.signature(self.processor.preprocess).parameters:
            options["boxes"] = [[[0.0, 0.0, float(image.width), float(image.height)]]]  # the whole image
        pixels: Tensor = self.processor(images=[image], return_tensors="pt", **options)["pixel_values"]
        return pixels
