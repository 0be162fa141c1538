"""What timm does to an image after the translation is what transformers' image processor did to it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from transformers import AutoImageProcessor

from tests.sentences import fragments
from tosa_cli.errors import CheckpointError
from tosa_cli.hub.architectures import FAMILIES
from tosa_cli.hub.image_processor import image_settings, processed_size

from .transformers_models import NAMES, published

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {"size": {"height": 64, "width": 64}, "resample": 3, "image_processor_type": "ViTImageProcessor", **HALF}
CROPPED = {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}, "do_center_crop": True, **HALF}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    from sklearn.datasets import load_sample_images

    return Image.fromarray(load_sample_images().images[0]).resize((600, 400))


def settings(processor: dict[str, Any], size: tuple[int, int] = (224, 224), kind: str = "ViT") -> dict[str, Any]:
    return image_settings(processor, kind, size, 3, "it")


def assert_same_pixels(processor: dict[str, Any], photo: Image.Image, folder: Path, kind: str, **how: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = torch.as_tensor(np.asarray(theirs(photo)["pixel_values"][0]))
    size = tuple(expected.shape[1:])
    ours = create_transform(input_size=(3, *size), **settings(processor, size, kind))(photo)
    assert ours.shape == expected.shape
    # Pillow rounds to whole pixel values, of which there are 256.
    assert (ours - expected).abs().max() <= how.get("tolerance", 1.01 / 255 / min(processor["image_std"]))
    assert (ours - expected).abs().mean() < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_the_published_processor(name: str, photo: Image.Image, tmp_path: Path) -> None:
    config, processor = published(name), published(name, "preprocessor_config.json")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_pixels(processor, photo, tmp_path, FAMILIES[config["model_type"]].processor)


@pytest.mark.parametrize("resample", range(6))
def test_filters_have_the_same_names(resample: int, photo: Image.Image, tmp_path: Path) -> None:
    assert_same_pixels({**SQUARE, "resample": resample}, photo, tmp_path, "ViT")


def test_a_factor_other_than_1_in_255_goes_into_mean_and_deviation(photo: Image.Image, tmp_path: Path) -> None:
    processor = {**SQUARE, "rescale_factor": 1 / 100, "do_rescale": True}
    assert_same_pixels(processor, photo, tmp_path, "ViT", tolerance=0.03)
    found = settings(processor)
    assert found["mean"] == pytest.approx([0.5 * 100 / 255] * 3) and found["std"] == pytest.approx(
        [0.5 * 100 / 255] * 3
    )


def test_pixels_that_are_not_normalised_are_left_between_0_and_1() -> None:
    found = settings({**SQUARE, "do_normalize": False})
    assert found["mean"] == (0.0, 0.0, 0.0) and found["std"] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("processor", "kind", "crop_pct", "crop_mode"),
    [
        (SQUARE, "ViT", 1.0, "squash"),
        ({"size": 224}, "ViT", 1.0, "squash"),
        ({"size": 224, "feature_extractor_type": "CLIPFeatureExtractor"}, "ViT", 1.0, "center"),
        ({"size": 256, "crop_size": 224}, "DeiT", 0.875, "squash"),
        ({"size": {"shortest_edge": 256}, "crop_size": 224}, "Bit", 0.875, "center"),
        (CROPPED, "Bit", 0.8, "center"),
        ({**CROPPED, "do_center_crop": False}, "Bit", 1.0, "center"),
        ({"do_resize": False}, "ViT", 1.0, "center"),
        ({}, "published DINOv2", 0.875, "center"),
    ],
    ids=str,
)
def test_resizing_and_cropping(processor: dict[str, Any], kind: str, crop_pct: float, crop_mode: str) -> None:
    found = settings(processor, kind=kind)
    assert (found["crop_pct"], found["crop_mode"]) == (crop_pct, crop_mode)


def test_the_size_that_a_processor_gives_is_told() -> None:
    assert processed_size(CROPPED) == (64, 64) and processed_size(SQUARE) == (64, 64)
    assert processed_size({"size": 384}) == (384, 384) and processed_size({"size": {"shortest_edge": 256}}) == (
        256,
        256,
    )
    assert processed_size({}) is None and processed_size({"size": "large"}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"resample": 17},
        {"size": {"width": 5}},
        {"image_mean": [0.5, 0.5]},
        {"image_std": "half"},
        {"rescale_factor": 0},
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_told(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=fragments.OF_IT):
        settings({**SQUARE, **change})
