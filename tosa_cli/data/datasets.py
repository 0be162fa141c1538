"""Which images there are: timm's data sets, their splits, and what is held out."""

import contextlib
import sys
from pathlib import Path
from typing import Any

from timm.data import ImageDataset, create_dataset
from timm.data.dataset_factory import _search_split
from torch.utils.data import IterableDataset

from tosa_cli.data.class_folders import ClassFolders
from tosa_cli.data.columns import open_columns
from tosa_cli.errors import DataError, TosaError

DEFAULT_SPLITS = ("train", "validation")
"""Splits that are asked for where none is named: without such a sub-folder, a folder is read whole."""


NO_LABEL = "no label"
"""Name of a column that is added to a data set without labels."""

SPLIT_FOLDERS = ("train", "training", "val", "validation")
"""Names of sub-folders that hold a split of the data."""


def open_dataset(
    data_dir: str,
    dataset: str = "",
    split: str = "train",
    *,
    training: bool = False,
    batch_size: int = 1,
    seed: int = 0,
    image_column: str = "",
    label_column: str = "",
) -> Any:
    """Open a data set of timm's: a folder of images, `hfds/...` or `wds/...`.

    Args:
        data_dir: Folder of images (class folders are labels), or root of the data set.
        dataset: timm's name of the type; empty for a folder.
        split: Split; for a folder, the sub-folder of that name, which may be missing if it is one of `DEFAULT_SPLITS`.
        training: Shuffle what can only be read in order.
        batch_size: Images a step, which streams are cut to.
        seed: Seed of the shuffling of streams.
        image_column: Column of `hfds/...` that holds the images; empty finds it.
        label_column: Column of `hfds/...` that holds the labels; empty finds it.

    Returns:
        timm's data set. Its reader may have `label_facts`.

    Raises:
        DataError: If it is missing or empty, or needs a package that is not installed.
    """
    is_table = dataset.partition("/")[0].lower() == "hfds"
    named = {"--image-column": image_column, "--label-column": label_column}
    if not is_table and (option := next((option for option, column in named.items() if column), "")):
        raise DataError(f"{option} goes with a Hugging Face data set: leave it out, or pass --dataset hfds/NAME.")
    if not dataset:
        _check_folder(data_dir, split)
    try:
        if not dataset:
            root = _search_split(data_dir, split)
            return ImageDataset(root, reader=ClassFolders(Path(root)))
        keys: dict[str, Any] = {}
        # timm prints which package is missing.
        with contextlib.redirect_stdout(sys.stderr):
            if is_table:
                columns = open_columns(dataset, data_dir, split, image_column, label_column)
                keys = {"input_key": columns.image, "target_key": columns.label or NO_LABEL}
            opened = create_dataset(
                dataset,
                root=data_dir or None,
                split=split,
                is_training=training,
                batch_size=batch_size,
                seed=seed,
                **keys,
            )
    except TosaError:
        raise
    except Exception as error:
        if "Found 0 images" in str(error):
            raise DataError(
                f"{data_dir} holds no images (.jpg, .png, ...). Pass another folder with --data-dir."
            ) from error
        reason = " ".join(str(error).split())
        if isinstance(error, ImportError) or "Please install" in reason:
            extra = dataset.partition("/")[0]
            raise DataError(f"Reading {dataset} needs a package: run `pip install 'tosa-cli[{extra}]'`.") from error
        raise DataError(
            f"The data set {dataset or data_dir} cannot be opened ({reason}). Check its name, and that it can be "
            f"reached."
        ) from error
    reader = opened.reader
    if isinstance(opened, IterableDataset) and not training:
        # Held-out images are measured by the main process, which has to see all of them.
        reader.dist_rank, reader.dist_num_replicas = 0, 1
    if is_table:
        reader.label_facts = columns.label_facts
        if columns.label is None:
            reader.dataset = reader.dataset.add_column(NO_LABEL, [-1] * len(opened))
    return opened


def name_of(place: str | Path) -> str:
    """What to call a folder, or a data set by timm's name of it, where its path is nobody's business."""
    name = Path(place).name
    return name if name.strip(".") else Path(place).resolve().name


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
