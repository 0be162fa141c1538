"""Which label is which class of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tosa_cli.data.class_folders import LabelFacts
from tosa_cli.errors import DataError

if TYPE_CHECKING:
    from tosa_cli.data.loading import Images

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Labels:
    """Which label of data is which class of a model.

    Attributes:
        classes: Names of the classes, in the order of the model's outputs; None where they are not known.
        order: The model's output for each label of the data; None leaves labels as they are.
        by: What tells.
        notes: What a user should know who reads the labels, each a sentence.
        problem: Why they cannot be read, as a sentence; empty if they can.
    """

    classes: list[str] | None = None
    order: list[int] | None = None
    by: Literal["name", "position", "class map"] = "position"
    notes: tuple[str, ...] = ()
    problem: str = ""


def find_labels(
    classes: Sequence[str] | None,
    names: Sequence[str],
    *,
    num_classes: int,
    shown: str,
    facts: LabelFacts | None = None,
    class_map: Mapping[str, int] | None = None,
    descriptions: Sequence[str] = (),
    must_match: bool = False,
) -> Labels:
    """Find out which label of data is which class of a model: by a class map, by names, or by position.

    Args:
        classes: Names of the data's classes, in the order of its labels; None where they are not known.
        names: Those of the model's, in the order of its outputs; empty where they are not known.
        num_classes: Number of the model's outputs.
        shown: What to call the data.
        facts: What else there is to know about its labels.
        class_map: Outputs by the names of the data's classes.
        descriptions: What else the model's classes are called, in the same order; empty where that is not known.
        must_match: Whether there is no other way than by name, as the names are those that a model learned.
    """
    facts = facts or LabelFacts()
    if facts.problem:
        return Labels(None if classes is None else list(classes), problem=facts.problem)
    if class_map is not None:
        return _by_map(classes, names, class_map, num_classes, shown, facts)
    if classes is None:
        return Labels()
    order = match_names(classes, names)
    if order is not None:
        return Labels(list(names), order, "name", facts.notes)
    for other in (descriptions, *_imagenet_names(names, num_classes)):
        order = match_names(classes, other)
        if order is not None:
            return Labels(list(names) or list(other), order, "name", facts.notes)
    known = {_plain(name) for name in names}
    strangers = [name for name in classes if _plain(name) not in known]
    if known and (must_match or len(strangers) < len(classes)):
        whose = ("the held-out images of ", "those learned") if must_match else ("", "the model's")
        return Labels(list(classes), problem=_stranger(strangers, classes, names, whose[0] + shown, whose[1]))
    return Labels(list(classes), notes=(*facts.notes, *_about_position(classes, facts, shown)))


def match_names(classes: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Find the classes of data among a model's.

    Args:
        classes: The data's, in the order of its labels.
        names: The model's, in the order of its outputs.

    Returns:
        The model's output for each of the data's labels; None if a class is not among the model's, or two are the same
        but for case, spaces and underscores, which are not looked at.
    """
    outputs: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        outputs.setdefault(_plain(name), []).append(index)
    wanted = [_plain(name) for name in classes]
    if not wanted or len(set(wanted)) != len(wanted):
        return None
    found = [outputs.get(name, []) for name in wanted]
    return [places[0] for places in found] if all(len(places) == 1 for places in found) else None


def check_labels(images: "Images", num_classes: int) -> None:
    """Check that the labels fit the model's head.

    Raises:
        DataError: If they cannot be read, or the numbers of classes differ.
    """
    if num_classes == 0:
        raise DataError("The model has no classification head. Convert its source with --num-classes to give it one.")
    if images.labels.problem:
        raise DataError(images.labels.problem)
    if images.num_classes is not None and images.num_classes <= 1 < num_classes:
        raise DataError(
            f"{images.name} has no class folders, or one, but the model's head has {num_classes} classes. Point "
            f"--data-dir at one folder a class; distill, and eval with --task features, need no labels."
        )
    if images.num_classes is not None and images.num_classes != num_classes:
        raise DataError(
            f"{images.name} has {images.num_classes} classes, but the model's head has {num_classes}. Point --data-dir "
            f"at the right folder, say with --class-map FILE which class each folder is, or convert the source with "
            f"--num-classes {images.num_classes}."
        )


def _by_map(
    classes: Sequence[str] | None,
    names: Sequence[str],
    class_map: Mapping[str, int],
    num_classes: int,
    shown: str,
    facts: LabelFacts,
) -> Labels:
    problem = ""
    if classes is None:
        problem = f"{shown} does not name its classes, so --class-map cannot be used: leave it out."
    elif missing := [name for name in classes if name not in class_map]:
        problem = f"The class map says nothing of {missing[0]!r}, a class of {shown}: add it."
    elif over := [name for name in classes if class_map[name] >= num_classes]:
        problem = (
            f"The class map gives {over[0]!r} the index {class_map[over[0]]}, but the model's head has {num_classes} "
            f"classes (0 to {num_classes - 1})."
        )
    if problem or classes is None:
        return Labels(None if classes is None else list(classes), by="class map", problem=problem)
    own = {index: name for name, index in class_map.items()}
    complete = len(own) == len(class_map) == num_classes and max(own) < num_classes
    # A map that names every class says what they are called, which a model may come to learn others by.
    known = [own[index] for index in range(num_classes)] if complete else list(names) or None
    return Labels(known, [class_map[name] for name in classes], "class map", facts.notes)


def _stranger(strangers: Sequence[str], classes: Sequence[str], names: Sequence[str], shown: str, whose: str) -> str:
    if not strangers:
        return (
            f"Two classes of {shown} or of the model are called alike but for case, so names do not tell them apart: "
            f"say with --class-map FILE which class each folder is."
        )
    shared = len(classes) - len(strangers)
    own = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"Of the {len(classes)} classes of {shown}, {shared} are among {whose} ({own}), but {strangers[0]!r} is "
        f"not: rename its folder, or say with --class-map FILE which class each folder is."
    )


def _about_position(classes: Sequence[str], facts: LabelFacts, shown: str) -> list[str]:
    other = facts.by_code_point
    if not other or list(other) == list(classes):
        return []
    place = next(index for index, (own, theirs) in enumerate(zip(classes, other, strict=True)) if own != theirs)
    return [
        f"The folders of {shown} are numbered in natural order, as by timm: class {place} is {classes[place]!r}. By "
        f"torchvision, which sorts by code point, it is {other[place]!r}: for a model that was trained so, pass "
        f"--class-map FILE with the folders in its order."
    ]


def _imagenet_names(names: Sequence[str], num_classes: int) -> list[list[str]]:
    """What ImageNet's classes are called, as n01440764 or in words, for a model that has these classes.

    A model of a thousand classes that has no names for them is taken for one.
    """
    if num_classes != IMAGENET_CLASSES:
        return []
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    synsets, described = info.label_names(), info.label_descriptions()
    for known in (synsets, described):
        alike = sum(_first(name) == _first(own) for name, own in zip(names, known, strict=False))
        if not names or alike > 0.9 * num_classes:
            return [list(synsets), list(described), [_first(text) for text in described]]
    return []


def _first(description: str) -> str:
    """The first of several names of a class, as `tench, Tinca tinca` has them."""
    return _plain(description.split(",")[0])


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
