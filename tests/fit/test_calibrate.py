"""What has a closed form is fitted to the images, layer by layer, the same way every time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.train.tiny_runs import distill_config, read, same, tiny_tosa, weights
from tosa_cli.data.loading import Images
from tosa_cli.fit import calibration
from tosa_cli.fit.calibrate import CalibrationReport, fit_candidates
from tosa_cli.fit.calibration import Calibration
from tosa_cli.fit.candidates import bypass_errors, candidate_features, candidate_partners
from tosa_cli.model.families import attention_input, embed, embed_with_places
from tosa_cli.model.regression import Sums
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_layer import run_tosa_layer
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.processes import make_accelerator

from .fits import (
    FITTED,
    SELECTORS,
    Count,
    fit,
    make_photos,  # noqa: F401 (the fixture `photos`)
    make_scratch,  # noqa: F401 (the fixture `scratch`)
)


def pixels(model: TosaViT, folder: Path) -> Tensor:
    images = read(model, folder, distill_config(), None)
    return torch.cat([batch.images for batch in images.batches(True)])


@torch.no_grad()
def cosine_to_dense(model: TosaViT, images: Tensor) -> float:
    """Mean cosine of the final tokens to the dense model's."""
    torch.manual_seed(0)
    tokens = model.forward_features(images)
    dense = model.backbone.forward_features(images)
    return F.cosine_similarity(tokens, dense, dim=-1).mean().item()


def fit_to_all_patches(model: TosaViT, folder: Path) -> None:
    """Fit the bypasses as they were when a probe or selector learned to predict their errors."""
    with Calibration(
        make_accelerator(distill_config()), model, read(model, folder, distill_config(), None), True, None
    ) as run:
        fit_candidates(run)


@torch.no_grad()
def errors_by_layer(model: TosaViT, images: Tensor) -> dict[int, Tensor]:
    """Logarithm of what the bypass of each ToSA layer gets wrong, one number a patch, on the dense model's tokens."""
    tokens, errors = embed(model.backbone, images), {}
    for layer, block in enumerate(model.blocks, start=1):
        after = block(tokens)
        if layer in model.keep_rates:
            partners = candidate_partners(model, layer, tokens, model.grid(images))
            errors[layer] = bypass_errors(model, layer, tokens, after - tokens, partners).log().flatten()
        tokens = after
    return errors


def attention_inputs(model: TosaViT, images: Tensor) -> Iterator[Tensor]:
    """What the attention of each layer of the dense model reads."""
    tokens = embed(model.backbone, images)
    for block in model.blocks:
        yield attention_input(block, tokens)
        tokens = block(tokens)


# ---------------------------------------------------------------------- what it is for


@pytest.mark.parametrize("bypass", FITTED)
@pytest.mark.parametrize("selector", SELECTORS)
def test_calibration_brings_the_final_tokens_nearer_to_the_dense_models(
    photos: Path, selector: str, bypass: str
) -> None:
    model = tiny_tosa(selector=selector, bypass=bypass)
    backbone, selectors, keys = (weights(model, part) for part in ("backbone", "selectors", "keys"))
    images = pixels(model, photos)
    before = cosine_to_dense(model, images)
    report = fit(model, photos)
    after = cosine_to_dense(model, images)
    # Three numbers a channel cannot do much for the random weights of the tiny model.
    assert 1 - after < (0.98 if bypass == "nearest+affine" else 0.8) * (1 - before)
    assert report.images == 24 and report.failed == [] and report.seconds > 0
    assert list(report.errors) == [2, 4, 6] and all(0 < error < 1 for error in report.errors.values())
    assert same(backbone, weights(model, "backbone")) and same(keys, weights(model, "keys"))
    assert same(selectors, weights(model, "selectors")) == (selector != "probe")


@pytest.mark.parametrize("bypass", FITTED)
@pytest.mark.parametrize("span", [1, 2])
def test_the_error_told_is_what_the_bypass_gets_wrong_on_the_converted_stream(
    photos: Path, bypass: str, span: int
) -> None:
    model = tiny_tosa(selector="similarity", bypass=bypass, layers=(1, 2, 4), span=span)
    report = fit(model, photos)
    images = pixels(model, photos)
    with torch.no_grad():
        tokens, places = embed_with_places(model.backbone, images)
        for layer, block in enumerate(model.blocks[:4], start=1):
            if layer not in model.keep_rates:
                tokens = model.run_block(layer, tokens, places)
                continue
            if model.choosing_layers[layer] == layer:
                choice = model.choose(layer, Stream(tokens, places))
            after, truth = run_tosa_layer(block, tokens, choice, model.bypass(layer)), block(tokens)
            assert choice.skip_indices is not None
            index = choice.skip_indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
            wrong, true = (after - truth).gather(1, index).norm(), (truth - tokens).gather(1, index).norm()
            assert report.errors[layer] == pytest.approx((wrong / true).item(), rel=1e-3)
            tokens = after


def test_nothing_is_read_where_nothing_is_fitted(photos: Path, scratch: Path) -> None:
    model = tiny_tosa(selector="similarity", bypass="nearest")
    report = fit(model, photos)
    assert report == CalibrationReport() and not list(scratch.iterdir())


@pytest.mark.parametrize("bypass", ["identity", "nearest"])
def test_a_probe_is_fitted_also_to_a_bypass_without_parameters(photos: Path, bypass: str) -> None:
    model = tiny_tosa(selector="probe", bypass=bypass)
    with torch.no_grad():
        for parameter in model.selector_parameters():
            parameter.zero_()
    progress = Count()
    report = fit(model, photos, progress=progress)
    assert all(parameter.abs().sum() > 0 for parameter in model.selector_parameters())
    assert all(error == pytest.approx(1) if bypass == "identity" else error < 1 for error in report.errors.values())
    assert progress.done == progress.total


@pytest.mark.parametrize("bypass", [*FITTED, "identity"])
def test_a_probe_tells_the_patches_that_the_bypass_is_wrong_about(photos: Path, tmp_path: Path, bypass: str) -> None:
    model = tiny_tosa(selector="probe", bypass=bypass)
    fit(model, photos)
    fit_to_all_patches(model, photos)
    images = pixels(model, photos)
    with torch.no_grad():
        inputs = dict(enumerate(attention_inputs(model, images), start=1))
        for layer, true in errors_by_layer(model, images).items():
            told = model.selector(layer)(inputs[layer])[:, 1:].flatten()
            assert torch.corrcoef(torch.stack([true, told]))[0, 1] > 0.5


def test_a_probe_skips_what_hurts_less_than_chance_does(photos: Path) -> None:
    cosines = {}
    for selector in ("probe", "random"):
        model = tiny_tosa(selector=selector, bypass="linear")
        fit(model, photos)
        cosines[selector] = cosine_to_dense(model, pixels(model, photos))
    assert cosines["probe"] > cosines["random"]


@pytest.mark.parametrize("bypass", FITTED)
def test_layers_that_skip_nobody_are_left_as_they_are(photos: Path, bypass: str) -> None:
    model = tiny_tosa(selector="similarity", bypass=bypass, keep_rate=(1.0, 0.5, 1.0))
    before = weights(model, "bypasses")
    report = fit(model, photos)
    changed = {
        name.split(".")[0] for name, value in weights(model, "bypasses").items() if not value.equal(before[name])
    }
    assert changed == {"4"} and report.errors[2] == report.errors[6] == 0 < report.errors[4]


def test_candidates_are_all_patches_each_matched_with_those_of_the_other_color(photos: Path) -> None:
    model = tiny_tosa(selector="probe", bypass="nearest+affine", neighbors=1)
    images = pixels(model, photos)[:2]
    with torch.no_grad():
        tokens = embed(model.backbone, images)
        updates = model.blocks[1](tokens) - tokens
        matched = candidate_partners(model, 2, tokens, (4, 4))
        differences, partners, truth = candidate_features(model, 2, tokens, updates, matched)
        inputs = model.blocks[1].norm1(tokens)
        keys = model.keys["2"](inputs)
    assert torch.equal(truth, updates[:, 1:]) and partners is not None
    for image in range(2):
        for patch in range(16):
            others = [other for other in range(16) if (other // 4 + other % 4 + patch // 4 + patch % 4) % 2]
            nearest = min(others, key=lambda other: (keys[image, 1 + patch] - keys[image, 1 + other]).norm().item())
            assert torch.allclose(partners[image, patch], updates[image, 1 + nearest], atol=1e-5)
            expected = inputs[image, 1 + patch] - inputs[image, 1 + nearest]
            assert torch.allclose(differences[image, patch], expected, atol=1e-5)


# ---------------------------------------------------------------------- the same every time


@pytest.mark.parametrize("selector", ["similarity", "probe", "random"])
@pytest.mark.parametrize("bypass", ["nearest+affine", "nearest+linear"])
def test_a_second_fit_finds_exactly_the_same(photos: Path, selector: str, bypass: str) -> None:
    model = tiny_tosa(selector=selector, bypass=bypass)
    torch.manual_seed(1)
    first = fit(model, photos)
    bypasses, selectors = weights(model, "bypasses"), weights(model, "selectors")
    torch.manual_seed(2)
    second = fit(model, photos)
    assert same(bypasses, weights(model, "bypasses")) and same(selectors, weights(model, "selectors"))
    assert first.errors == second.errors


def test_the_batch_size_changes_the_fit_by_rounding_alone(photos: Path) -> None:
    models = []
    for size in (24, 5):
        models.append(tiny_tosa(selector="similarity", bypass="nearest+affine"))
        fit(models[-1], photos, batch_size=size)
    for name, value in weights(models[0], "bypasses").items():
        torch.testing.assert_close(value, weights(models[1], "bypasses")[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batches", [0, 1, 2, 5, 6])
def test_sums_of_two_processes_are_added_in_the_order_of_the_batches(
    monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    # Numbers whose sum depends on their order: large ones swallow small ones.
    values = [torch.tensor([1e16 if number % 3 == 1 else 1.0], dtype=torch.float64) for number in range(batches)]

    def sums(numbers: range) -> Iterator[dict[Any, Sums]]:
        yield from ({7: {"x": values[number]}} for number in numbers)

    class Process:
        num_processes, process_index, device = 1, 0, torch.device("cpu")

    model = tiny_tosa(selector="similarity", bypass="linear")
    images = Images(torch.utils.data.DataLoader([0]), None, 1, None, "")
    run = Calibration(Process(), model, images, True, None)  # type: ignore[arg-type]
    alone = run.sum_up(sums(range(batches)))
    Process.num_processes = 2
    other = sums(range(1, batches, 2))
    monkeypatch.setattr(calibration, "gather_object", lambda mine: [*mine, next(other, None)])
    together = run.sum_up(sums(range(0, batches, 2)))
    assert alone.keys() == together.keys() and len(alone) == min(batches, 1)
    assert all(alone[key]["x"].equal(together[key]["x"]) for key in alone)
