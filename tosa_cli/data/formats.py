"""In which forms people have images with maps, and what is usual with each. Imports no torch.

A new form is a class here, an entry of `FORMATS` and its name in `DataFormat`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tosa_cli.errors import DataError

if TYPE_CHECKING:
    from tosa_cli.data.pairs import Pairs

DataFormat = Literal["folder", "nyu", "kitti"]


@dataclass(frozen=True)
class Wanted:
    """Which images with maps are opened.

    Attributes:
        root: Where they lie.
        task: What the maps hold: `depth` or `segmentation`.
        split: Which of them, where the form itself knows.
        split_file: Text file that names them; empty if there is none.
        depth_root: Where the depth maps of a split file lie.
        read_map: Reads a map.
    """

    root: Path
    task: Literal["depth", "segmentation"]
    split: str
    split_file: str
    depth_root: Path
    read_map: Callable[[Path], Any]


@dataclass(frozen=True)
class Format(ABC):
    """A form of images with maps, and what is usual with it.

    Attributes:
        depth_scale: Values of a 16-bit depth map for one metre.
        max_depth: Depths up to here count, in metres.
        crop: Part of a depth map that is evaluated: `none`, `eigen` or `garg`.
        full_size: Images keep their size: training takes crops of it, evaluation the whole. Otherwise they are brought
            to the model's size.
        bottom_crop: Size (height, width) to which an image is cut at its lower middle before all else.
        border: Part (left, top, right, bottom) of an image of 480x640 whose depth is learned: NYU's have a white frame.
    """

    name: ClassVar[DataFormat]
    has_masks: ClassVar[bool] = False

    depth_scale: float
    max_depth: float
    crop: Literal["none", "eigen", "garg"] = "none"
    full_size: bool = True
    bottom_crop: tuple[int, int] | None = None
    border: tuple[int, int, int, int] | None = None

    @abstractmethod
    def open(self, wanted: Wanted) -> "Pairs":
        """Open images with maps.

        Raises:
            DataError: If they are missing or incomplete.
        """

    def named(self, wanted: Wanted, parts: tuple[str, ...] = ("",)) -> "Pairs":
        """Open what a split file names; its depth maps lie in one of the parts of their folder.

        Raises:
            DataError: If no split file was named, or one of its files is missing.
        """
        from tosa_cli.data.pairs import pairs_of_split_file

        if not wanted.split_file:
            raise DataError(
                f"The format {self.name} needs a split file, a line 'IMAGE DEPTH' for each image: name it with "
                f"--split-file (held-out images: --val-split-file)."
            )
        return pairs_of_split_file(wanted, [wanted.depth_root / part for part in parts])


class Folder(Format):
    """Sub-folders of images and of maps with the same names."""

    name = "folder"
    has_masks = True

    def open(self, wanted: Wanted) -> "Pairs":
        """All that a split's folder holds, or what a split file names."""
        from tosa_cli.data.pairs import pairs_of_folder

        return self.named(wanted) if wanted.split_file else pairs_of_folder(wanted)


class Nyu(Format):
    """NYU Depth v2: its one labelled file, or images that a split file names."""

    name = "nyu"

    def open(self, wanted: Wanted) -> "Pairs":
        """Its labelled file if there is one and no split file was named."""
        from tosa_cli.data.pairs import LABELLED_MAT, pairs_of_mat

        mat = wanted.root if wanted.root.suffix == ".mat" else wanted.root / LABELLED_MAT
        return pairs_of_mat(mat, wanted.split) if mat.is_file() and not wanted.split_file else self.named(wanted)


class Kitti(Format):
    """KITTI's raw images and annotated depth, which comes in two parts that its split files take as one."""

    name = "kitti"

    def open(self, wanted: Wanted) -> "Pairs":
        """What a split file names."""
        return self.named(wanted, ("", "train", "val"))


FORMATS: dict[str, Format] = {
    "folder": Folder(1000.0, 10.0, full_size=False),
    "nyu": Nyu(1000.0, 10.0, "eigen", border=(43, 45, 608, 472)),
    "kitti": Kitti(256.0, 80.0, "garg", bottom_crop=(352, 1216)),
}
