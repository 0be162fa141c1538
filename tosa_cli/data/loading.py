"""Images to tensors, through timm's data sets, transforms and loaders."""

import contextlib
import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from timm.data import create_loader, create_transform, resolve_input_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tosa_cli import interrupts
from tosa_cli.data.class_folders import ClassFolders
from tosa_cli.data.datasets import is_streamed
from tosa_cli.data.images import color_mode
from tosa_cli.data.labels import Labels, find_labels
from tosa_cli.data.samples import Batch, ImageSamples, StreamedSamples, collate
from tosa_cli.errors import ConfigError, DataError
from tosa_cli.model.class_names import class_descriptions, class_names

GRACE_SECONDS = 60
"""How long a process that loads data goes on once it is told to end, so that the main one can write a checkpoint."""


@dataclass
class Augmentation:
    """Random changes to training images, by the names of timm's training script; the default is none but a crop."""

    crop_scale: float = 0.35
    hflip: float = 0.5
    color_jitter: float = 0.0
    auto_augment: str = ""
    reprob: float = 0.0


@dataclass
class Images:
    """A loader and what it reads.

    Attributes:
        loader: Yields `Batch`.
        samples: The data set behind it.
        num_images: Number of images a pass.
        classes: Names of the classes, in the order of the labels; None where they are not known.
        name: What to call the data.
        labels: Which label is which class of the model.
        held_out: Whether these are only the images that a run is measured on.
        is_labelled: Whether every image is known to have a label.
        failed: Images that could not be read so far; `note` adds to it.
    """

    loader: DataLoader[Any]
    samples: Any
    num_images: int
    classes: list[str] | None
    name: str
    labels: Labels = field(default_factory=Labels)
    held_out: bool = False
    is_labelled: bool = False
    failed: dict[str, None] = field(default_factory=dict)

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None where it is not known."""
        return None if self.classes is None else len(self.classes)

    @property
    def by_name(self) -> bool:
        """Whether labels were put into the order of the model's own class names."""
        return self.labels.by == "name"

    @cached_property
    def fingerprint(self) -> str | None:
        """What tells these images from others: a hash of names, sizes and times of their files; None without files."""
        files = self.samples.files()
        if not files:
            return None
        digest = hashlib.sha256()
        for path in files:
            digest.update(os.fsencode(path))
            with contextlib.suppress(OSError):
                found = path.stat()
                digest.update(f" {found.st_size} {found.st_mtime_ns}".encode())
        return digest.hexdigest()

    def note(self, failed: list[str], strict: bool) -> None:
        """Take note of images that could not be read.

        Raises:
            DataError: If there is one and `strict` is set.
        """
        self.failed.update(dict.fromkeys(failed))
        if strict and failed:
            raise DataError(f"{failed[0]} cannot be read. Remove it, or leave out --strict to skip such images.")

    def check_targets(self, targets: Tensor, num_classes: int) -> None:
        """Check labels (B,): of some data it is not known beforehand which there are.

        Raises:
            DataError: If there is a label that the model's head does not have, or an image without one.
        """
        if not len(targets) or (self.is_labelled and self.num_classes is not None):
            return
        low, high = int(targets.min()), int(targets.max())
        if low < 0:
            raise DataError(f"{self.name} has images without a label, but labels are needed here. Name other data.")
        if high >= num_classes:
            raise DataError(
                f"{self.name} has the label {high}, but the model's head has {num_classes} classes (0 to "
                f"{num_classes - 1}). Convert the source with --num-classes to give it another head."
            )

    def batches(self, strict: bool) -> Iterator[Batch]:
        """Read each image once, in order.

        Raises:
            DataError: If no image can be read, or one cannot and `strict` is set.
        """
        some = False
        for batch in self.loader:
            self.note(batch.failed, strict)
            if len(batch.images):
                some = True
                yield batch
        if not some:
            first = next(iter(self.failed), "")
            if not first:
                raise DataError(f"{self.name} holds no images. Check the data.")
            if self.held_out:
                raise DataError(
                    f"None of the held-out images of {self.name} can be read, the first is {first}. Remove "
                    f"broken images, or name others to hold out with --val-dir."
                )
            raise DataError(f"None of the images of {self.name} can be read, the first is {first}. Check the data.")


def images_to_read(
    opened: Any,
    model: nn.Module,
    *,
    indices: Sequence[int] | None = None,
    first: int | None = None,
    batch_size: int,
    workers: int = 0,
    seed: int = 0,
    augment: Augmentation | None = None,
    img_size: tuple[int, int] | None = None,
    name: str = "",
    held_out: bool = False,
    class_map: Mapping[str, int] | None = None,
    learned: Sequence[str] | None = None,
) -> Images:
    """Make a loader with the transforms that a model expects.

    Where the model has class names and all of the data's are among them, labels are put into the model's order; see
    `find_labels`.

    Args:
        opened: A data set from `open_dataset`.
        model: The model, whose `pretrained_cfg` tells size, crop, mean and standard deviation; for one channel images
            are read in greyscale.
        indices: Which images to read; None reads all.
        first: Of data that can only be read in order, read so many images; None reads all.
        batch_size: Images a step.
        workers: Processes that load data, at most one a core.
        seed: Seed of shuffling and augmentation.
        augment: Shuffle and augment for training; None reads each image once, in order, as for evaluation.
        img_size: Image size (height, width) in pixels; None takes the model's.
        name: What to call the data.
        held_out: Whether these are only the images that a run is measured on.
        class_map: The model's outputs by the names of the data's classes.
        learned: Names of the classes that a run learns, in the order of its outputs, in the place of the model's.

    Raises:
        ConfigError: If timm knows no such augmentation policy.
        DataError: If image files do not have as many channels as the model takes.
    """
    config = resolve_input_data_config(model)
    mode = color_mode(config["input_size"][0])
    class_to_idx = getattr(getattr(opened, "reader", None), "class_to_idx", None)
    classes = sorted(class_to_idx, key=class_to_idx.get) if class_to_idx else None
    if classes is None and isinstance(opened.reader, ClassFolders):
        classes = []
    labels = find_labels(
        classes,
        class_names(model) if learned is None else learned,
        num_classes=model.num_classes,  # type: ignore[arg-type]
        shown=name,
        facts=getattr(opened.reader, "label_facts", None),
        class_map=class_map,
        descriptions=class_descriptions(model) if learned is None else (),
        must_match=learned is not None,
    )
    size = img_size or tuple(model.patch_embed.img_size)  # type: ignore[union-attr, arg-type]
    workers = one_a_core(workers)
    samples: Any
    if is_streamed(opened):
        samples = StreamedSamples(opened, mode, seed, first)
        # Several workers would each begin with other shards, and their number would decide which images are read.
        workers = _usable_workers(opened.reader, workers if first is None else min(workers, 1), name)
    else:
        chosen = range(len(opened)) if indices is None else indices
        samples = ImageSamples(opened, chosen, mode, substitute=augment is not None, seed=seed)
    augment_args: dict[str, Any] = {}
    if augment is not None:
        _check_policy(augment.auto_augment)
        augment_args = {
            "scale": (augment.crop_scale, 1.0),
            "hflip": augment.hflip,
            "color_jitter": augment.color_jitter,
            "auto_augment": augment.auto_augment or None,
            "re_prob": augment.reprob,
        }
    loader = create_loader(
        samples,
        input_size=(config["input_size"][0], *size),
        batch_size=batch_size,
        is_training=augment is not None,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        num_workers=workers,
        collate_fn=partial(collate, order=labels.order),
        use_prefetcher=False,
        persistent_workers=False,
        **augment_args,
    )
    loader.worker_init_fn = partial(start_worker, loader.worker_init_fn)
    is_labelled = isinstance(opened.reader, ClassFolders)
    return Images(loader, samples, len(samples), labels.classes, name, labels, held_out, is_labelled)


def _check_policy(policy: str) -> None:
    if not policy:
        return
    try:
        create_transform(224, is_training=True, auto_augment=policy)
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"--auto-augment {policy!r} cannot be used ({error}): try rand-m9-mstd0.5-inc1, augmix-m5-w4-d2 or "
            f"original."
        ) from error


def one_a_core(workers: int) -> int:
    """So many processes that load data, or as many as there are cores that this one may use: more of them only wait."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(workers, cores or 1)


def start_worker(start: Callable[[int], None] | None, worker: int) -> None:
    """Set up a process that loads data, with what timm does there if anything."""
    # What asks a program to stop may reach all of its processes, but the main one decides when to stop.
    for number in interrupts.STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        # SIGTERM is also how the main one ends a process that hangs.
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
    if start is not None:
        start(worker)


def _usable_workers(reader: Any, workers: int, name: str) -> int:
    """Workers that have a shard of their own to read: with none, a worker would wait for images for ever."""
    shards = getattr(getattr(reader, "split_info", None), "filenames", None)
    if shards is None:
        return workers
    processes = getattr(reader, "dist_num_replicas", 1)
    if len(shards) < processes:
        raise DataError(
            f"{name} has {len(shards)} shards, too few for {processes} processes: start fewer processes, or write more "
            f"shards."
        )
    return min(workers, len(shards) // processes)
