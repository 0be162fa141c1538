"""Keep rates of groups, found on the whole model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.model.tiny_models import make_vit
from tests.train.tiny_runs import write_photos
from tosa_cli.config import Method
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import Images, images_to_read
from tosa_cli.errors import ConfigError
from tosa_cli.fit.rates import RateSearch, search_rates
from tosa_cli.model.convert import insert_selectors
from tosa_cli.model.flops import count_flops
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.processes import make_accelerator

METHOD = Method(selector="ward", bypass="mean")


def backbone() -> torch.nn.Module:
    return make_vit("test_vit", img_size=64, patch_size=8, num_classes=10)


@pytest.fixture
def photos(tmp_path: Path) -> Images:
    write_photos(tmp_path / "photos")
    return images_to_read(open_dataset(str(tmp_path / "photos")), backbone(), batch_size=4)


def search(photos: Images, target: float, method: Method = METHOD) -> RateSearch:
    return search_rates(make_accelerator(TrainConfig(device="cpu")), backbone(), method, photos, target)


@pytest.mark.parametrize("target", [0.1, 0.3])
@pytest.mark.parametrize("span", [1, 2])
def test_the_target_is_met_and_the_whole_model_was_measured(photos: Images, target: float, span: int) -> None:
    method = replace(METHOD, span=span)
    found = search(photos, target, method)
    config = method.at(found.keep_rates, found.keep_rates.values())
    assert target <= count_flops(backbone(), config).reduction < target + 0.03
    assert found.error > 0 and found.images == photos.num_images and found.tries > 3


def test_the_error_told_is_that_of_the_model_made_with_these_rates(photos: Images) -> None:
    found = search(photos, 0.2)
    dense, source = backbone(), backbone()
    model = insert_selectors(source, METHOD.at(found.keep_rates, found.keep_rates.values()))  # type: ignore[arg-type]
    errors = []
    with torch.no_grad():
        for batch in photos.batches(True):
            cosine = torch.cosine_similarity(
                dense.forward_features(batch.images), model.forward_features(batch.images), dim=-1
            )
            errors.append((2 - cosine[:, 1:].mean(1) - cosine[:, 0]) / 2)
    assert torch.cat(errors).mean().item() == pytest.approx(found.error, rel=1e-3)


def test_the_same_images_give_the_same_rates(photos: Images) -> None:
    assert search(photos, 0.2) == search(photos, 0.2)


def test_a_target_that_cannot_be_reached_is_refused(photos: Images) -> None:
    with pytest.raises(ConfigError, match=r"90\.0% cannot be reached: the layers save at most"):
        search(photos, 0.9)
