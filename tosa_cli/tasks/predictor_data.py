"""The images with maps of a training run or an evaluation, as its settings name them."""

from typing import Any

from tosa_cli.data.datasets import split_indices
from tosa_cli.data.formats import FORMATS
from tosa_cli.data.pair_images import PairImages, pairs_to_read
from tosa_cli.data.pairs import Pairs, open_pairs
from tosa_cli.errors import DataError
from tosa_cli.measure.config import EvalConfig
from tosa_cli.model.predictor import Predictor
from tosa_cli.task import PredictorTask
from tosa_cli.train.predictor_config import PredictorConfig


def open_for_training(model: Predictor, config: PredictorConfig) -> tuple[PairImages, PairImages]:
    """Open training images and held-out images with their maps.

    Raises:
        DataError: If they are missing, wrong or too few, or the held-out images are the training images.
    """
    opened = pairs_of(config, config.task)
    separate = bool(config.val_dir or config.val_split or config.val_split_file)
    train_indices, held_out_indices = split_indices(len(opened), config.max_samples, hold_out=not separate)
    held_out_pairs = opened
    if separate:
        held_out_pairs = _open_separate(config, opened)
        held_out_indices = list(range(len(held_out_pairs)))
    if not held_out_indices:
        raise DataError(f"{opened.folder} holds only one image, but training needs one more to measure on: add images.")
    chosen, _ = split_indices(len(held_out_indices), config.max_watched, hold_out=False)
    common: dict[str, Any] = {name: getattr(config, name) for name in ("data_format", "batch_size", "workers")}
    images = pairs_to_read(
        opened,
        model,
        model.config,
        img_size=model.img_size,
        indices=train_indices,
        augment=config,
        seed=config.seed,
        **common,
    )
    held_out = pairs_to_read(
        held_out_pairs,
        model,
        model.config,
        img_size=None if FORMATS[config.data_format].full_size else model.img_size,
        indices=[held_out_indices[position] for position in chosen],
        held_out=True,
        **common,
    )
    return images, held_out


def pairs_of(settings: PredictorConfig | EvalConfig, task: PredictorTask) -> Pairs:
    """Open the images with maps that settings name."""
    names = ("data_format", "split", "split_file", "depth_dir", "depth_scale", "ignore_index")
    return open_pairs(settings.data_dir, task=task, **{name: getattr(settings, name) for name in names})


def _open_separate(config: PredictorConfig, opened: Pairs) -> Pairs:
    """Open held-out images that were named.

    Raises:
        DataError: If they are the training images.
    """
    folder_of_maps = "" if config.data_format == "folder" else config.val_dir or config.depth_dir
    held_out = open_pairs(
        config.val_dir or config.data_dir,
        task=config.task,
        data_format=config.data_format,
        split=config.val_split or "validation",
        split_file=config.val_split_file,
        depth_dir=config.val_depth_dir or folder_of_maps,
        depth_scale=config.depth_scale,
        ignore_index=config.ignore_index,
    )
    if [held_out.filename(0), len(held_out)] == [opened.filename(0), len(opened)]:
        raise DataError(
            f"The held-out images would be the training images of {opened.folder}. Name others with --val-dir, "
            f"--val-split or --val-split-file, or none of these to hold out a share."
        )
    return held_out
