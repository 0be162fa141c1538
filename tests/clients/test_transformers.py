"""transformers: Auto classes, pipelines and Trainer on a converted folder, once `tosa_cli` is imported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

import tosa_cli
from tosa_cli.model.tosa_vit import TosaViT

transformers: Any = pytest.importorskip("transformers")


@pytest.fixture
def photo() -> Image.Image:
    pixels = torch.randint(0, 256, (200, 180, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@torch.no_grad()
def test_the_auto_classes_compute_the_same(folder: Path, model: TosaViT, images: Tensor) -> None:
    classifier = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    assert torch.equal(classifier(pixel_values=images).logits, model(images))
    features = transformers.AutoModel.from_pretrained(folder).eval()(pixel_values=images)
    assert torch.equal(features.last_hidden_state, model.forward_features(images))


def test_the_image_processor_prepares_images_as_timm_does(folder: Path, model: TosaViT, photo: Image.Image) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    prepared = processor(photo, return_tensors="pt")["pixel_values"]
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    assert torch.equal(prepared[0], transform(photo))


@torch.no_grad()
def test_both_pipelines_run(folder: Path, model: TosaViT, photo: Image.Image) -> None:
    guesses = transformers.pipeline("image-classification", model=str(folder), device="cpu")(photo)
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    shares = model(transform(photo)[None]).softmax(-1)[0]
    assert guesses[0]["score"] == pytest.approx(shares.max().item(), abs=1e-5)
    features = transformers.pipeline("image-feature-extraction", model=str(folder), device="cpu")(photo)
    assert torch.tensor(features).shape == (1, 101, 64)


@torch.no_grad()
def test_it_is_saved_and_loaded_again(folder: Path, model: TosaViT, images: Tensor, tmp_path: Path) -> None:
    transformers.AutoModelForImageClassification.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again(pixel_values=images).logits, model(images))


def test_the_trainer_trains_it_for_a_step(folder: Path, images: Tensor, tmp_path: Path) -> None:
    classifier = transformers.AutoModelForImageClassification.from_pretrained(folder)
    before = {name: value.clone() for name, value in classifier.named_parameters()}
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to=[], save_strategy="no"
    )
    rows = [{"pixel_values": image, "labels": 1} for image in images]
    trainer = transformers.Trainer(classifier, settings, train_dataset=rows)
    trainer.train()
    changed = {name for name, value in classifier.named_parameters() if not value.equal(before[name])}
    assert not any("selectors" in name for name in changed) and any("blocks.5" in name for name in changed)
    trainer.save_model(str(tmp_path / "trained"))
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "trained").eval()
    with torch.no_grad():
        assert torch.equal(again(pixel_values=images).logits, classifier.eval()(pixel_values=images).logits)


def test_another_number_of_classes_makes_a_new_head(folder: Path, images: Tensor) -> None:
    classifier = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True
    )
    assert classifier(pixel_values=images).logits.shape == (2, 3)


def test_a_folder_of_before_has_its_classes_in_two_places_and_loads_here(folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    old = shutil.copytree(folder, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    config["model_args"]["num_classes"] = config["num_classes"]
    (old / "config.json").write_text(json.dumps(config))
    assert tosa_cli.load(old).num_classes == config["num_classes"]
