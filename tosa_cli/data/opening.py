"""The images of a training run: which it trains on, and which it is measured on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tosa_cli.data.datasets import is_streamed, open_dataset, split_indices
from tosa_cli.data.description import Data
from tosa_cli.data.loading import Augmentation, Images, images_to_read
from tosa_cli.errors import DataError, InputError
from tosa_cli.model.tosa_vit import TosaViT


@dataclass(frozen=True)
class OpenedImages:
    """The images of a run, whose folder was scanned once.

    Attributes:
        training: To train on, shuffled and augmented; None where nothing is trained step by step.
        in_order: The same, in order and not augmented, for what is fitted in closed form; None where nothing is.
        held_out: To measure on.
    """

    training: Any
    in_order: Any
    held_out: Images


def open_images(
    model: TosaViT,
    data: Data,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    augment: Augmentation | None,
    in_order: bool = False,
    max_held_out: int | None = None,
    class_map: Mapping[str, int] | None = None,
) -> OpenedImages:
    """Open training images and held-out images.

    Args:
        model: The model that tells how images are read.
        data: Which images.
        batch_size: Images a step.
        workers: Processes that load data.
        seed: Seed of shuffling and augmentation.
        augment: Random changes to the training images; None where nothing is trained step by step: then the first
            `max_samples` images of data that can only be read in order are enough.
        in_order: Whether something is fitted in closed form.
        max_held_out: Largest number of held-out images, evenly spread; None takes all.
        class_map: The model's outputs by the names of the data's classes.

    Raises:
        DataError: If they are missing or too few.
    """
    common: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "class_map": class_map}
    columns: dict[str, Any] = {"image_column": data.image_column, "label_column": data.label_column}
    opened = open_dataset(
        data.data_dir,
        data.dataset,
        data.split,
        training=augment is not None,
        batch_size=batch_size,
        seed=seed,
        **columns,
    )
    separate = bool(data.val_dir or data.val_split)
    name, streamed = data.dataset or data.data_dir, is_streamed(opened)
    if streamed and not separate:
        raise InputError(
            f"{name} can only be read in order, so no images of it can be held out: name held-out images "
            f"with --val-dir or --val-split."
        )
    max_samples = None if streamed and augment is None else data.max_samples
    indices, held_out_indices = choose_indices(opened, max_samples, hold_out=not separate, name=name)
    training = ordered = None
    if augment is not None:
        training = images_to_read(opened, model, indices=indices, seed=seed, augment=augment, name=name, **common)
    if in_order:
        again = opened
        if streamed and augment is not None:  # its order is shuffled
            again = open_dataset(data.data_dir, data.dataset, data.split, batch_size=batch_size, **columns)
        first = data.max_samples if streamed else None
        ordered = images_to_read(again, model, indices=indices, first=first, name=name, **common)
    held_out_set, held_out_name = opened, name
    if separate:
        held_out_name = data.val_dir or name
        held_out_set = _open_separate(data, opened, batch_size)
        held_out_indices = None if is_streamed(held_out_set) else list(range(len(held_out_set)))
    elif not held_out_indices:
        raise DataError(f"{name} holds only one image, but training needs one more to measure on: add images.")
    if held_out_indices is not None and max_held_out is not None:
        chosen, _ = split_indices(len(held_out_indices), max_held_out, hold_out=False)
        held_out_indices = [held_out_indices[position] for position in chosen]
    if training is not None and training.classes and not training.labels.problem:
        common["learned"] = training.classes
    held_out = images_to_read(
        held_out_set, model, indices=held_out_indices, name=held_out_name, held_out=True, **common
    )
    return OpenedImages(training, ordered, held_out)


def _open_separate(data: Data, opened: Any, batch_size: int) -> Any:
    """Open held-out images that were named.

    Raises:
        DataError: If they are the training images.
    """
    folder, split = data.val_dir or data.data_dir, data.val_split or "validation"
    kind = "" if data.val_dir else data.dataset
    held_out = open_dataset(
        folder,
        kind,
        split,
        batch_size=batch_size,
        image_column=data.image_column if kind else "",
        label_column=data.label_column if kind else "",
    )
    same_root = not kind and held_out.reader.root == getattr(opened.reader, "root", None)
    if (same_root and not data.dataset) or (kind and split == data.split):
        raise DataError(
            f"The held-out images would be the training images: {folder} has no split of its own for "
            f"{split}. Name other images with --val-dir, or leave out --val-split to hold out a share."
        )
    return held_out


def choose_indices(
    opened: Any, max_samples: int | None, hold_out: bool, name: str
) -> tuple[list[int] | None, list[int] | None]:
    """Choose training and held-out images as `split_indices` does; None for data that can only be read in order.

    Raises:
        DataError: If some of the images of such data are asked for.
    """
    if not is_streamed(opened):
        return split_indices(len(opened), max_samples, hold_out=hold_out)
    if max_samples is not None:
        raise DataError(f"{name} can only be read in order, so it has to be read whole: leave out --max-samples.")
    return None, None
