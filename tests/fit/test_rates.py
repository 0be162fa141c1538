"""Keep rates of groups, found on the whole model."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

from tests.model.tiny_models import make_vit
from tests.sentences import fragments
from tests.train.tiny_runs import write_photos
from tosa_cli.config import CALIBRATED, Method
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import Images, images_to_read
from tosa_cli.errors import ConfigError
from tosa_cli.fit import rates
from tosa_cli.fit.calibration import Calibration
from tosa_cli.fit.nearness import FinalTokens, MinCosine
from tosa_cli.fit.rates import RateSearch, best_merging, hold, hold_on, largest_saving, search_rates
from tosa_cli.fit.schedules import Schedules
from tosa_cli.model.convert import insert_selectors
from tosa_cli.model.flops import count_flops
from tosa_cli.model.selection import num_kept
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.processes import make_accelerator

METHOD = Method(selector="ward", bypass="mean")


def backbone() -> torch.nn.Module:
    return make_vit("test_vit", img_size=64, patch_size=8, num_classes=10)


def vit_tiny(size: int) -> Any:
    return timm.create_model("vit_tiny_patch16_224", img_size=size, device="meta")


@pytest.fixture
def photos(tmp_path: Path) -> Images:
    write_photos(tmp_path / "photos", 16)
    return images_to_read(open_dataset(str(tmp_path / "photos")), backbone(), batch_size=8)


def search(photos: Images, target: float, method: Method = METHOD) -> RateSearch:
    return search_rates(make_accelerator(TrainConfig(device="cpu")), backbone(), method, photos, target)


@pytest.mark.parametrize("target", [0.1, 0.3])
@pytest.mark.parametrize("span", [1, 2])
def test_the_target_is_met_and_the_whole_model_was_measured(photos: Images, target: float, span: int) -> None:
    method = replace(METHOD, span=span)
    found = search(photos, target, method)
    config = method.at(found.keep_rates, found.keep_rates.values())
    assert target <= count_flops(backbone(), config).reduction < target + 0.03
    assert found.error > 0 and found.images == photos.num_images and found.tries > 1


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


def check_just_enough(schedules: Schedules, rates: dict[int, float], target: float) -> None:
    """Enough is saved, and no layers that compute as many tokens could compute a register more, or a token of few."""
    assert schedules.reduction(rates) >= target
    for rate, layers in groupby(rates, key=rates.__getitem__):
        row = list(layers)
        more = round((round(rate * schedules.tokens) + schedules.step) / schedules.tokens, 5)
        fits = more <= rates.get(row[0] - 1, 1.0)
        assert not fits or schedules.reduction(rates | dict.fromkeys(row, more)) < target


@pytest.mark.parametrize("target", [0.2, 0.25, 0.3, 0.35])
def test_no_layer_computes_a_token_less_than_the_target_asks_for(target: float) -> None:
    schedules = Schedules(backbone(), METHOD)  # type: ignore[arg-type]
    check_just_enough(schedules, schedules.keep_rates(schedules.choosing, target), target)


@pytest.mark.parametrize(("size", "tokens"), [(224, 197), (192, 145), (176, 122)])
@pytest.mark.parametrize("target", [0.1, 0.25, 0.4])
def test_of_many_tokens_layers_compute_whole_registers_but_for_one(size: int, tokens: int, target: float) -> None:
    schedules = Schedules(vit_tiny(size), CALIBRATED)
    assert schedules.tokens == tokens
    for found in schedules.able(target).values():
        check_just_enough(schedules, found, target)
        counts = [tokens, *(num_kept(tokens, rate, 1) for rate in found.values())]
        partly = {count % 16 for count in counts if schedules.least < count < tokens} - {0}
        falls = {before - count for before, count in pairwise(counts)} - {0}
        if tokens >= 128:  # half a register or more, of what is computed and of what is merged
            assert len(partly) <= 1 and min(partly | falls) >= 8
        else:
            assert schedules.reduction(found) < target + 0.01


@pytest.mark.parametrize("size", [224, 192])
def test_layers_that_compute_the_fewest_tokens_get_to_whole_registers_too(size: int) -> None:
    schedules = Schedules(vit_tiny(size), CALIBRATED)
    for found in schedules.able(0.55).values():
        check_just_enough(schedules, found, 0.55)
        counts = {num_kept(schedules.tokens, rate, 1) for rate in found.values()}
        partly = {count % 16 for count in counts if schedules.least < count < schedules.tokens} - {0}
        assert len(partly) <= 1 and all(part >= 8 for part in partly)


@pytest.mark.parametrize(
    ("target", "begin", "merging"), [(0.05, 5, [5]), (0.25, 3, [3, 5, 7]), (0.4, 1, [1, 3, 5, 7, 9])]
)
def test_no_more_layers_merge_than_the_saving_needs_and_each_about_as_many(
    target: float, begin: int, merging: list[int]
) -> None:
    schedules = Schedules(vit_tiny(224), CALIBRATED)
    assert schedules.choosing == (1, 3, 5, 7, 9, 11)
    kept = next(found for layers, found in schedules.able(target).items() if layers[0] == begin)
    assert [layer for layer, rate in kept.items() if rate < kept.get(layer - 1, 1.0)] == merging
    falls = [kept.get(layer - 1, 1.0) - kept[layer] for layer in merging]
    assert len(merging) == 1 or sum(falls) / len(merging) >= 0.115
    assert (max(falls) - min(falls)) * schedules.tokens <= 32  # two registers


def test_schedules_begin_up_to_the_middle() -> None:
    assert [layers[0] for layers in Schedules(vit_tiny(224), CALIBRATED).able(0.2)] == [1, 3, 5, 7]
    deep: Any = timm.create_model("vit_tiny_patch16_224", depth=24, device="meta")
    assert [layers[0] for layers in Schedules(deep, CALIBRATED).able(0.2)] == [1, 5, 9, 13]


def test_layers_behind_a_standard_one_begin_anew() -> None:
    schedules = Schedules(vit_tiny(224), CALIBRATED, [1, 2, 3, 4, 9, 10, 11, 12])
    assert schedules.choosing == (1, 3, 9, 11)
    kept = schedules.keep_rates((1, 9), 0.2)
    assert kept[1] == kept[4] < 1 and kept[9] == kept[12] < 1
    assert schedules.keep_rates((9, 11), 0.1)[4] == 1


@contextmanager
def measured(photos: Images) -> Iterator[tuple[Schedules, FinalTokens]]:
    source = backbone()
    schedules = Schedules(source, METHOD)  # type: ignore[arg-type]
    model = TosaViT(source, METHOD.at(schedules.layers, 1.0))  # type: ignore[arg-type]
    with Calibration(make_accelerator(TrainConfig(device="cpu")), model, photos, True, None) as run:
        final = FinalTokens(run, model.norm, 0)
        final.read()
        yield schedules, final


def test_keep_rates_are_level_unless_images_say_otherwise(photos: Images) -> None:
    with measured(photos) as (schedules, final):
        near, far = (schedules.keep_rates(schedules.choosing, target) for target in (0.1, 0.35))
        assert final.at(near).root < final.at(far).root
        assert final.is_level(near, far) and final.is_level(near, near) and not final.is_level(far, near)
        roots = [torch.cat([*final.roots[tuple(rates.items())].values()]) for rates in (near, far)]
        assert roots[0].mean().item() == pytest.approx(final.at(near).root)
        # Three quarters of a standard error apart, by hand.
        difference = torch.tensor([1.0, -1.0] * (len(roots[0]) // 2), dtype=torch.double)
        difference = difference + 0.75 * difference.std() / len(difference) ** 0.5
        final.roots[tuple(far.items())] = {0: roots[0] + difference}
        final.roots[tuple(near.items())] = {0: roots[0]}
        assert final.is_level(far, near)
        final.roots[tuple(far.items())] = {0: roots[0] + 2 * difference.mean() + difference}
        assert not final.is_level(far, near)
        # Where all images say the same: a fifth of a degree is nothing, and a quarter is something.
        for degrees, level in ((0.2, True), (0.25, False)):
            final.roots[tuple(far.items())] = {0: roots[0] + math.radians(degrees) / 2**0.5}
            assert final.is_level(far, near) == level


@pytest.mark.parametrize(("spread", "expected"), [(0.0, 0), (0.15, 1), (1.0, -1)])
def test_of_level_schedules_the_one_that_begins_last_is_taken(spread: float, expected: int) -> None:
    schedules = Schedules(vit_tiny(224), CALIBRATED)
    able = schedules.able(0.2)
    roots = {tuple(rates.items()): 1 + 0.1 * place for place, rates in enumerate(able.values())}

    class Tuning:
        """Errors that rise with the first layer that merges, by a tenth each."""

        def at(self, keep_rates: dict[int, float]) -> SimpleNamespace:
            return SimpleNamespace(root=roots[tuple(keep_rates.items())])

        def is_level(self, keep_rates: dict[int, float], others: dict[int, float]) -> bool:
            return roots[tuple(keep_rates.items())] - roots[tuple(others.items())] <= spread

    tuning: Any = Tuning()
    assert best_merging(tuning, schedules, 0.2) == list(able)[expected]


def test_a_target_that_cannot_be_reached_is_refused(photos: Images) -> None:
    with pytest.raises(ConfigError, match=r"90\.0% cannot be reached: the layers save at most"):
        search(photos, 0.9)


def cosines(dense: torch.nn.Module, model: torch.nn.Module, photos: Images) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each image the mean cosine of patch tokens, and the class token's."""
    found = []
    with torch.no_grad():
        for batch in photos.batches(True):
            tokens = [each.forward_features(batch.images) for each in (dense, model)]  # type: ignore[operator]
            found.append(torch.cosine_similarity(*tokens, dim=-1))
    cosine = torch.cat(found)
    return cosine[:, 1:].mean(1), cosine[:, 0]


def held(photos: Images, min_cosine: float) -> RateSearch:
    accelerator = make_accelerator(TrainConfig(device="cpu"))
    return hold(accelerator, backbone(), METHOD, photos, photos, MinCosine(min_cosine))


def test_a_cosine_that_is_asked_for_holds_on_the_held_out_images(photos: Images) -> None:
    found = held(photos, 0.97)
    model = insert_selectors(backbone(), METHOD.at(found.keep_rates, found.keep_rates.values()))  # type: ignore[arg-type]
    patch, first = cosines(backbone(), model, photos)
    assert found.held is not None and found.held.images == photos.num_images
    assert found.held.patch_cosine == pytest.approx(patch.mean().item(), abs=1e-5)
    assert found.held.class_cosine == pytest.approx(first.mean().item(), abs=1e-5)
    assert found.held.patch_error == pytest.approx((patch.std() / len(patch) ** 0.5).item(), rel=1e-2)
    assert found.held.least >= 0.97 and found.held.sure < found.held.least


@pytest.mark.parametrize("most", [0, 17, 40])
def test_the_largest_saving_at_which_a_cosine_holds_is_found_to_the_percent(most: int) -> None:
    schedules = Schedules(backbone(), METHOD)

    class Judge:
        """Tokens that are near enough as long as no more than `most` percent are saved."""

        def at(self, keep_rates: dict[int, float]) -> SimpleNamespace:
            allowed = schedules.reduction(schedules.keep_rates(schedules.choosing, most / 100)) if most else 0.0
            return SimpleNamespace(least=0.99 if schedules.reduction(keep_rates) <= allowed else 0.98)

    judge: Any = Judge()
    assert largest_saving(schedules, judge, schedules.choosing, MinCosine(0.99)) == most / 100


def test_shares_that_cannot_save_so_much_do_not_stand_for_it(photos: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that begins late saves 59 % at most, and 70 % are allowed."""

    class Judge:
        def at(self, keep_rates: dict[int, float]) -> SimpleNamespace:
            allowed = schedules.reduction(keep_rates) <= 0.7
            return SimpleNamespace(least=0.99 if allowed else 0.98, images=2)

    with measured(photos) as (schedules, final):
        late, steady = schedules.choosing[2:], schedules.choosing
        assert schedules.reduction(schedules.keep_rates(late, 0.7)) < 0.6
        monkeypatch.setattr(rates, "best_merging", lambda _, __, target: late if target < 0.5 else steady)
        judge: Any = Judge()
        found = hold_on(final, judge, schedules, MinCosine(0.99))
        assert 0.68 < schedules.reduction(found.keep_rates) <= 0.7


def test_the_nearer_the_tokens_have_to_be_the_less_is_saved(photos: Images) -> None:
    def saved(min_cosine: float) -> float:
        found = held(photos, min_cosine)
        return count_flops(backbone(), METHOD.at(found.keep_rates, found.keep_rates.values())).reduction

    assert saved(0.999) < saved(0.98) < saved(0.9)


def test_a_cosine_that_holds_nowhere_is_refused(photos: Images) -> None:
    with pytest.raises(ConfigError, match=fragments.A_COSINE_OF_0_99999999):
        held(photos, 0.99999999)
