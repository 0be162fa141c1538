"""Images with maps are read in the formats in which people have them, and a wrong map is a clear error."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.model.tiny_models import make_vit
from tests.sentences import fragments
from tests.train.tiny_pairs import (
    save_image,
    save_png16,
    scene,
    write_folder,
    write_kitti,
    write_nyu,
    write_nyu_mat,
)
from tosa_cli.data.pair_images import PairImages, pairs_to_read
from tosa_cli.data.pairs import Pairs, open_pairs
from tosa_cli.errors import DataError
from tosa_cli.measure.evaluation import measure_models
from tosa_cli.task import TaskConfig
from tosa_cli.tasks.depth import DepthMeasure
from tosa_cli.train.predictor_config import PredictorConfig

DEPTH = TaskConfig(task="depth", max_depth=10)
FLOOR = TaskConfig(task="segmentation", num_labels=2)


class Ones(nn.Module):
    """Predicts a metre everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.ones_like(images[:, :1])


def read(pairs: Pairs, task: TaskConfig = DEPTH, **settings: Any) -> PairImages:
    defaults: dict[str, Any] = {"data_format": "folder", "img_size": None, "batch_size": 4}
    return pairs_to_read(pairs, make_vit("test_vit", img_size=32, patch_size=8), task, **{**defaults, **settings})


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_a_folder_of_pairs_gives_metres(tmp_path: Path, kind: str) -> None:
    pairs = open_pairs(str(write_folder(tmp_path, 3, kind=kind)), task="depth")
    assert len(pairs) == 3
    image, depth = pairs.read(1)
    pixels, expected, _ = scene(1)
    assert np.array_equal(np.asarray(image), pixels) and np.allclose(depth, expected, atol=6e-4)


def test_a_folder_may_have_splits_and_another_scale(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 3)
    write_folder(tmp_path / "validation", 2)
    assert len(open_pairs(str(tmp_path), task="depth")) == 3
    held_out = open_pairs(str(tmp_path), task="depth", split="validation", depth_scale=500)
    assert len(held_out) == 2 and np.allclose(held_out.read(0)[1], 2 * scene(0)[1], atol=2e-3)


def test_masks_are_class_indices(tmp_path: Path) -> None:
    pairs = open_pairs(str(write_folder(tmp_path)), task="segmentation")
    assert np.array_equal(pairs.read(2)[1], scene(2)[2])
    batch = next(iter(read(pairs, FLOOR).batches(strict=True)))
    assert batch.targets[0].dtype == torch.int64 and set(batch.targets[0].unique().tolist()) == {0, 1}


def test_a_split_file_takes_its_part_of_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "rooms")
    everything = open_pairs(str(folder), task="depth")
    image, depth = (Path(path).relative_to(folder) for path in everything.files[1])
    (tmp_path / "test.txt").write_text(f"{image} {depth}\n")
    part = open_pairs(str(folder), task="depth", split_file=str(tmp_path / "test.txt"))
    assert len(part) == 1 < len(everything)
    assert np.array_equal(part.read(0)[1], everything.read(1)[1])


def test_the_labelled_file_of_nyu_gives_measured_depth_in_its_own_split(tmp_path: Path) -> None:
    folder = write_nyu_mat(tmp_path / "nyu")
    train, test = (open_pairs(str(folder), task="depth", data_format="nyu", split=name) for name in ("train", "test"))
    assert (len(train), len(test)) == (2, 2)
    image, depth = test.read(0)
    pixels, expected, _ = scene(1, 48, 64)
    assert np.array_equal(np.asarray(image), pixels) and np.array_equal(depth, expected)
    assert test.filename(0).endswith("nyu_depth_v2_labeled.mat[2]")
    (folder / "splits.mat").unlink()
    with pytest.raises(DataError, match=r"splits\.mat"):
        open_pairs(str(folder), task="depth", data_format="nyu")


def test_nyu_pairs_follow_the_split_file_and_count_inside_the_eigen_crop(tmp_path: Path) -> None:
    folder, split = write_nyu(tmp_path)
    pairs = open_pairs(str(folder), task="depth", data_format="nyu", split_file=str(split))
    batch = next(iter(read(pairs, data_format="nyu").batches(strict=True)))
    assert batch.images.shape == (4, 3, 480, 640)
    inside = (batch.targets[0] > 0).nonzero()
    assert inside.min(dim=0).values.tolist() == [45, 41] and inside.max(dim=0).values.tolist() == [470, 600]
    assert 0 < batch.targets[0].max() <= 5


def test_kitti_is_cut_at_its_lower_middle_and_counts_inside_the_garg_crop(tmp_path: Path) -> None:
    raw, annotated, split = write_kitti(tmp_path)
    settings = {"data_format": "kitti", "split_file": str(split), "depth_dir": str(annotated)}
    pairs = open_pairs(str(raw), task="depth", **settings)
    assert len(pairs) == 3  # the line without a depth map is left out
    task = TaskConfig(task="depth", max_depth=80)
    batch = next(iter(read(pairs, task, data_format="kitti").batches(strict=True)))
    assert batch.images.shape == (3, 3, 352, 1216) and batch.targets[0].shape == (352, 1216)
    rows, columns = (batch.targets[0] > 0).nonzero().T
    # Rows 153 to 371 and columns 44 to 1197 of 375x1242, of which 23 rows and 13 columns were cut off.
    assert rows.min() >= 153 - 23 and rows.max() < 371 - 23
    assert columns.min() >= 44 - 13 and columns.max() < 1197 - 13
    assert batch.targets[0].max() == pytest.approx(pairs.read(0)[1][153:371].max())


def test_training_moves_image_and_map_together(tmp_path: Path) -> None:
    for i in range(6):
        depth = 1 + 8 * np.random.default_rng(i).random((1, 40)).repeat(40, axis=0).astype(np.float32)
        save_image(tmp_path / f"rgb/{i}.png", (depth * 25).astype(np.uint8)[..., None].repeat(3, axis=2))
        save_png16(tmp_path / f"depth/{i}.png", depth, 1000)
    pairs = open_pairs(str(tmp_path), task="depth")
    augment = PredictorConfig(color_jitter=0.0, crop_scale=1.0)
    flipped = set()
    for epoch in range(4):
        images = read(pairs, img_size=(40, 40), batch_size=6, augment=augment)
        images.samples.set_epoch(epoch)
        for position in range(6):
            image, target, _ = images.samples[position]
            assert torch.corrcoef(torch.stack([image[0].flatten(), target.flatten()]))[0, 1] > 0.99
            flipped.add(bool((target.numpy() - pairs.read(position)[1]).__abs__().max() > 0.1))
    assert flipped == {True, False}


def test_images_that_keep_their_size_are_cropped_and_colours_change_the_image_alone(tmp_path: Path) -> None:
    folder, split = write_nyu(tmp_path)
    pairs = open_pairs(str(folder), task="depth", data_format="nyu", split_file=str(split))
    augment = PredictorConfig(data_format="nyu", color_jitter=0.5, hflip=0.0, rotation=2.5)
    images = read(pairs, data_format="nyu", img_size=(416, 544), augment=augment)
    first = images.samples[0]
    assert first.image.shape == (3, 416, 544) and first.target.shape == (416, 544)
    assert set(first.target.unique().tolist()) <= {0.0, *np.unique(pairs.read(0)[1]).tolist()}
    again = images.samples[0]
    assert torch.equal(first.image, again.image) and torch.equal(first.target, again.target)
    images.samples.set_epoch(1)
    assert not torch.equal(images.samples[0].image, first.image)


def test_the_map_of_an_evaluation_keeps_its_size(tmp_path: Path) -> None:
    pairs = open_pairs(str(write_folder(tmp_path, 3, size=(36, 48))), task="depth")
    batch = next(iter(read(pairs, img_size=(32, 32)).batches(strict=True)))
    assert batch.images.shape == (3, 3, 32, 32) and batch.targets[0].shape == (36, 48)


def wrong_size(folder: Path) -> None:
    save_png16(folder / "depth/000.png", np.ones((30, 32), np.float32), 1000)


def eight_bits(folder: Path) -> None:
    save_image(folder / "depth/000.png", np.full((32, 32), 7, np.uint8))


def coloured(folder: Path) -> None:
    save_image(folder / "depth/000.png", np.full((32, 32, 3), 7, np.uint8))


def metres_times_a_million(folder: Path) -> None:
    save_png16(folder / "depth/000.png", np.full((32, 32), 40.0, np.float32), 1000)


def whole_numbers(folder: Path) -> None:
    (folder / "depth/000.png").unlink()
    np.save(folder / "depth/000.npy", np.full((32, 32), 2000))


def negative(folder: Path) -> None:
    (folder / "depth/000.png").unlink()
    np.save(folder / "depth/000.npy", np.full((32, 32), -1.0))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (wrong_size, r"000.png .*32x32 .*30x32"),
        (eight_bits, r"000.png .*mode L\b"),
        (coloured, r"000.png .*mode RGB\b"),
        (metres_times_a_million, r" 40 to 40 m.*--depth-scale.*--max-depth"),
        (whole_numbers, r"000.npy .*int64"),
        (negative, r"000.npy .*-1\b"),
    ],
)
def test_a_wrong_depth_map_is_told_before_any_work_is_done(tmp_path: Path, spoil: Any, named: str) -> None:
    write_folder(tmp_path, 3)
    spoil(tmp_path)
    with pytest.raises(DataError, match=named):
        read(open_pairs(str(tmp_path), task="depth"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_map_further_on_stops_the_work_and_a_broken_file_is_named(tmp_path: Path, workers: int) -> None:
    write_folder(tmp_path, 6)
    (tmp_path / "rgb/002.png").write_bytes(b"not an image")
    images = read(open_pairs(str(tmp_path), task="depth"), workers=workers)
    assert sum(len(batch.images) for batch in images.batches(strict=False)) == 5
    assert [Path(name.split(" (")[0]).name for name in images.failed] == ["002.png"]
    Image.new("L", (32, 32)).save(tmp_path / "depth/004.png")
    images = read(open_pairs(str(tmp_path), task="depth"), workers=workers)
    with pytest.raises(DataError, match=r"004\.png .*mode L\b") as failure:
        list(images.batches(strict=False))
    assert "Traceback" not in str(failure.value)


def test_an_image_without_a_measured_depth_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    save_png16(tmp_path / "depth/001.png", np.zeros((32, 32), np.float32), 1000)
    images = read(open_pairs(str(tmp_path), task="depth"))
    assert sum(len(batch.images) for batch in images.batches(strict=False)) == 2
    assert next(iter(images.failed)).endswith("(no depth was measured in the part that counts)")


def test_an_image_whose_measured_depth_is_cut_off_is_named(tmp_path: Path) -> None:
    """KITTI's images are cut to 352 rows: of one of 1000, its crop for evaluation reaches far above them."""
    raw, annotated, split = write_kitti(tmp_path, 2, size=(1000, 1242))
    (path,) = (annotated / "train").rglob("*.png")
    depth = np.zeros((999, 1240), np.float32)
    depth[500:600, 100:1100] = 20.0
    save_png16(path, depth, 256)
    pairs = open_pairs(str(raw), task="depth", data_format="kitti", split_file=str(split), depth_dir=str(annotated))
    task = TaskConfig(task="depth", max_depth=80)
    images = read(pairs, task, data_format="kitti")
    report = measure_models({"ones": Ones()}, images, DepthMeasure(1e-3, 80))
    assert report.samples == 1 and math.isfinite(report.models["ones"].abs_rel)
    assert "0000000001.png (no depth was measured in the part" in next(iter(images.failed))


def test_a_mask_with_an_unknown_class_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    save_image(tmp_path / "mask/000.png", np.full((32, 32), 5, np.uint8))
    with pytest.raises(DataError, match=fragments.CLASS_5_NUM_LABELS_2):
        read(open_pairs(str(tmp_path), task="segmentation"), FLOOR)


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    write_folder(tmp_path, 2)
    save_image(tmp_path / "rgb/001.png", scene(1, 40, 40)[0])
    save_png16(tmp_path / "depth/001.png", scene(1, 40, 40)[1], 1000)
    pairs = open_pairs(str(tmp_path), task="depth")
    with pytest.raises(DataError, match=r"32x32 and 40x40.*--img-size"):
        list(read(pairs).batches(strict=False))
    assert len(list(read(pairs, batch_size=1).batches(strict=True))) == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"data_dir": "missing"}, "missing.*--data-dir"),
        ({"data_dir": ""}, "--data-dir"),
        ({"task": "segmentation", "data_format": "nyu"}, "nyu.*--data-format folder"),
        ({"data_format": "kitti"}, "kitti.*--split-file"),
        ({"split_file": "gone.txt"}, "photos/gone.png"),
        ({"depth_dir": "elsewhere"}, "--depth-dir"),
        ({"data_format": "kitti", "split_file": "bad.txt"}, "Line 1 of bad.txt .*'x'"),
        ({"data_format": "nyu", "split_file": "gone.txt"}, "gone.png.*--data-dir"),
        ({"data_format": "nyu", "split_file": "no.txt"}, "no.txt"),
        ({"data_format": "nyu", "split_file": "none.txt"}, "none.txt"),
        ({"data_dir": "lonely"}, "rgb/000.png .*depth/000.png"),
        ({"data_dir": "bare"}, "bare .*rgb/NAME.jpg"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", 1)
    write_folder(tmp_path / "lonely", 1)
    (tmp_path / "lonely/depth/000.png").unlink()
    (tmp_path / "bare").mkdir()
    for name, text in (("bad", "x"), ("gone", "gone.png gone.png"), ("none", "rgb/000.png None 1.0")):
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(DataError, match=named):
        open_pairs(**{"data_dir": "photos", "task": "depth", **settings})  # type: ignore[arg-type]
