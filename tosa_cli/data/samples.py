"""Images read one by one, through the readers of timm's data sets.

Added to timm's: an image that cannot be read is named and counted, never passed over in silence; and the random
numbers of an image depend on seed, epoch and image alone, so that a resumed run sees what it would have seen.
"""

import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from tosa_cli.data.images import to_color_mode
from tosa_cli.seeding import seeded

MAX_CONSECUTIVE_FAILURES = 50


class Batch(NamedTuple):
    """Images of one step.

    Attributes:
        images: Normalised images (B, C, height, width).
        targets: Class indices (B,); -1 where there is no label.
        failed: Names of images that could not be read, with the reason.
    """

    images: Tensor
    targets: Tensor
    failed: list[str]


class Sample(NamedTuple):
    """One image (C, height, width), or None where it could not be read; its class; what failed."""

    image: Tensor | None
    target: int
    failed: list[str]


class ImageSamples(Dataset[Sample]):
    """Some images of a timm data set.

    Args:
        dataset: timm's data set.
        indices: Which of its images.
        mode: Pillow's mode that they are brought to.
        substitute: Give the next readable image in the place of a broken one, so that batches stay of one size;
            otherwise leave it out.
        seed: Seed of the augmentation.
    """

    def __init__(self, dataset: Any, indices: Sequence[int], mode: str, substitute: bool, seed: int) -> None:
        self.dataset = dataset
        self.indices = indices
        self.mode = mode
        self.substitute = substitute
        self.seed = seed
        self.epoch = 0
        self.transform: Any = None  # timm's create_loader sets it

    def __len__(self) -> int:
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which the augmentation depends."""
        self.epoch = epoch

    def files(self) -> list[Path]:
        """The files of the images; none where they are not in files of their own."""
        files = getattr(self.dataset.reader, "samples", None)
        return [Path(files[index][0]) for index in self.indices] if isinstance(files, list) else []

    def __getitem__(self, position: int) -> Sample:
        failed: list[str] = []
        for offset in range(min(len(self), MAX_CONSECUTIVE_FAILURES)):
            index = self.indices[(position + offset) % len(self)]
            try:
                file, target, *_ = self.dataset.reader[index]
                with file:
                    image = to_color_mode(Image.open(file), self.mode)
            except Exception as error:  # broken files make Pillow's decoders raise errors of any kind
                failed.append(f"{self._name(index)} ({reason_of(error)})")
                if not self.substitute:
                    break
                continue
            with seeded(self.seed, self.epoch, index):
                return Sample(self.transform(image), _class_index(target), failed)
        return Sample(None, -1, failed)

    def _name(self, index: int) -> str:
        name = ""
        with contextlib.suppress(Exception):  # a row without an image has no name either
            name = self.dataset.filename(index, absolute=True)
        return name or f"image {index}"


class StreamedSamples(IterableDataset[Sample]):
    """A timm data set that can only be read in order, such as WebDataset's.

    Args:
        dataset: timm's data set.
        mode: Pillow's mode that the images are brought to.
        seed: Seed of the augmentation.
        first: Read so many images and no more, for which one worker at most may load; None reads all.
    """

    def __init__(self, dataset: Any, mode: str, seed: int, first: int | None = None) -> None:
        self.dataset = dataset
        self.mode = mode
        self.seed = seed
        self.first = first
        self.epoch = 0
        self.transform: Any = None  # timm's create_loader sets it

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which order and augmentation depend."""
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def files(self) -> list[Path]:
        """None: the images are in archives."""
        return []

    def set_loader_cfg(self, num_workers: int | None = None) -> None:
        """Pass the number of workers on to timm\'s reader."""
        self.dataset.set_loader_cfg(num_workers=num_workers)

    def __len__(self) -> int:
        whole = len(self.dataset)
        return whole if self.first is None else min(self.first, whole)

    def __iter__(self) -> Iterator[Sample]:
        reader, worker = self.dataset.reader, get_worker_info()
        reader.input_img_mode = ""  # timm would cut off what has 16 bits
        place = (getattr(reader, "dist_rank", 0), worker.id if worker else 0)
        with _broken_samples(reader) as failed:
            for number, (image, target) in enumerate(itertools.islice(self.dataset, self.first)):
                try:
                    image = to_color_mode(image, self.mode)
                except ValueError as error:
                    failed.append(f"image {number + 1} ({reason_of(error)})")
                    continue
                names = failed.copy()
                failed.clear()
                with seeded(self.seed, self.epoch, *place, number):
                    sample = Sample(self.transform(image), _class_index(target), names)
                yield sample
            if failed and not getattr(reader, "is_training", False):
                yield Sample(None, -1, failed.copy())


def _class_index(target: Any) -> int:
    return int(target) if isinstance(target, (int, np.integer)) else -1


def reason_of(error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or broken"
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _broken_samples(reader: Any) -> Iterator[list[str]]:
    """Collect what timm's reader of WebDataset shards cannot read; by itself it logs the error without a name."""
    failed: list[str] = []
    current = ""

    def remember(samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        nonlocal current
        for sample in samples:
            current = f"{sample.get('__url__', '')}: {sample.get('__key__', '')}"
            yield sample

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().removeprefix("Handling webdataset error (").removesuffix("). Ignoring.")
            failed.append(f"{current} ({text})" if current else text)

    if hasattr(reader, "_lazy_init"):
        reader.ds = None  # a pipeline that was read before would go on with its old random numbers
        reader._lazy_init()
        reader.ds.pipeline.insert(-2, remember)  # before the step that decodes
    logger, handler = logging.getLogger(type(reader).__module__), Collect(logging.WARNING)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield failed
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def collate(samples: list[Sample], order: Sequence[int] | None = None) -> Batch:
    """Put samples into a batch; those that could not be read are left out and named.

    Args:
        samples: The samples.
        order: The class index to give in the place of each; None leaves them.
    """
    read = [sample for sample in samples if sample.image is not None]
    failed = [name for sample in samples for name in sample.failed]
    if not read:
        return Batch(torch.empty(0), torch.empty(0, dtype=torch.long), failed)
    images = torch.stack([sample.image for sample in read])  # type: ignore[misc]
    targets = [sample.target if order is None or sample.target < 0 else order[sample.target] for sample in read]
    return Batch(images, torch.tensor(targets), failed)
