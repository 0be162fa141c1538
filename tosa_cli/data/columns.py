"""Which columns of a Hugging Face data set are its images and its labels."""

from dataclasses import dataclass
from typing import Any

from tosa_cli.data.class_folders import LabelFacts
from tosa_cli.errors import DataError

USUAL_LABELS = ("label", "labels", "target", "class")
"""Names of columns of whole numbers that are taken for labels, where no column names classes."""


@dataclass(frozen=True)
class Columns:
    """Columns of a data set.

    Attributes:
        image: The images.
        label: The labels; None if there are none, or it is not known which they are.
        label_facts: Why labels cannot be read, where that is so.
    """

    image: str
    label: str | None
    label_facts: LabelFacts


def find_columns(features: Any, shown: str, image: str = "", label: str = "") -> Columns:
    """Find the images and labels of a data set.

    Args:
        features: What the columns hold, by their names, as `datasets` describes them.
        shown: What to call the data.
        image: The column of images that was named; empty takes `image`, or else the only one that holds images.
        label: That of labels; empty takes `label`, or else the only one that names classes or is called as labels are.

    Raises:
        DataError: If a column is missing, or it is not known which one holds the images.
    """
    import datasets

    names = ", ".join(map(repr, features))
    for option, name in (("--image-column", image), ("--label-column", label)):
        if name and name not in features:
            raise DataError(f"{shown} has no column {name!r}, but {names}: pass one of these with {option}.")
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    # A column called so may hold their names, where the images stand in another.
    usual = "image" if "image" in images or ("image" in features and not images) else ""
    if not image and not usual and len(images) != 1:
        held = f"images in {' and '.join(map(repr, images))}" if images else "no column of images"
        raise DataError(f"{shown} has {held}, of its columns {names}: name the one to read with --image-column.")
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels or [name for name in USUAL_LABELS if name in features]
    found = label or ("label" if "label" in labels else labels[0] if len(labels) == 1 else None)
    problem = ""
    if found is not None and not _holds_numbers(features[found]):
        kind = getattr(features[found], "dtype", None) or type(features[found]).__name__
        problem = (
            f"{shown} has no whole numbers in its column {found!r} but {kind}, so its classes are not known: write it "
            f"after class_encode_column({found!r}), or name another column with --label-column."
        )
        found = None
    elif found is None:
        held = f"labels in {' and '.join(map(repr, labels))}" if labels else "no column of labels"
        problem = f"{shown} has {held}, of its columns {names}: name the one to read with --label-column."
    taken = image or usual or images[0]
    return Columns(taken, found, LabelFacts(problem=problem))


def _holds_numbers(kind: Any) -> bool:
    """Whether a column holds classes by their numbers."""
    import datasets

    is_number = isinstance(kind, datasets.Value) and kind.dtype.startswith(("int", "uint", "bool"))
    return is_number or isinstance(kind, datasets.ClassLabel)


def open_columns(dataset: str, data_dir: str, split: str, image: str, label: str) -> Columns:
    """Find the images and labels of `hfds/...`; see `find_columns`.

    Raises:
        Exception: Whatever `datasets` raises where it cannot be read.
    """
    import datasets

    name = dataset.partition("/")[2]
    # What was read once is in a cache, from which timm's reader takes it.
    features = datasets.load_dataset(name, split=split, cache_dir=data_dir or None).features
    return find_columns(features, dataset, image, label)
