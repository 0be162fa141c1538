"""Which images are trained on, and which are held out."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.image_sources import write_shards
from tests.sentences import fragments
from tests.train import tiny_pairs
from tests.train.tiny_runs import photos, tiny_tosa
from tosa_cli.data.datasets import open_dataset, split_indices
from tosa_cli.data.loading import images_to_read
from tosa_cli.data.pair_images import pairs_to_read
from tosa_cli.data.pairs import open_pairs
from tosa_cli.data.photos import find_photos, open_photo, photo_transform, read_photo
from tosa_cli.errors import DataError
from tosa_cli.task import TaskConfig


@pytest.mark.parametrize("num_images", [2, 3, 9, 10, 11, 100, 1001, 20_000])
@pytest.mark.parametrize("max_samples", [None, 2, 7, 1000])
def test_training_and_held_out_images_are_disjoint_and_all_that_were_asked_for(
    num_images: int, max_samples: int | None
) -> None:
    training, held_out = split_indices(num_images, max_samples, hold_out=True)
    count = min(num_images, max_samples or num_images)
    assert not set(training) & set(held_out)
    assert len(set(training) | set(held_out)) == len(training) + len(held_out) == count
    assert len(held_out) == min(500, max(1, count // 10))
    assert all(0 <= index < num_images for index in (*training, *held_out))
    assert training == sorted(training) and held_out == sorted(held_out)
    assert split_indices(num_images, max_samples, hold_out=True) == (training, held_out)


@pytest.mark.parametrize("count", [50, 1000])
def test_images_are_evenly_spread(count: int) -> None:
    for indices in split_indices(20_000, count, hold_out=True):
        gaps = [second - first for first, second in pairwise(indices)]
        assert max(gaps) <= 2.1 * 20_000 / len(indices) and indices[0] <= 20_000 / len(indices)


def test_nothing_is_held_out_unasked() -> None:
    assert split_indices(5, None, hold_out=False) == ([0, 1, 2, 3, 4], [])
    assert split_indices(5, 9, hold_out=False) == ([0, 1, 2, 3, 4], [])
    assert split_indices(1, None, hold_out=True) == ([0], [])


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".tiff", ".bmp", ".png"])
def test_every_usual_format_is_read(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / f"red{suffix}")
    opened = open_dataset(str(tmp_path))
    assert len(opened) == 1 and opened[0][0].convert("RGB").getpixel((4, 4))[0] > 200
    assert [path.suffix for path in find_photos([tmp_path])] == [suffix]


@pytest.mark.filterwarnings("error")
def test_no_more_processes_load_data_than_there_are_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    folder = str(tiny_pairs.write_folder(tmp_path, 3))
    for asked, used in ((8, 3), (2, 2), (0, 0)):
        images = images_to_read(open_dataset(folder), tiny_tosa(), batch_size=1, workers=asked)
        pairs = pairs_to_read(
            open_pairs(folder, task="depth"),
            tiny_tosa(),
            TaskConfig(task="depth"),
            data_format="folder",
            img_size=(32, 32),
            batch_size=1,
            workers=asked,
        )
        assert images.loader.num_workers == pairs.loader.num_workers == used


# ---------------------------------------------------------------------- greyscale of 16 bits


def grey() -> np.ndarray:
    """A photo's cut-out (40, 40) in 8 bits."""
    return np.asarray(Image.fromarray(photos()[0][100:140, 100:140]).convert("L"))


def write_deep(folder: Path, values: np.ndarray, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True)
    Image.fromarray(values).save(folder / f"deep{suffix}")
    return folder


@pytest.mark.parametrize("values", [np.uint16, ">u2", np.int32], ids=["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_to_eight_wherever_images_are_read(tmp_path: Path, values: type) -> None:
    deep = grey().astype(np.int64) * 257
    folder = write_deep(
        tmp_path / "deep", (deep + np.arange(-20, 20) * (deep > 0) * (deep < 65535)).astype(values), ".tif"
    )
    photo, model = next(folder.iterdir()), tiny_tosa()
    assert np.array_equal(np.asarray(open_photo(photo, model)), grey()[:, :, None].repeat(3, axis=2))
    (batch,) = images_to_read(open_dataset(str(folder)), model, batch_size=1).batches(strict=True)
    assert torch.equal(batch.images, read_photo(photo, model, photo_transform(model)))


def test_sixteen_bits_are_scaled_in_pairs_and_shards_too(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    deep, eight = grey().astype(np.uint16) * 257, grey()
    for name, values in (("deep", deep), ("eight", eight)):
        for split in ("train", "validation"):
            write_deep(tmp_path / name / split / "class", values)
        write_shards(tmp_path / f"{name}-shards", tmp_path / name, shards=1)
    write_deep(tmp_path / "rooms" / "rgb", deep)
    write_deep(tmp_path / "rooms" / "depth", deep)
    image, _ = open_pairs(str(tmp_path / "rooms"), task="depth").read(0)
    assert image.mode == "RGB" and np.array_equal(np.asarray(image)[:, :, 0], eight)
    read = [
        next(images_to_read(opened, tiny_tosa(), batch_size=1).batches(strict=True)).images
        for name in ("deep", "eight")
        for opened in [open_dataset(str(tmp_path / f"{name}-shards"), "wds/any")]
    ]
    assert torch.equal(*read)


def test_values_of_more_bits_are_named_and_not_read_as_white(tmp_path: Path) -> None:
    folder = write_deep(tmp_path / "deeper", grey().astype(np.int32) * 1000, ".tif")
    with pytest.raises(DataError, match=fragments.DEEPER_DEEP_TIF_0_TO):
        list(images_to_read(open_dataset(str(folder)), tiny_tosa(), batch_size=1).batches(strict=False))
    with pytest.raises(DataError, match=r"deeper/deep.tif"):
        open_photo(next(folder.iterdir()), tiny_tosa())


def test_values_of_32_bits_that_8_would_hold_are_named_and_not_read_as_black(tmp_path: Path) -> None:
    folder = write_deep(tmp_path / "deeper", grey().astype(np.int32), ".tif")
    with pytest.raises(DataError, match=fragments.DEEPER_DEEP_TIF_0_TO_245):
        open_photo(next(folder.iterdir()), tiny_tosa())
    black = write_deep(tmp_path / "black", np.zeros((40, 40), np.int32), ".tif")
    assert np.asarray(open_photo(next(black.iterdir()), tiny_tosa())).max() == 0


def test_values_of_more_bits_are_left_out_of_shards_and_named(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    for split in ("train", "validation"):
        folder = write_deep(tmp_path / "mixed" / split / "class", grey().astype(np.int32) * 1000, ".tif")
        Image.fromarray(grey()).save(folder / "a.png")
    write_shards(tmp_path / "shards", tmp_path / "mixed", shards=1)
    images = images_to_read(open_dataset(str(tmp_path / "shards"), "wds/any"), tiny_tosa(), batch_size=4)
    assert [len(batch.images) for batch in images.batches(strict=False)] == [1]
    assert len(images.failed) == 1 and "image 2 (its values run from" in next(iter(images.failed))


@pytest.mark.parametrize("high", [1.0, 255.0, float("nan")])
def test_floating_point_values_are_named_and_not_read_as_black(tmp_path: Path, high: float) -> None:
    folder = write_deep(tmp_path / "floats", grey().astype(np.float32) / 255 * np.float32(high), ".tif")
    with pytest.raises(DataError, match=fragments.FLOATS_DEEP_TIF_ITS_VALUES):
        list(images_to_read(open_dataset(str(folder)), tiny_tosa(), batch_size=1).batches(strict=False))
    with pytest.raises(DataError, match=r"floats/deep\.tif"):
        open_photo(next(folder.iterdir()), tiny_tosa())
