"""Images with maps to tensors; torchvision's transforms change image and map together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import resolve_input_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from tosa_cli.data.datasets import name_of, split_indices
from tosa_cli.data.formats import FORMATS, Format
from tosa_cli.data.images import color_mode, to_color_mode
from tosa_cli.data.loading import Images, one_a_core, start_worker
from tosa_cli.data.map_changes import ImageAlone, MapChanges, map_augmentation
from tosa_cli.data.maps import check_depth_unit, check_map, measured_pixels
from tosa_cli.data.pairs import Pairs
from tosa_cli.data.samples import MAX_CONSECUTIVE_FAILURES, Batch, reason_of
from tosa_cli.errors import DataError
from tosa_cli.seeding import seeded
from tosa_cli.task import IGNORED_LABEL, TaskConfig

MASKS_LOOKED_AT = 200
"""So many masks are read before training, to tell which classes have no pixel."""

BORDERED_SIZE = (640, 480)
"""Width and height of the images that have NYU's white frame."""


class WrongMap(str):
    """Why a map is wrong. Unlike a file that cannot be read, one such says that all may be wrong."""


@dataclass
class PairImages(Images):
    """A loader of images with maps."""

    def note(self, failed: list[str], strict: bool) -> None:
        """Take note of images that could not be read.

        Raises:
            DataError: If a map is wrong; or there is an image that could not be read and `strict` is set.
        """
        for reason in failed:
            if isinstance(reason, WrongMap):
                raise DataError(str(reason))
        super().note(failed, strict)


class PairSample(NamedTuple):
    """An image (C, height, width) with its map (height, width), or None; what failed."""

    image: Tensor | None
    target: Tensor | None
    failed: list[str]


class PairSamples(Dataset[PairSample]):
    """Some pairs, as tensors.

    Args:
        pairs: The images with maps.
        indices: Which of them.
        mode: Pillow's mode that the images are brought to.
        task: What the maps hold.
        defaults: What is usual with their format.
        transform: Changes an image and its map together; the map keeps its size if it changes the image alone.
        training: Give the next readable pair in the place of a broken one, so that batches stay of one size, and leave
            the pixels in that evaluation does not count; otherwise leave a broken one out.
        seed: Seed of the augmentation.
    """

    def __init__(
        self,
        pairs: Pairs,
        indices: Sequence[int],
        mode: str,
        task: TaskConfig,
        defaults: Format,
        transform: Any,
        training: bool,
        seed: int,
    ) -> None:
        self.pairs, self.indices, self.mode, self.task, self.defaults = pairs, indices, mode, task, defaults
        self.transform, self.training, self.seed = transform, training, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which the augmentation depends."""
        self.epoch = epoch

    def files(self) -> list[Path]:
        """The files of the images and of their maps."""
        return [path for index in self.indices for path in self.pairs.paths(index)]

    def __getitem__(self, position: int) -> PairSample:
        failed: list[str] = []
        for offset in range(min(len(self), MAX_CONSECUTIVE_FAILURES)):
            index = self.indices[(position + offset) % len(self)]
            try:
                image, target = self._read(index)
            except Exception as error:  # broken files make the decoders raise errors of any kind
                named = f"{self.pairs.filename(index)} ({reason_of(error)})"
                failed.append(WrongMap(str(error)) if isinstance(error, DataError) else named)
                if not self.training:
                    break
                continue
            with seeded(self.seed, self.epoch, index):
                image, target = self.transform(image, target)
            return PairSample(image, target.squeeze(0).as_subclass(Tensor), failed)
        return PairSample(None, None, failed)

    def check_first(self) -> None:
        """Check the first map, so that a wrong format is told before any work is done.

        Raises:
            DataError: If it is of the wrong size, type or unit.
        """
        if not len(self):
            raise DataError(f"{self.pairs.folder} holds no images with a map: name another folder with --data-dir.")
        try:
            self._read(self.indices[0])
        except DataError:
            raise
        except Exception:
            return  # one file that cannot be read is named when its turn comes

    def _read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """An image (C, height, width) and its map (1, height, width), cut as is usual with the format."""
        name = self.pairs.filename(index)
        image, values = self.pairs.read(index)
        check_map(name, image, values)
        target = torch.from_numpy(np.ascontiguousarray(values))
        if self.task.task == "depth":
            check_depth_unit(name, values, self.task.min_depth, self.task.max_depth)
            crop = "none" if self.training else self.defaults.crop
            counted = measured_pixels(target, self.task.min_depth, self.task.max_depth, crop)
            if self.training and self.defaults.border is not None and image.size == BORDERED_SIZE:
                left, top, right, bottom = self.defaults.border
                inside = torch.zeros_like(counted)
                inside[top:bottom, left:right] = True
                counted &= inside
            target = torch.where(counted, target, 0.0)
        else:
            self._check_labels(name, target)
        box = _format_box(image, self.defaults)
        left, top, right, bottom = box
        target = target[top:bottom, left:right]
        if self.task.task == "depth" and not target.any():
            raise ValueError("no depth was measured in the part that counts")
        pixels = v2.functional.pil_to_tensor(to_color_mode(image.crop(box), self.mode))
        return tv_tensors.Image(pixels), tv_tensors.Mask(target[None])

    def _check_labels(self, name: str, labels: Tensor) -> None:
        known = labels[labels != IGNORED_LABEL]
        if known.numel() and int(known.max()) >= self.task.num_labels:
            largest = int(known.max())
            raise DataError(
                f"The mask of {name} has class {largest}, but --num-labels is {self.task.num_labels} (0 to "
                f"{self.task.num_labels - 1}; 255 is no class). Pass --num-labels {largest + 1}, also for masks that "
                f"count from 1, or name what is no class with --ignore-index."
            )


def count_labels(samples: PairSamples, num_labels: int) -> tuple[list[int], int, int]:
    """Count the pixels of each class in masks, evenly spread over the data; those that cannot be read are passed over.

    Args:
        samples: Images with masks.
        num_labels: Number of classes.

    Returns:
        Pixels of each class, and at last of none; how many masks were looked at; and how many there are.
    """
    chosen, _ = split_indices(len(samples), MASKS_LOOKED_AT, hold_out=False)
    counts, seen = np.zeros(IGNORED_LABEL + 1, dtype=np.int64), 0
    for position in chosen:
        try:
            _, labels = samples.pairs.read(samples.indices[position])
        except Exception:
            continue  # it is named when its turn comes
        counts += np.bincount(labels.ravel(), minlength=len(counts))
        seen += 1
    return [*counts[:num_labels].tolist(), int(counts[IGNORED_LABEL])], seen, len(samples)


def _format_box(image: Image.Image, defaults: Format) -> tuple[int, int, int, int]:
    """The part (left, top, right, bottom) of an image that is used."""
    width, height = image.size
    if defaults.bottom_crop is not None:
        rows, columns = defaults.bottom_crop
        top, left = max(0, height - rows), max(0, (width - columns) // 2)
        return left, top, min(width, left + columns), height
    return 0, 0, width, height


def pairs_to_read(
    pairs: Pairs,
    encoder: nn.Module,
    task: TaskConfig,
    *,
    data_format: str,
    img_size: tuple[int, int] | None,
    batch_size: int,
    workers: int = 0,
    indices: Sequence[int] | None = None,
    augment: MapChanges | None = None,
    seed: int = 0,
    held_out: bool = False,
) -> PairImages:
    """Make a loader with the transforms that an encoder expects.

    For training, images that keep their size are cut to random crops of `img_size`, and others to random crops that are
    brought to it. For evaluation an image is read whole, brought to `img_size` if one is given, and its map keeps its
    own size.

    Args:
        pairs: The images with maps.
        encoder: The encoder, whose `pretrained_cfg` tells mean and standard deviation.
        task: What the maps hold.
        data_format: `folder`, `nyu` or `kitti`.
        img_size: Image size (height, width) in pixels; None leaves the images of an evaluation as they are.
        batch_size: Images a step.
        workers: Processes that load data, at most one a core.
        indices: Which pairs to read; None reads all.
        augment: Shuffle and augment for training by these settings; None reads each pair once, in order.
        seed: Seed of shuffling and augmentation.
        held_out: Whether these are only the images that a run is measured on.

    Raises:
        DataError: If image files do not have as many channels as the encoder takes.
    """
    defaults = FORMATS[data_format]
    config = resolve_input_data_config(encoder)
    mode = color_mode(config["input_size"][0])
    to_tensor = v2.Compose(
        [
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(config["mean"], config["std"]),
        ]
    )
    steps: list[Any]
    if augment is not None:
        if img_size is None:
            raise ValueError("Training needs an image size.")
        steps = map_augmentation(augment, defaults, task, img_size)
    else:
        steps = [ImageAlone(v2.Resize(img_size, antialias=True))] if img_size else []
    training = augment is not None
    chosen = range(len(pairs)) if indices is None else indices
    samples = PairSamples(pairs, chosen, mode, task, defaults, v2.Compose([*steps, to_tensor]), training, seed)
    samples.check_first()
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_size=batch_size,
        shuffle=training,
        drop_last=training,
        num_workers=one_a_core(workers),
        collate_fn=_collate_training if training else _collate,
        worker_init_fn=partial(start_worker, None),
    )
    return PairImages(loader, samples, len(samples), None, name_of(pairs.folder), held_out=held_out)


def _collate_training(samples: list[PairSample]) -> Batch:
    read, failed = _read_samples(samples)
    if not read:
        return Batch(torch.empty(0), torch.empty(0), failed)
    return Batch(torch.stack([image for image, _ in read]), torch.stack([target for _, target in read]), failed)


def _collate(samples: list[PairSample]) -> Batch:
    """Put samples into a batch whose targets are a list, as maps may be of different sizes."""
    read, failed = _read_samples(samples)
    sizes = {tuple(image.shape[-2:]) for image, _ in read}
    if len(sizes) > 1:
        shown = " and ".join("x".join(map(str, size)) for size in sorted(sizes)[:2])
        failed.append(WrongMap(f"Images of a batch are of different sizes ({shown}): pass --img-size, or -b 1."))
    if not read or len(sizes) > 1:
        return Batch(torch.empty(0), torch.empty(0), failed)
    return Batch(torch.stack([image for image, _ in read]), [target for _, target in read], failed)  # type: ignore[arg-type]


def _read_samples(samples: list[PairSample]) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    read = [
        (sample.image.as_subclass(Tensor), sample.target)
        for sample in samples
        if sample.image is not None and sample.target is not None
    ]
    return read, [name for sample in samples for name in sample.failed]
