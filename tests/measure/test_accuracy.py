"""Accuracy and features are those of the model, over all images that can be read."""

from pathlib import Path

import pytest
import torch

from tests.train.tiny_runs import read, tiny_tosa, write_digits
from tosa_cli.data.loading import Images
from tosa_cli.errors import DataError
from tosa_cli.measure.evaluation import Measured, measure_models
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.tasks.classification import AccuracyMeasure
from tosa_cli.tasks.features import CosineMeasure, Cosines
from tosa_cli.train.config import TrainConfig


def digits(folder: Path, batch_size: int) -> Images:
    write_digits(folder, 33)
    return read(tiny_tosa(), folder, TrainConfig(batch_size=batch_size, workers=0), None)


def cosines(model: TosaViT, images: Images) -> Measured[Cosines]:
    return measure_models({"tosa": model, "dense": model.backbone}, images, CosineMeasure(model))


def test_top1_and_top5_are_exact_shares(tmp_path: Path) -> None:
    images, model = digits(tmp_path, 7), tiny_tosa()
    report = measure_models({"tosa": model}, images, AccuracyMeasure())
    with torch.no_grad():
        ranks = torch.cat(
            [(model(b.images).argsort(descending=True) == b.targets[:, None]).int().argmax(1) for b in images.loader]
        )
    assert report.samples == 33 and report.skipped == []
    assert report.models["tosa"].top1 == 100 * int((ranks < 1).sum()) / 33
    assert report.models["tosa"].top5 == 100 * int((ranks < 5).sum()) / 33


def test_what_was_measured_can_still_be_trained(tmp_path: Path) -> None:
    images, model = digits(tmp_path, 8), tiny_tosa()
    measure_models({"tosa": model}, images, AccuracyMeasure())
    cosines(model, images)
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_features_equal_the_dense_model_where_every_token_is_kept(tmp_path: Path) -> None:
    images = digits(tmp_path, 10)
    whole, part = tiny_tosa(keep_rate=1.0), tiny_tosa(keep_rate=0.3)
    report = cosines(whole, images)
    found = report.models["tosa"]
    assert found.patch_cosine == pytest.approx(1, abs=1e-5) and found.class_cosine == pytest.approx(1, abs=1e-5)
    assert report.samples == 33
    assert cosines(part, images).models["tosa"].patch_cosine < 0.999


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    images = digits(tmp_path, 8)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    for strict, named in ((False, r"0000\.png"), (True, r"0000\.png .*--strict")):
        with pytest.raises(DataError, match=named):
            measure_models({"tosa": tiny_tosa()}, images, AccuracyMeasure(), strict=strict)
