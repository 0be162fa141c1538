"""Photos for the training of a whole model: cropped and flipped, and normalised as its processor does."""

from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from tosa_cli.data.datasets import open_dataset, split_indices
from tosa_cli.data.description import Data
from tosa_cli.data.loading import Augmentation, Images, one_a_core, start_worker
from tosa_cli.data.processed import NO_PROCESSOR, norm_of, process
from tosa_cli.data.samples import ImageSamples, collate
from tosa_cli.errors import DataError, InputError

MAX_HELD_OUT = 64
"""Held-out images: they are measured often, with the dense model beside."""


class TrainingCrop:
    """A random crop of a photo, flipped half of the time: what the processor would be given, seen from elsewhere.

    Args:
        size: Height and width in pixels.
        processor: The model's processor, whose mean and standard deviation are taken.
        crop_scale: Smallest share of a photo that a crop covers.
        hflip: Probability of a flip.
    """

    def __init__(self, size: tuple[int, int], processor: Any, crop_scale: float, hflip: float) -> None:
        mean, std = norm_of(processor)
        self.size = size
        self.change = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(crop_scale, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(hflip),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
            ]
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """A photo as (C, height, width)."""
        return self.change(image)


class AsProcessed:
    """A photo as the processor prepares it, brought to one size so that several make a batch.

    Args:
        size: Height and width in pixels.
        processor: The model's processor.
    """

    def __init__(self, size: tuple[int, int], processor: Any) -> None:
        self.size = size
        self.processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        """A photo as (C, height, width)."""
        pixels = process(image, self.processor)
        if tuple(pixels.shape[-2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True)
        return pixels[0]


def open_training(
    data: Data,
    processor: Any,
    size: tuple[int, int],
    *,
    batch_size: int,
    workers: int,
    seed: int,
    augment: Augmentation | None,
) -> tuple[Images, Images]:
    """Photos to train on, and those of the same folder that are held out.

    Args:
        data: Which photos.
        processor: The model's processor.
        size: Height and width in pixels that the model is made for.
        batch_size: Photos a step.
        workers: Processes that load those to train on.
        seed: Seed of what stands in for a photo that cannot be read.
        augment: How the first are cropped and flipped, and that they are shuffled; None reads them as the held-out
            ones.

    Raises:
        DataError: If there are too few photos.
        InputError: If there is no processor, or no photos were named.
    """
    if processor is None:
        raise InputError(NO_PROCESSOR)
    if not data.data_dir:
        raise InputError("No photos were named: pass --data-dir PHOTOS.")
    opened = open_dataset(data.data_dir)
    training, held_out = split_indices(len(opened), data.max_samples, hold_out=True, max_held_out=MAX_HELD_OUT)
    if not held_out:
        raise DataError(
            f"1 image of {data.data_dir} would be read, and some have to be held out: add images, or pass a larger "
            f"--max-samples."
        )
    as_processed = AsProcessed(size, processor)
    crop = as_processed if augment is None else TrainingCrop(size, processor, augment.crop_scale, augment.hflip)

    def images(indices: list[int], transform: Any, shuffle: bool) -> Images:
        samples = ImageSamples(opened, indices, "RGB", substitute=shuffle, seed=seed)
        samples.transform = transform
        loader = _loader(samples, batch_size, workers, shuffle)
        return Images(loader, samples, len(samples), None, data.data_dir, held_out=not shuffle)

    return images(training, crop, shuffle=augment is not None), images(held_out, as_processed, shuffle=False)


def _loader(samples: ImageSamples, batch_size: int, workers: int, shuffle: bool) -> DataLoader[Any]:
    return DataLoader(
        samples,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=shuffle,
        num_workers=one_a_core(workers) if shuffle else 0,
        collate_fn=collate,
        worker_init_fn=partial(start_worker, None) if shuffle else None,
    )
