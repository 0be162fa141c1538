"""Choices and numbers are held apart: ties may fall either way, all else may not."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.model.tiny_models import make_images
from tosa_cli.errors import ExportError
from tosa_cli.export.check import TIE, CheckReport, check_export
from tosa_cli.export.photos import sample_images
from tosa_cli.export.program import Exportable, _stable_sort, _weighted_sums
from tosa_cli.export.replay import replay
from tosa_cli.model.tosa_vit import TosaViT

from .tiny import tiny_tosa

Change = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
MATCHING: dict[str, Any] = {"selector": "similarity", "bypass": "nearest+affine"}


@torch.no_grad()
def choices_of(model: TosaViT, images: Tensor) -> dict[str, Tensor]:
    told = Exportable(model, (), with_choices=True)(images)
    return {name: value.clone() for name, value in told.items()}


def check(model: TosaViT, change: Change, offset: float = 0.0) -> CheckReport:
    """Compare a model with a runtime that chooses otherwise, and then computes what the model would, and `offset`."""

    def run(images: Tensor) -> dict[str, Tensor]:
        choices = change(choices_of(model, images))
        with torch.no_grad():
            return {"logits": model.forward_head(replay(model, images, choices).tokens) + offset, **choices}

    return check_export(model, run, run, ["logits"], batch_sizes=(2, 3), atol=1e-4)


def swap_last_kept(choices: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the first image, keep the first skipped patch instead of the last kept one."""
    keep = choices["keep_indices_2"]
    skipped = next(i for i in range(1, 65) if i not in keep[0])
    keep[0] = torch.cat([keep[0, :-1], torch.tensor([skipped])]).sort().values
    return choices


def test_photos_are_many_seeded_and_normalised() -> None:
    model = tiny_tosa()
    images = sample_images(model, 6)
    assert images.shape == (6, 3, 32, 32) and torch.equal(images, sample_images(model, 6))
    assert not torch.equal(images, sample_images(model, 6, seed=1))
    assert all(image.std() > 0.1 for image in images) and images.abs().max() < 5
    assert sample_images(tiny_tosa(in_chans=1), 2).shape == (2, 1, 32, 32)


@torch.no_grad()
def test_a_pruned_model_tells_the_choices_of_the_layers_that_are_left() -> None:
    model = tiny_tosa(layers=(1, 2, 3), **MATCHING)
    images = sample_images(model, 2)
    model.prune_intermediate_layers([1])
    choices = choices_of(model, images)
    assert {name.rpartition("_")[2] for name in choices} == {"1", "2"}
    assert bool(replay(model, images, choices).same.all())


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [{}, {"selection": "per-head"}, MATCHING, {"bypass": "nearest"}, {"selector": "probe"}],
    ids=str,
)
def test_the_original_agrees_with_its_own_choices(settings: dict[str, Any]) -> None:
    model, images = tiny_tosa(**settings), make_images(3, size=32)
    replayed = replay(model, images, choices_of(model, images))
    assert replayed.same.all() and (replayed.margin < 1e-6).all()
    assert torch.allclose(replayed.tokens, model.forward_features(images), atol=1e-5)


def test_equal_outputs_pass_and_are_counted() -> None:
    report = check(tiny_tosa(), lambda choices: choices)
    assert (report.images, report.same_choices, report.tied_choices) == (5, 5, 0)
    assert report.same_difference is not None and report.same_difference < 1e-6
    assert report.tied_margin is None and report.tied_difference is None and not report.random


def test_ties_may_fall_either_way_and_are_told() -> None:
    # A probe that is not fitted yet says the same of every token: any choice is right, and outputs differ.
    model = tiny_tosa(selector="probe", keep_rate=0.3)
    torch.nn.init.zeros_(model.selectors["2"].weight)  # type: ignore[arg-type]
    report = check(model, swap_last_kept)
    assert (report.same_choices, report.tied_choices, report.tied_margin) == (3, 2, 0)
    assert report.tied_difference is not None and report.tied_difference < 1e-6
    assert report.tied_difference_own is not None and report.tied_difference_own > 1e-4


def test_images_of_equal_patches_tie_by_rounding_alone() -> None:
    model = tiny_tosa()
    torch.nn.init.zeros_(model.backbone.pos_embed)
    images = torch.full((2, 3, 32, 32), 0.4)
    replayed = replay(model, images, swap_last_kept(choices_of(model, images)))
    assert not replayed.same[0] and replayed.same[1] and replayed.margin.max() < TIE


def test_another_choice_without_a_tie_is_refused() -> None:
    with pytest.raises(ExportError, match=r" 2 of 5 .*0\.001"):
        check(tiny_tosa(), swap_last_kept)


@pytest.mark.parametrize("settings", [{}, MATCHING], ids=str)
def test_what_is_no_choice_at_all_is_refused(settings: dict[str, Any]) -> None:
    def twice(choices: dict[str, Tensor]) -> dict[str, Tensor]:
        choices["keep_indices_2"][0, -1] = choices["keep_indices_2"][0, -2]
        return choices

    with pytest.raises(ExportError, match=r"\binf\b"):
        check(tiny_tosa(**settings), twice)


@pytest.mark.parametrize("partner", [0, -1])
def test_partners_that_are_not_the_nearest_are_refused(partner: int) -> None:
    def change(choices: dict[str, Tensor]) -> dict[str, Tensor]:
        choices["partners_2"][0, 0, 0] = partner
        return choices

    with pytest.raises(ExportError, match=r"0\.001"):
        check(tiny_tosa(**MATCHING), change)


def test_skipping_what_similarity_never_skips_is_refused() -> None:
    model = tiny_tosa(selector="similarity", keep_rate=0.8)
    with pytest.raises(ExportError, match=r"0\.001"):
        # Patch 2 stands among the possible partners, which all stay.
        check(model, lambda choices: replace_kept(choices, gone=2))


def replace_kept(choices: dict[str, Tensor], gone: int) -> dict[str, Tensor]:
    keep = choices["keep_indices_2"]
    assert gone in keep[0]
    skipped = next(i for i in range(1, 65) if i not in keep[0])
    keep[0] = torch.where(keep[0] == gone, skipped, keep[0]).sort().values
    return choices


@pytest.mark.parametrize("offset", [1e-2, float("nan")])
def test_other_numbers_with_the_same_tokens_are_refused(offset: float) -> None:
    with pytest.raises(ExportError, match=r" (0\.\d+|inf)[.:] "):
        check(tiny_tosa(), lambda choices: choices, offset)


def test_a_file_that_differs_from_the_one_that_tells_its_choices_is_refused() -> None:
    model = tiny_tosa()
    told = Exportable(model, ["logits"], with_choices=True)

    def other(images: Tensor) -> dict[str, Tensor]:
        return {"logits": model(images) + 1}

    with pytest.raises(ExportError, match=r" \d\.\d+\. "):
        check_export(model, other, told, ["logits"], batch_sizes=(2,), atol=1e-4)


def test_what_onnx_lacks_is_said_in_operations_that_compute_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 4, generator=generator)
    indices = torch.randint(0, 9, (5, 3), generator=generator)
    shares = torch.rand(5, 3, generator=generator)
    expected = F.embedding_bag(indices, rows, per_sample_weights=shares, mode="sum")
    sums = _weighted_sums(rows, indices.flatten(), torch.arange(0, 15, 3), per_sample_weights=shares.flatten())
    assert torch.allclose(sums[0], expected)
    flags = torch.randint(0, 2, (4, 50), generator=generator).to(torch.uint8)
    for dim in (0, 1):
        ordered = flags.sort(dim=dim, stable=True)
        values, order = _stable_sort(flags, stable=True, dim=dim)
        assert torch.equal(values, ordered.values) and torch.equal(order, ordered.indices)
