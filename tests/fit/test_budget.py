"""Layers and keep rates chosen from error curves."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.model.tiny_models import make_vit
from tests.sentences import fragments
from tests.train.tiny_runs import write_photos
from tosa_cli.config import TosaConfig
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import Images, images_to_read
from tosa_cli.errors import ConfigError
from tosa_cli.fit.budget import ErrorCurve, allocate, measure_curves
from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.processes import make_accelerator

SIMILARITY = TosaConfig(layers=(2,), selector="similarity", bypass="nearest+linear")
RATES = (0.8, 0.5, 0.3)


def backbone() -> torch.nn.Module:
    return make_vit("test_vit", img_size=64, patch_size=8, num_classes=10)


def curves(*scales: float) -> list[ErrorCurve]:
    return [ErrorCurve((layer,), RATES, (scale, 4 * scale, 16 * scale)) for layer, scale in enumerate(scales, start=1)]


@pytest.fixture
def photos(tmp_path: Path) -> Images:
    write_photos(tmp_path / "photos", 16)
    return images_to_read(open_dataset(str(tmp_path / "photos")), backbone(), batch_size=8)


def test_a_curve_passes_through_what_was_measured_and_rises_between() -> None:
    curve = ErrorCurve((1,), RATES, (0.01, 0.02, 0.1))
    assert [curve.at(rate) for rate in RATES] == pytest.approx([0.01, 0.02, 0.1])
    errors = [curve.at(rate) for rate in (1.0, 0.9, 0.8, 0.7, 0.5, 0.4, 0.3)]
    assert errors == sorted(errors) and errors[0] == 0
    assert curve.at(0.2) == float("inf")


@pytest.mark.parametrize("target", [0.05, 0.2, 0.35])
def test_the_target_is_met_and_little_more_is_saved(target: float) -> None:
    model = backbone()
    config = allocate(model, SIMILARITY, curves(8, 4, 2, 1, 1, 1), target)
    reduction = count_flops(model, config).reduction
    assert target <= reduction < target + 0.02


def test_a_layer_that_can_spare_more_is_given_a_lower_keep_rate() -> None:
    rates = allocate(backbone(), SIMILARITY, curves(32, 16, 8, 4, 2, 1), 0.25).keep_rates
    given = [rates.get(layer, 1.0) for layer in range(1, 7)]
    assert given == sorted(given, reverse=True) and given[0] > given[-1]


def test_no_other_choice_of_the_same_saving_has_a_smaller_sum_of_errors() -> None:
    """Against every combination of a few keep rates of three layers."""
    model, found = backbone(), curves(4, 2, 1)
    chosen = allocate(model, SIMILARITY, found, 0.1)
    best = sum(curve.at(chosen.keep_rates.get(curve.layers[0], 1.0)) for curve in found)
    for rates in itertools.product((1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3), repeat=3):
        layers = {layer: rate for layer, rate in enumerate(rates, start=1) if rate < 1}
        if not layers:
            continue
        config = replace(SIMILARITY, layers=tuple(layers), keep_rate=tuple(layers.values()))
        if count_flops(model, config).reduction >= 0.1:
            assert best <= 1.02 * sum(curve.at(rate) for curve, rate in zip(found, rates, strict=True))


def test_a_selector_that_reads_maps_gets_no_two_layers_in_a_row() -> None:
    config = replace(SIMILARITY, selector="previous", bypass="identity", query_rows=4)
    found = [curve for curve in curves(9, 3, 1, 1, 1, 2) if curve.layers[0] > 1]
    layers = allocate(backbone(), config, found, 0.2).layers
    assert len(layers) > 1 and all(b - a > 1 for a, b in itertools.pairwise(layers))


@pytest.mark.parametrize("target", [0.0, 1.0, 0.9])
def test_a_target_that_cannot_be_reached_is_refused(target: float) -> None:
    with pytest.raises(ConfigError, match=rf"{100 * target:.1f}%|{target}"):
        allocate(backbone(), SIMILARITY, curves(1, 1, 1, 1, 1, 1), target)


@pytest.mark.parametrize("selector", ["similarity", "probe", "previous", "random"])
def test_every_layer_that_may_be_one_gets_a_curve_that_rises(photos: Images, selector: str) -> None:
    model = backbone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = replace(SIMILARITY, selector=selector)
    found = measure_curves(make_accelerator(TrainConfig(device="cpu")), model, config, photos, keep_rates=RATES)
    assert [curve.layers[0] for curve in found] == list(range(2 if selector == "previous" else 1, 7))
    assert all(list(curve.errors) == sorted(curve.errors) and curve.errors[0] > 0 for curve in found)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_the_measured_error_is_that_of_the_converted_model(photos: Images) -> None:
    model = backbone()
    config = TosaConfig(layers=(2,), selector="similarity", bypass="nearest")
    curve = measure_curves(make_accelerator(TrainConfig(device="cpu")), model, config, photos, keep_rates=(0.5,))[1]
    converted = TosaViT(model, replace(config, keep_rate=0.5)).eval()
    errors = []
    with torch.no_grad():
        for batch in photos.batches(strict=True):
            pair = [net.forward_features(batch.images) for net in (model, converted)]
            cosine = torch.nn.functional.cosine_similarity(*pair, dim=-1)
            errors.append(1 - (cosine[:, 1:].mean(1) + cosine[:, 0]) / 2)
    assert curve.errors[0] == pytest.approx(torch.cat(errors).mean().item(), rel=1e-4)


@pytest.mark.parametrize("selector", ["similarity", "probe"])
def test_layers_that_share_a_choice_share_a_curve_and_a_keep_rate(photos: Images, selector: str) -> None:
    model, config = backbone(), replace(SIMILARITY, selector=selector, span=4)
    found = measure_curves(make_accelerator(TrainConfig(device="cpu")), model, config, photos, keep_rates=RATES)
    assert [curve.name for curve in found] == ["1-4", "5-6"]
    alone = measure_curves(
        make_accelerator(TrainConfig(device="cpu")), model, replace(config, span=1), photos, keep_rates=RATES
    )
    assert found[0].errors[0] > alone[0].errors[0]
    chosen = allocate(model, config, [found[1]], 0.1)
    assert chosen.layers == (5, 6) and len(set(chosen.keep_rates.values())) == 1
    assert 0.1 <= count_flops(model, chosen).reduction < 0.12


def test_a_selector_that_says_nothing_before_it_is_trained_is_not_measured(photos: Images) -> None:
    config = replace(SIMILARITY, selector="attention", bypass="identity")
    with pytest.raises(ConfigError, match="'attention'") as failure:
        measure_curves(make_accelerator(TrainConfig(device="cpu")), backbone(), config, photos)
    assert fragments.SELECTOR_SIMILARITY in str(failure.value)
