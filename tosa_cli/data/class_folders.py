"""Images of a folder, whose sub-folders are their classes."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from timm.data.readers.reader import Reader

from tosa_cli.data.images import IMAGE_SUFFIXES

_OF_SYSTEMS = ("__MACOSX", "@eaDir")
"""Folders that macOS and Synology put beside the images for themselves: hidden ones, by their meaning."""


def natural_key(name: str) -> tuple[list[int | str], str]:
    """A key that sorts names as timm does, without case and numbers by their value; equal ones by code point."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


@dataclass(frozen=True)
class LabelFacts:
    """What there is to know about the labels of data.

    Attributes:
        notes: What a user should know who reads them, each a sentence.
        problem: Why they cannot be read, as a sentence; empty if they can.
        by_code_point: Names of the classes in the order that torchvision has; empty where there is but one order.
    """

    notes: tuple[str, ...] = ()
    problem: str = ""
    by_code_point: tuple[str, ...] = ()


class ClassFolders(Reader):
    """A reader for timm's data sets: the folders at the top are the classes, wherever in them the images lie.

    timm itself takes the innermost folders for classes, and leaves out those without an image, so that the numbers of
    the others move.

    Args:
        root: The folder. Its hidden files and folders are left out.

    Attributes:
        samples: Path and label of each image; -1 for those that lie in no class folder.
        class_to_idx: Labels by the names of the class folders, which are numbered in natural order.
        label_facts: What there is to know about the labels.

    Raises:
        RuntimeError: If there are no images.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        top = [entry.name for entry in os.scandir(root) if entry.is_dir() and not _is_hidden(entry.name)]
        found: list[tuple[str, str]] = []
        hidden: set[str] = set()
        deep: set[str] = set()
        seen: set[str] = set()
        for place, folders, names in os.walk(root, followlinks=True):
            inside = os.path.relpath(place, root)
            first, *rest = ("",) if inside == "." else Path(inside).parts
            hidden.update(os.path.normpath(os.path.join(inside, name)) for name in folders if _is_hidden(name))
            folders[:] = [name for name in folders if not _is_hidden(name) and not _leads_back(place, name)]
            images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
            found += [(os.path.join(place, name), first) for name in images]
            if images:
                seen.add(first)
                deep.update([first] if rest else [])
        if not found:
            raise RuntimeError(f"Found 0 images in {root}.")
        # A folder of photos with some in sub-folders has no classes.
        classes = sorted(top, key=natural_key) if seen != {""} else []
        self.class_to_idx = {name: label for label, name in enumerate(classes)}
        found.sort(key=lambda image: natural_key(image[0]))
        self.samples = [(path, self.class_to_idx.get(name, -1)) for path, name in found]
        self.label_facts = LabelFacts(
            tuple(self._notes(sorted(deep), sorted(hidden), [name for name in classes if name not in seen])),
            self._problem(classes),
            tuple(sorted(classes)),
        )

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        path, label = self.samples[index]
        # A named pipe that nobody writes to would be waited for; opened so, it is an empty file.
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))), label

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        return os.path.basename(path) if basename else path if absolute else os.path.relpath(path, self.root)

    def _notes(self, deep: list[str], hidden: list[str], empty: list[str]) -> list[str]:
        told = []
        if deep:
            told.append(
                f"Images of {self.root} lie in sub-folders of {_some(deep)}: the folders at the top are the classes."
            )
        if hidden:
            told.append(f"Hidden folders of {self.root} are left out: {_some(hidden)}.")
        if empty:
            told.append(f"{self.root} has class folders without an image, which are counted: {_some(empty)}.")
        return told

    def _problem(self, classes: list[str]) -> str:
        loose = next((path for path, label in self.samples if label < 0), "")
        if not loose or not classes:
            return ""
        return (
            f"{loose} lies in no class folder, but {self.root} has {_some(classes)}: put each image into the folder of "
            f"its class."
        )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _OF_SYSTEMS


def _leads_back(place: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in, whose images would be found again and again."""
    path = os.path.join(place, name)
    return os.path.islink(path) and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(path))


def _some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
