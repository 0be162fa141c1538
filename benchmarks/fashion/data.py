"""Write Fashion-MNIST as a folder of images: `train` (60,000) and `validation` (10,000), one folder a class.

    python -m benchmarks.fashion.data OUT_FOLDER [--overwrite]

The images come from the Debian package dataset-fashion-mnist (fetched with apt-get, so this needs Debian or a relative
of it) and are written as PNG of 28 x 28 pixels.
"""

import argparse
import gzip
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.downloads import UserError, check_target, download, fresh_folder, run_command

PACKAGE = "dataset-fashion-mnist"
FOLDER = "usr/share/datasets/fashion-mnist"
SPLITS = {"train": "train", "validation": "t10k"}
CLASSES = (
    "t-shirt_top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle_boot",
)
HEADER = {"images-idx3": 16, "labels-idx1": 8}
"""Bytes before the values, in the format of MNIST."""


def read_values(folder: Path, split: str, kind: str) -> np.ndarray:
    """The bytes of a file in the format of MNIST, without its header."""
    with gzip.open(folder / f"{split}-{kind}-ubyte.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=HEADER[kind])


def write_split(source: Path, split: str, folder: Path) -> int:
    """Write the images of a split into class folders, and tell how many there are."""
    pixels = read_values(source, split, "images-idx3").reshape(-1, 28, 28)
    labels = read_values(source, split, "labels-idx1")
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(folder / CLASSES[label] / f"{index:05d}.png")
    return len(labels)


def write_images(target: Path) -> None:
    """Fetch the package and write the folder `target`."""
    with tempfile.TemporaryDirectory() as scratch, fresh_folder(target) as folder:
        deb = download(["apt-get", "download", PACKAGE], "*.deb", Path(scratch))
        run_command(["dpkg", "-x", str(deb), scratch], Path(scratch), f"unpack {deb.name}")
        for split, name in SPLITS.items():
            count = write_split(Path(scratch) / FOLDER, name, folder / split)
            print(f"{split}: {count} images", file=sys.stderr)


def main() -> None:
    """Parse the command line and write the images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out_folder", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT_FOLDER if this script wrote it")
    args = parser.parse_args()
    try:
        target = args.out_folder.resolve()
        check_target(target, args.overwrite, "train")
        write_images(target)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
