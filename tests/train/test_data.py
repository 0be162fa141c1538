"""Which images are trained on, and which are held out."""

from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from tosa_cli.measure.photos import find_photos
from tosa_cli.train.data import open_dataset, split_indices


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
