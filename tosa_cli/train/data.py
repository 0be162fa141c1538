"""Images to tensors, through timm's data sets, transforms and loaders."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from timm.data import create_dataset, create_loader, create_transform, resolve_input_data_config
from timm.data.dataset_factory import _search_split
from timm.data.readers.img_extensions import add_img_extensions
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from tosa_cli.errors import ConfigError, DataError
from tosa_cli.images import IMAGE_SUFFIXES, color_mode
from tosa_cli.model.timm_interface import class_names
from tosa_cli.train.samples import Batch, ImageSamples, StreamedSamples, collate

DEFAULT_SPLITS = ("train", "validation")
"""Splits that are asked for where none is named: without such a sub-folder, a folder is read whole."""

SPLIT_FOLDERS = ("train", "training", "val", "validation")
"""Names of sub-folders that hold a split of the data."""


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
        by_name: Whether labels were put into the order of the model's own class names.
        held_out: Whether these are only the images that a run is measured on.
        failed: Images that could not be read so far; `note` adds to it.
    """

    loader: DataLoader[Any]
    samples: Any
    num_images: int
    classes: list[str] | None
    name: str
    by_name: bool = False
    held_out: bool = False
    failed: dict[str, None] = field(default_factory=dict)

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None where it is not known."""
        return None if self.classes is None else len(self.classes)

    def note(self, failed: list[str], strict: bool) -> None:
        """Take note of images that could not be read.

        Raises:
            DataError: If there is one and `strict` is set.
        """
        self.failed.update(dict.fromkeys(failed))
        if strict and failed:
            raise DataError(f"{failed[0]} cannot be read. Remove it, or leave out --strict to skip such images.")

    def check_targets(self, targets: Tensor, num_classes: int) -> None:
        """Check labels (B,) of data whose number of classes is not known beforehand.

        Raises:
            DataError: If there is a label that the model's head does not have, or none at all.
        """
        if self.num_classes is not None or not len(targets):
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


def open_dataset(
    data_dir: str,
    dataset: str = "",
    split: str = "train",
    *,
    training: bool = False,
    batch_size: int = 1,
    seed: int = 0,
) -> Any:
    """Open a data set of timm's: a folder of images, `hfds/...` or `wds/...`.

    Args:
        data_dir: Folder of images (class folders are labels), or root of the data set.
        dataset: timm's name of the type; empty for a folder.
        split: Split; for a folder, the sub-folder of that name, which may be missing if it is one of `DEFAULT_SPLITS`.
        training: Shuffle what can only be read in order.
        batch_size: Images a step, which streams are cut to.
        seed: Seed of the shuffling of streams.

    Raises:
        DataError: If it is missing or empty, or needs a package that is not installed.
    """
    if not dataset:
        _check_folder(data_dir, split)
    add_img_extensions(IMAGE_SUFFIXES)
    try:
        # timm prints which package is missing.
        with contextlib.redirect_stdout(sys.stderr):
            opened = create_dataset(
                dataset, root=data_dir or None, split=split, is_training=training, batch_size=batch_size, seed=seed
            )
    except Exception as error:
        if "Found 0 images" in str(error):
            raise DataError(
                f"{data_dir} holds no images (.jpg, .png, ...). Pass another folder with --data-dir."
            ) from error
        reason = " ".join(str(error).split())
        if isinstance(error, ImportError) or "Please install" in reason:
            extra = dataset.partition("/")[0]
            raise DataError(f"Reading {dataset} needs a package: run `pip install 'tosa-cli[{extra}]'`.") from error
        raise DataError(f"The data set {dataset or data_dir} cannot be opened ({reason}).") from error
    reader = opened.reader
    if isinstance(opened, IterableDataset) and not training:
        # Held-out images are measured by the main process, which has to see all of them.
        reader.dist_rank, reader.dist_num_replicas = 0, 1
    columns = getattr(getattr(reader, "dataset", None), "column_names", None)
    if columns and reader.label_key not in columns:
        reader.dataset = reader.dataset.add_column(reader.label_key, [-1] * len(opened))
    return opened


def is_streamed(opened: Any) -> bool:
    """Whether a data set from `open_dataset` can only be read in order."""
    return isinstance(opened, IterableDataset)


def _check_folder(data_dir: str, split: str) -> None:
    if not data_dir:
        raise DataError("No images were named: pass --data-dir FOLDER.")
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"There is no folder {data_dir}. Pass a folder of images with --data-dir.")
    if Path(_search_split(data_dir, split)) != root:
        return
    # timm would read all splits as one.
    others = [name for name in SPLIT_FOLDERS if (root / name).is_dir()]
    if others:
        raise DataError(
            f"{data_dir} has no folder {split}, but {' and '.join(others)}. Name the split, or point at the images."
        )
    check_split_is_meant(root, split)


def check_split_is_meant(root: Path, split: str) -> None:
    """Check that a folder without a sub-folder for a split may be read whole.

    Raises:
        DataError: If the split was asked for by name.
    """
    if split and split not in DEFAULT_SPLITS:
        raise DataError(f"{root} has no folder {split}. Check the name of the split, or leave it out to read {root}.")


def split_indices(
    num_images: int, max_samples: int | None, hold_out: bool, max_held_out: int = 500
) -> tuple[list[int], list[int]]:
    """Choose training and held-out images, the same ones every time, evenly spread over the data set.

    Args:
        num_images: Number of images in the data set.
        max_samples: Largest number of images to use; None uses all.
        hold_out: Hold out every tenth image, at least one.
        max_held_out: Largest number of held-out images.

    Returns:
        Indices for training and held-out indices.
    """
    count = min(num_images, max_samples or num_images)
    chosen = [position * num_images // count for position in range(count)]
    if not hold_out or count < 2:
        return chosen, []
    num_held_out = min(max_held_out, max(1, count // 10))
    positions = {(2 * i + 1) * count // (2 * num_held_out) for i in range(num_held_out)}
    return [index for p, index in enumerate(chosen) if p not in positions], [chosen[p] for p in sorted(positions)]


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
) -> Images:
    """Make a loader with the transforms that a model expects.

    Where the model has class names and all of the data's are among them, labels are put into the model's order.

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

    Raises:
        ConfigError: If timm knows no such augmentation policy.
        DataError: If image files do not have as many channels as the model takes.
    """
    config = resolve_input_data_config(model)
    mode = color_mode(config["input_size"][0])
    class_to_idx = getattr(getattr(opened, "reader", None), "class_to_idx", None)
    classes = sorted(class_to_idx, key=class_to_idx.get) if class_to_idx else None
    names = class_names(model)
    order = match_names(classes or [], names)
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
        collate_fn=partial(collate, order=order),
        use_prefetcher=False,
        persistent_workers=False,
        **augment_args,
    )
    loader.worker_init_fn = partial(start_worker, loader.worker_init_fn)
    classes = names if order else classes
    return Images(loader, samples, len(samples), classes, name, by_name=order is not None, held_out=held_out)


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


def match_names(classes: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Find the classes of data among a model's.

    Args:
        classes: The data's, in the order of its labels.
        names: The model's, in the order of its outputs.

    Returns:
        The model's output for each of the data's labels; None if a class is not among the model's, or two are the same
        but for case, spaces and underscores, which are not looked at.
    """
    output = {_plain(name): index for index, name in enumerate(names)}
    wanted = [_plain(name) for name in classes]
    if not wanted or len(output) != len(names) or len(set(wanted)) != len(wanted):
        return None
    return [output[name] for name in wanted] if output.keys() >= set(wanted) else None


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def check_labels(images: Images, num_classes: int) -> None:
    """Check that the labels fit the model's head.

    Raises:
        DataError: If the numbers of classes differ.
    """
    if num_classes == 0:
        raise DataError("The model has no classification head. Convert its source with --num-classes to give it one.")
    if images.num_classes == 1 < num_classes:
        raise DataError(
            f"{images.name} has no class folders, or one, but the model's head has {num_classes} classes. Point "
            f"--data-dir at one folder a class; distill, and eval with --task features, need no labels."
        )
    if images.num_classes is not None and images.num_classes != num_classes:
        raise DataError(
            f"{images.name} has {images.num_classes} classes, but the model's head has {num_classes}. Point --data-dir "
            f"at the right folder, or convert the source with --num-classes {images.num_classes}."
        )


def one_a_core(workers: int) -> int:
    """So many processes that load data, or as many as there are cores that this one may use: more of them only wait."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(workers, cores or 1)


def start_worker(start: Callable[[int], None] | None, worker: int) -> None:
    """Set up a process that loads data, with what timm does there if anything."""
    # Ctrl-C reaches all processes of a terminal, but the main one decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
