"""Which label is which class of a model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tosa_cli.errors import DataError

if TYPE_CHECKING:
    from tosa_cli.data.loading import Images


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


def check_labels(images: "Images", num_classes: int) -> None:
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
