"""What is said of images, maps and photos; a long table."""

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tosa_cli
from tests.data.test_loading import grey, write_deep
from tests.data.test_pairs import (
    FLOOR,
    coloured,
    eight_bits,
    metres_times_a_million,
    negative,
    read,
    whole_numbers,
    wrong_size,
)
from tests.draw.test_predicted_maps import make_predictor
from tests.model.tiny_models import make_images, make_tosa, make_vit
from tests.train.tiny_pairs import save_image, save_png16, scene, write_folder, write_nyu_mat
from tests.train.tiny_runs import read as read_images
from tests.train.tiny_runs import tiny_tosa, write_digits
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import images_to_read
from tosa_cli.data.pairs import Pairs, open_pairs
from tosa_cli.data.photos import find_photos, open_photo, photo_transform, read_photo
from tosa_cli.draw.picture import make_picture, make_predicted_picture
from tosa_cli.draw.selection_maps import read_selection
from tosa_cli.measure.evaluation import measure_models
from tosa_cli.tasks.classification import AccuracyMeasure
from tosa_cli.train.config import TrainConfig

from .folders import written
from .rows import Row, check, table


def deep() -> Path:
    """A folder with an image of more than 16 bits."""
    return write_deep(Path("deeper"), grey().astype(np.int32) * 1000, ".tif")


def spoilt(spoil: Callable[[Path], Any]) -> Pairs:
    """Pairs, the first map of which is spoilt."""
    spoil(write_folder(Path("pairs"), 3))
    return open_pairs("pairs", task="depth")


def masked(value: int) -> Pairs:
    """Pairs with masks, the first of which is of one class."""
    write_folder(Path("pairs"), 3)
    save_image(Path("pairs/mask/000.png"), np.full((32, 32), value, np.uint8))
    return open_pairs("pairs", task="segmentation")


def of_two_sizes() -> Pairs:
    write_folder(Path("pairs"), 2)
    save_image(Path("pairs/rgb/001.png"), scene(1, 40, 40)[0])
    save_png16(Path("pairs/depth/001.png"), scene(1, 40, 40)[1], 1000)
    return open_pairs("pairs", task="depth")


def pairs(**settings: Any) -> Pairs:
    """Pairs in folders and lists of every kind, opened by some settings."""
    write_folder(Path("photos"), 1)
    write_folder(Path("lonely"), 1)
    Path("lonely/depth/000.png").unlink()
    Path("bare").mkdir()
    for name, text in (("bad", "x"), ("gone", "gone.png gone.png"), ("none", "rgb/000.png None 1.0")):
        written(f"{name}.txt", text.encode())
    return open_pairs(**{"data_dir": "photos", "task": "depth", **settings})


def without_splits() -> Pairs:
    folder = write_nyu_mat(Path("nyu"))
    (folder / "splits.mat").unlink()
    return open_pairs(str(folder), task="depth", data_format="nyu")


def measure_broken_images(strict: bool) -> None:
    folder = write_digits(Path("digits"), 10)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    images = read_images(tiny_tosa(), folder, TrainConfig(batch_size=8, workers=0), None)
    measure_models({"tosa": tiny_tosa()}, images, AccuracyMeasure(), strict=strict)


def draw_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    make_picture(make_tosa(), make_images(1))


def read_a_broken_photo() -> None:
    model = make_tosa(make_vit(img_size=64))
    read_photo(Path(written("cat.jpg", b"meow")), model, photo_transform(model))


DROP = ConvertConfig(layers="auto", selector="ward", bypass="mean", max_drop=1.5, data_dir="digits")


def converted(**settings: Any) -> Any:
    """A model that does not know the digits, converted so that it loses little of its accuracy on them."""
    write_digits(Path("digits"), 40)
    return tosa_cli.convert(make_vit(img_size=32, patch_size=8, **settings), DROP)


DATA: list[Row] = [
    (
        "an accuracy of guesses",
        lambda: converted(num_classes=10),
        "The dense model gets … of 26 held-out images of digits right, and by guessing 10.0% are, so 1.5 points tell "
        "too little: check which class each label is (--class-map FILE), hold out more images with --max-samples, or "
        "allow less.",
    ),
    (
        "an accuracy without a head",
        lambda: converted(num_classes=0),
        "test_vit has no classifier head, so it has no accuracy to lose: hold its tokens with --min-cosine 0.99, or "
        "name a model with a trained head.",
    ),
    (
        "labels that are not the model's",
        lambda: converted(num_classes=5),
        "digits has 10 classes, but the model's head has 5. Point --data-dir at the right folder, say with --class-map "
        "FILE which class each folder is, or convert the source with --num-classes 10.",
    ),
    (
        "an image of more than 16 bits in a folder",
        lambda: list(
            images_to_read(open_dataset(str(deep())), tiny_tosa(), batch_size=1, name="deeper").batches(strict=False)
        ),
        "None of the images of deeper can be read, the first is deeper/deep.tif (its values run from 0 to "
        "245000, which are no 16 bits). Check the data.",
    ),
    (
        "an image of more than 16 bits",
        lambda: open_photo(next(deep().iterdir()), tiny_tosa()),
        "deeper/deep.tif cannot be read (its values run from 0 to 245000, which are no 16 bits). Name another image.",
    ),
    (
        "an image of 32 bits that 8 would hold",
        lambda: open_photo(next(write_deep(Path("dark"), grey().astype(np.int32), ".tif").iterdir()), tiny_tosa()),
        "dark/deep.tif cannot be read (its values of 32 bits run from 0 to 245 only, whose range is not known). Name "
        "another image.",
    ),
    (
        "a file of NYU without its split",
        without_splits,
        "nyu/splits.mat is missing, which tells training from test images: download it beside "
        "nyu_depth_v2_labeled.mat.",
    ),
    (
        "a map of another size",
        lambda: read(spoilt(wrong_size)),
        "pairs/rgb/000.png is 32x32 pixels, but its map 30x32: they must be of one size.",
    ),
    (
        "a depth map of 8 bits",
        lambda: read(spoilt(eight_bits)),
        "pairs/depth/000.png is an image of mode L, but a depth map is a greyscale PNG of 16 bits, or a .npy "
        "in metres: a picture made of the depth to look at cannot be learned from.",
    ),
    (
        "a depth map in colour",
        lambda: read(spoilt(coloured)),
        "pairs/depth/000.png is an image of mode RGB, but a depth map is a greyscale PNG of 16 bits, or a "
        ".npy in metres: a picture made of the depth to look at cannot be learned from.",
    ),
    (
        "a depth map of another scale",
        lambda: read(spoilt(metres_times_a_million)),
        "The depth map of pairs/rgb/000.png runs from 40 to 40 m, with next to nothing between 0.001 and 10 "
        "m: pass the values of one metre with --depth-scale, or another --max-depth.",
    ),
    (
        "a depth map of whole numbers",
        lambda: read(spoilt(whole_numbers)),
        "pairs/depth/000.npy holds int64, but a .npy depth map holds floating-point metres: convert it, or "
        "save it as a 16-bit PNG and pass --depth-scale.",
    ),
    (
        "a depth map below zero",
        lambda: read(spoilt(negative)),
        "pairs/depth/000.npy has depths below zero (down to -1): a depth is in metres from 0 up.",
    ),
    (
        "a mask of an unknown class",
        lambda: read(masked(5), FLOOR),
        "The mask of pairs/rgb/000.png has class 5, but --num-labels is 2 (0 to 1; 255 is no class). Pass "
        "--num-labels 6, also for masks that count from 1, or name what is no class with --ignore-index.",
    ),
    (
        "images of two sizes",
        lambda: list(read(of_two_sizes()).batches(strict=False)),
        "Images of a batch are of different sizes (32x32 and 40x40): pass --img-size, or -b 1.",
    ),
    (
        "no such folder",
        lambda: pairs(data_dir="missing"),
        "There is no folder missing. Pass where the images lie with --data-dir.",
    ),
    ("no folder", lambda: pairs(data_dir=""), "No images were named: pass --data-dir FOLDER."),
    (
        "masks of NYU",
        lambda: pairs(task="segmentation", data_format="nyu"),
        "The format nyu has depth maps, not masks: use --data-format folder.",
    ),
    (
        "KITTI without a split file",
        lambda: pairs(data_format="kitti"),
        "The format kitti needs a split file, a line 'IMAGE DEPTH' for each image: name it with --split-file "
        "(held-out images: --val-split-file).",
    ),
    (
        "a split file of what is gone",
        lambda: pairs(split_file="gone.txt"),
        "Line 1 of gone.txt names photos/gone.png, which does not exist: check --data-dir.",
    ),
    (
        "a depth folder without a split file",
        lambda: pairs(depth_dir="elsewhere"),
        "--depth-dir goes with a split file: name it with --split-file, or leave --depth-dir out.",
    ),
    (
        "a split file of one word a line",
        lambda: pairs(data_format="kitti", split_file="bad.txt"),
        "Line 1 of bad.txt should be 'IMAGE DEPTH', but is 'x'.",
    ),
    (
        "a split file of NYU of what is gone",
        lambda: pairs(data_format="nyu", split_file="gone.txt"),
        "Line 1 of gone.txt names photos/gone.png, which does not exist: check --data-dir.",
    ),
    (
        "a split file that is not there",
        lambda: pairs(data_format="nyu", split_file="no.txt"),
        "The split file no.txt cannot be read ([Errno …] No such file or directory: 'no.txt'). Check its path, and "
        "that it is text.",
    ),
    (
        "a split file without depth maps",
        lambda: pairs(data_format="nyu", split_file="none.txt"),
        "The split file none.txt names no image with a depth map: a line for each is 'IMAGE DEPTH'.",
    ),
    (
        "an image without a map",
        lambda: pairs(data_dir="lonely"),
        "lonely/rgb/000.png has no map: expected lonely/depth/000.png.",
    ),
    (
        "a folder without images",
        lambda: pairs(data_dir="bare"),
        "bare has no folder rgb: expected rgb/NAME.jpg or .png and depth/NAME.png or NAME.npy, in it or in "
        "its folder train.",
    ),
    (
        "images none of which can be read",
        lambda: measure_broken_images(strict=False),
        "None of the images of digits can be read, the first is digits/0/0000.png (not an image, or broken). "
        "Check the data.",
    ),
    (
        "an image that cannot be read",
        lambda: measure_broken_images(strict=True),
        "digits/0/0000.png (not an image, or broken) cannot be read. Remove it, or leave out --strict to "
        "skip such images.",
    ),
    (
        "no matplotlib",
        draw_without_matplotlib,
        "Drawing pictures needs matplotlib: run `pip install 'tosa-cli[plot]'`.",
    ),
    ("no such photo", lambda: find_photos([Path("cat.jpg")]), "There is no image or folder cat.jpg. Check the path."),
    (
        "a folder without photos",
        lambda place: find_photos([Path()]),
        ". holds no images (.jpg, .png, ...). Name another folder, or an image.",
    ),
    (
        "a photo that is none",
        read_a_broken_photo,
        "cat.jpg cannot be read (it is not an image, or broken). Name another image.",
    ),
    (
        "a layer that skips nothing",
        lambda: read_selection(make_tosa(), make_images(1), [2, 3]),
        "Layer 3 is not a ToSA layer of this model: choose among 2,4,6.",
    ),
    (
        "a layer of a predictor that skips nothing",
        lambda: make_predicted_picture(make_predictor(), make_images(1, size=64), layers=[3]),
        "Layer 3 is not a ToSA layer of this model: choose among 2,4,6.",
    ),
]
"""What cannot be read or drawn."""


@table(DATA)
def test_what_is_said(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    check(request, fails, sentence)
