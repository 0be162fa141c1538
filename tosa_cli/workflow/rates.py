"""Layers and keep rates by measurement on images: of each layer alone, or of the whole model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from tosa_cli.config import Method
from tosa_cli.data.datasets import is_streamed, open_dataset, split_indices
from tosa_cli.data.description import Data
from tosa_cli.data.loading import Images, images_to_read
from tosa_cli.errors import DataError
from tosa_cli.fit.budget import ErrorCurve, measure_curves
from tosa_cli.fit.drop import MaxDrop
from tosa_cli.fit.rates import RateSearch, Wish, hold, search_rates
from tosa_cli.model.families import Backbone
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Listener, Nobody, counted
from tosa_cli.tasks.classification import Classification
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.processes import make_accelerator

DEFAULT_SAMPLES = 32
DEFAULT_HELD_OUT = 64
DEFAULT_LABELLED = 500
"""Held-out images whose labels are read, where no other number is named: an accuracy is a matter of many."""
LEAST_TO_HOLD = 3
BATCH_SIZE = 8


@dataclass(frozen=True)
class MeasuredLayers:
    """What each layer, or span of layers, can spare.

    Attributes:
        curves: Error curves, by layer; none where tokens are in groups, for which layers alone say little.
        search: How keep rates were found on the whole model, where tokens are in groups.
        skipped: Images that could not be read, with the reason.
    """

    curves: tuple[ErrorCurve, ...] = ()
    search: RateSearch | None = None
    skipped: tuple[str, ...] = ()


def measure_layers(
    model: Backbone,
    method: Method,
    data: Data,
    *,
    listener: Listener | None = None,
) -> MeasuredLayers:
    """Measure the error curve of each layer on a few images, evenly spread, or the first of a stream.

    Args:
        model: The dense model; it is not changed.
        method: By what tokens are selected.
        data: Which images; where it does not say how many, 32 of them.
        listener: Told what is done.

    Raises:
        DataError: If there are none.
        ConfigError: If the selector says nothing before it is trained.
    """
    listener, opened = listener or Nobody(), _open(data)
    images = _first_images(opened, model, data, listener)
    with listener.progress("Measuring") as bar:
        curves = measure_curves(make_accelerator(TrainConfig()), model, method, images, progress=bar)
    return MeasuredLayers(tuple(curves), skipped=tuple(images.failed))


def find_rates(
    model: Backbone,
    method: Method,
    target_reduction: float | None,
    data: Data,
    *,
    wish: Wish | None = None,
    class_map: Mapping[str, int] | None = None,
    listener: Listener | None = None,
) -> MeasuredLayers:
    """Find keep rates of groups on the whole model, on a few images as `measure_layers` takes them.

    Args:
        model: The dense model; it is not changed.
        method: A method that puts tokens into groups.
        target_reduction: Share of the MACs to save; None saves what leaves a wish met.
        data: Which images; where it does not say how many, 32 of them, and with a wish 64 more that are held out, or
            for a drop of accuracy 500.
        wish: What is to hold on held-out images, where there is no target.
        class_map: For a drop of accuracy, the model's outputs by the names of the data's classes.
        listener: Told what is done.

    Raises:
        DataError: If there are none; for a wish, if they can only be read in order, or labels are missing or not the
            model's.
        ConfigError: If as much cannot be saved, or the wish is met at no saving.
    """
    listener, opened, name = listener or Nobody(), _open(data), data.dataset or data.data_dir
    accelerator = make_accelerator(TrainConfig())
    if wish is None:
        images = _first_images(opened, model, data, listener)
        with listener.progress("Measuring") as bar:
            found = search_rates(accelerator, model, method, images, cast(float, target_reduction), progress=bar)
        return MeasuredLayers(search=found, skipped=tuple(images.failed))
    labelled = isinstance(wish, MaxDrop)
    held_out_count = DEFAULT_LABELLED if labelled else DEFAULT_HELD_OUT
    indices = _evenly(opened, data.max_samples or DEFAULT_SAMPLES + held_out_count)
    if indices is None:
        raise DataError(f"{name} can only be read in order, so no images can be held out: pass --target-reduction.")
    check_enough(len(indices), name, "--max-drop" if labelled else "--min-cosine")
    # Images with labels are dear: of many no more are taken to find schedules than these need.
    step = max(3, -(-len(indices) // DEFAULT_SAMPLES)) if labelled else 3
    tuning, others = indices[::step], [index for position, index in enumerate(indices) if position % step]
    images, held_out = (_images(opened, model, part, data, class_map) for part in (tuning, others))
    if labelled:
        _check_labelled(held_out, model, listener)
    listener.say(
        f"Measuring what can be spared, on {counted(images.num_images, 'image')} of {name}, and on "
        f"{counted(held_out.num_images, 'other image')} whether the {'accuracy' if labelled else 'cosine'} holds ..."
    )
    with listener.progress("Measuring") as bar:
        found = hold(accelerator, model, method, images, held_out, wish, progress=bar)
    return MeasuredLayers(search=found, skipped=(*images.failed, *held_out.failed))


def check_enough(count: int, name: Any, option: str) -> None:
    """Check that so many images are enough for two to be held out, as one says nothing of others.

    Args:
        count: Number of images that are to be read.
        name: Where they are from.
        option: What is to hold, as on the command line.

    Raises:
        DataError: If not.
    """
    if count < LEAST_TO_HOLD:
        raise DataError(
            f"{counted(count, 'image')} of {name} would be read, and {option} needs {LEAST_TO_HOLD}, of which two are "
            f"held out: add images, or pass a larger --max-samples."
        )


def _check_labelled(images: Images, model: Backbone, listener: Listener) -> None:
    """Check that images have labels, and that these are the model's classes.

    Raises:
        DataError: If not.
    """
    if images.num_classes is not None and images.num_classes < 2:
        raise DataError(
            f"{images.name} has no class folders, or one, and --max-drop goes by labels: point --data-dir at one "
            f"folder a class, or hold the tokens with --min-cosine 0.99, which needs none."
        )
    Classification().check_evaluated(images, cast(TosaViT, model), listener)


def _open(data: Data) -> Any:
    """The data set."""
    return open_dataset(
        data.data_dir, data.dataset, data.split, image_column=data.image_column, label_column=data.label_column
    )


def _first_images(opened: Any, model: Backbone, data: Data, listener: Listener) -> Images:
    """Images where none are held out; how many is told."""
    images = _images(opened, model, _evenly(opened, data.max_samples or DEFAULT_SAMPLES), data)
    listener.say(f"Measuring what each layer can spare, on {counted(images.num_images, 'image')} of {images.name} ...")
    return images


def _evenly(opened: Any, count: int) -> list[int] | None:
    """Indices of so many images, evenly spread; None for data that can only be read in order."""
    return None if is_streamed(opened) else split_indices(len(opened), count, hold_out=False)[0]


def _images(
    opened: Any, model: Backbone, indices: list[int] | None, data: Data, class_map: Mapping[str, int] | None = None
) -> Images:
    """Images of a data set to measure on; of a stream the first."""
    return images_to_read(
        opened,
        cast(nn.Module, model),
        indices=indices,
        first=data.max_samples or DEFAULT_SAMPLES,
        batch_size=BATCH_SIZE,
        name=data.dataset or data.data_dir,
        class_map=class_map,
    )
