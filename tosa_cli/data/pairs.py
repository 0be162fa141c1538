"""Images with a map of the same size: depth maps and class masks, in the forms in which people have them.

| format | images | depth | which |
|---|---|---|---|
| `folder` | `rgb/NAME.jpg` or `.png` | `depth/NAME.png` (16 bit) or `.npy` (metres); classes in `mask/NAME.png` | all |
| `nyu` | NYU Depth v2: `nyu_depth_v2_labeled.mat` | its `rawDepths` | `splits.mat` beside it |
| `nyu` | PNG or JPEG | 16-bit PNG in millimetres | a split file |
| `kitti` | KITTI's raw data | annotated depth, 16-bit PNG in 1/256 m | a split file |

A split file has a line `IMAGE DEPTH ...` for each image, as those of BTS and NeWCRFs; DEPTH may be `None`, and such an
image is left out. 0 stands for a depth that was not measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from tosa_cli.data.datasets import check_split_is_meant
from tosa_cli.data.formats import FORMATS, Wanted
from tosa_cli.data.images import to_color_mode
from tosa_cli.data.maps import read_depth, read_mask
from tosa_cli.errors import DataError
from tosa_cli.task import PredictorTask

LABELLED_MAT, SPLITS_MAT = "nyu_depth_v2_labeled.mat", "splits.mat"
MAP_FOLDERS: dict[PredictorTask, str] = {"depth": "depth", "segmentation": "mask"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MAP_SUFFIXES = {"depth": (".png", ".npy"), "segmentation": (".png",)}


class Pairs(Protocol):
    """Images, each with a map."""

    @property
    def folder(self) -> Path:
        """Where they lie."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """An image and its map (height, width): depth in metres, or class indices.

        Raises:
            DataError: If the map is of the wrong type or unit.
            Exception: If one of the files cannot be read.
        """

    def filename(self, index: int) -> str:
        """What to call it."""

    def paths(self, index: int) -> tuple[Path, ...]:
        """The files that it is read from."""


@dataclass(frozen=True)
class PairFiles:
    """Images and maps in files of their own.

    Attributes:
        folder: Where they lie.
        files: Image and map of each pair.
        read_map: Reads a map.
    """

    folder: Path
    files: list[tuple[Path, Path]]
    read_map: Callable[[Path], np.ndarray]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """An image and its map (height, width)."""
        image, path = self.files[index]
        with Image.open(image) as opened:
            return to_color_mode(opened, "RGB"), self.read_map(path)

    def filename(self, index: int) -> str:
        """Path of the image."""
        return str(self.files[index][0])

    def paths(self, index: int) -> tuple[Path, ...]:
        """The image's file and the map's."""
        return self.files[index]


@dataclass(frozen=True)
class LabelledMat:
    """The labelled images of NYU Depth v2 in their one file, which is HDF5 with its axes in Matlab's order.

    The depth is `rawDepths`, as measured: holes were not filled in.

    Attributes:
        path: The file.
        indices: Which of its images, from 0.
    """

    path: Path
    indices: list[int]

    @property
    def folder(self) -> Path:
        """Where the file lies."""
        return self.path.parent

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """An image and its depth map (height, width) in metres."""
        import h5py

        with h5py.File(self.path, "r") as file:
            pixels, depth = file["images"][self.indices[index]], file["rawDepths"][self.indices[index]]
        return Image.fromarray(pixels.transpose(2, 1, 0)), depth.T.astype(np.float32)

    def filename(self, index: int) -> str:
        """The file, and the image's number in it as Matlab counts."""
        return f"{self.path}[{self.indices[index] + 1}]"

    def paths(self, index: int) -> tuple[Path, ...]:
        """The one file."""
        return (self.path,)


def open_pairs(
    data_dir: str,
    *,
    task: PredictorTask,
    data_format: str = "folder",
    split: str = "train",
    split_file: str = "",
    depth_dir: str = "",
    depth_scale: float = 0.0,
    ignore_index: int | None = None,
) -> Pairs:
    """Open images with maps.

    Args:
        data_dir: Where they lie; of `folder`, its sub-folder `split`, which may be missing if it is a default one.
        task: What the maps hold.
        data_format: `folder`, `nyu` or `kitti`.
        split: Which of the images, where the format itself knows.
        split_file: Text file that names images and depth maps; of `folder`, in the place of all that it holds.
        depth_dir: Where the depth maps of a split file lie; empty is `data_dir`.
        depth_scale: Values of a 16-bit PNG for one metre; 0 is the format's own.
        ignore_index: Value of a mask that is no class, besides 255.

    Raises:
        DataError: If they are missing or incomplete.
    """
    if not data_dir:
        raise DataError("No images were named: pass --data-dir FOLDER.")
    root = Path(data_dir)
    if not root.exists():
        raise DataError(f"There is no folder {root}. Pass where the images lie with --data-dir.")
    form = FORMATS[data_format]
    if task == "segmentation" and not form.has_masks:
        raise DataError(f"The format {data_format} has depth maps, not masks: use --data-format folder.")
    if task == "segmentation" and depth_scale:
        raise DataError("--depth-scale goes with depth maps, and segmentation has masks: leave it out.")
    if task == "depth" and ignore_index is not None:
        raise DataError("--ignore-index goes with masks, and depth has none: leave it out.")
    if data_format == "folder" and depth_dir and not split_file:
        raise DataError("--depth-dir goes with a split file: name it with --split-file, or leave --depth-dir out.")
    scale = depth_scale or form.depth_scale
    read_map = (
        partial(read_mask, ignore_index=ignore_index) if task == "segmentation" else partial(read_depth, scale=scale)
    )
    return form.open(Wanted(root, task, split, split_file, Path(depth_dir or data_dir), read_map))


def pairs_of_folder(wanted: Wanted) -> PairFiles:
    """Open `rgb/` with `depth/` or `mask/` in a folder, or in its sub-folder of a split.

    Raises:
        DataError: If a folder, an image or a map is missing.
    """
    root, split, task = wanted.root, wanted.split, wanted.task
    if (root / split).is_dir():
        root = root / split
    else:
        check_split_is_meant(root, split)
    images, maps = root / "rgb", root / MAP_FOLDERS[task]
    for folder in (images, maps):
        if not folder.is_dir():
            raise DataError(
                f"{root} has no folder {folder.name}: expected rgb/NAME.jpg or .png and "
                f"{maps.name}/NAME{' or NAME'.join(MAP_SUFFIXES[task])}, in it or in its folder {split}."
            )
    files = []
    for image in sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        name = image.relative_to(images)
        found = [path for suffix in MAP_SUFFIXES[task] if (path := maps / name.with_suffix(suffix)).is_file()]
        if not found:
            raise DataError(f"{image} has no map: expected {maps / name.with_suffix(MAP_SUFFIXES[task][0])}.")
        files.append((image, found[0]))
    if not files:
        raise DataError(
            f"{images} holds no images (.jpg, .png): put them there, or name another folder with --data-dir."
        )
    return PairFiles(root, files, wanted.read_map)


def pairs_of_mat(path: Path, split: str) -> LabelledMat:
    """Open the training or test images of NYU's labelled file.

    Raises:
        DataError: If a package is not installed, or the file is another or cut short.
    """
    try:
        import h5py
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"Reading {path.name} needs a package: run `pip install 'tosa-cli[nyu]'`.") from error
    splits = path.with_name(SPLITS_MAT)
    if not splits.is_file():
        raise DataError(f"{splits} is missing, which tells training from test images: download it beside {path.name}.")
    key = "trainNdxs" if split.startswith("train") else "testNdxs"
    try:
        with h5py.File(path, "r") as file:
            count = len(file["rawDepths"]) if "images" in file else 0
        indices: Any = loadmat(splits)[key].ravel().astype(int) - 1
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} or {SPLITS_MAT} is not of NYU Depth v2, or cut short ({error}). Download both again."
        ) from error
    if not len(indices) or indices.max() >= count:
        raise DataError(
            f"{splits} names image {indices.max(initial=-1) + 1}, but {path.name} has {count} images: download both "
            f"again."
        )
    return LabelledMat(path, indices.tolist())


def pairs_of_split_file(wanted: Wanted, parts: Sequence[Path]) -> PairFiles:
    """Open the images with depth maps that a split file names.

    Args:
        wanted: Which images; a split file among it.
        parts: Folders of depth maps; the first that has a map is taken.

    Raises:
        DataError: If the file cannot be read, or names what is missing.
    """
    root, depth_root, split_file = wanted.root, wanted.depth_root, wanted.split_file
    try:
        lines = Path(split_file).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(
            f"The split file {split_file} cannot be read ({error}). Check its path, and that it is text."
        ) from error
    files = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2:
            raise DataError(f"Line {number} of {split_file} should be 'IMAGE DEPTH', but is {line.strip()!r}.")
        if words[1] == "None":
            continue
        image = root / words[0].lstrip("/")
        found = [path for part in parts if (path := part / words[1].lstrip("/")).is_file()]
        if not image.is_file() or not found:
            missing = depth_root / words[1].lstrip("/") if image.is_file() else image
            option = "--depth-dir" if image.is_file() else "--data-dir"
            raise DataError(f"Line {number} of {split_file} names {missing}, which does not exist: check {option}.")
        files.append((image, found[0]))
    if not files:
        raise DataError(
            f"The split file {split_file} names no image with a depth map: a line for each is 'IMAGE DEPTH'."
        )
    return PairFiles(root, files, wanted.read_map)
