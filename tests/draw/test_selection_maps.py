"""What is drawn is what the model did: kept patches, scores and features are those of its own forward pass."""

from typing import Any

import pytest
import torch

from tests.model.tiny_models import make_images, make_tosa, make_vit
from tosa_cli.draw.selection_maps import compare_tokens, read_selection
from tosa_cli.errors import ConfigError
from tosa_cli.model.selectors import SELECTORS

SETTINGS: list[dict[str, Any]] = [
    {"selector": "attention"},
    {"selector": "attention", "bypass": "linear"},
    {"selector": "previous"},
    {"selector": "probe", "bypass": "linear"},
    {"selector": "similarity", "bypass": "nearest"},
    {"selector": "similarity", "bypass": "identity", "keep_rate": 0.8},
    {"selector": "similarity", "bypass": "nearest", "layers": (1, 2, 3), "span": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_maps_show_what_the_forward_pass_selects(settings: dict[str, Any]) -> None:
    model, images = make_tosa(**settings), make_images(1)
    selected = model.forward_selection(images)
    maps = read_selection(model, images)
    assert [each.layer for each in maps] == list(model.config.layers)
    for each in maps:
        patches = selected[each.layer][0] - model.num_prefix_tokens
        assert each.kept.shape == model.grid(images) and each.keep_rate == model.keep_rates[each.layer]
        assert each.kept.flatten().nonzero()[:, 0].tolist() == patches[patches >= 0].tolist()
        assert each.kept_share == pytest.approx((patches >= 0).sum().item() / each.kept.numel())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_no_skipped_patch_has_a_higher_score_than_a_computed_one(settings: dict[str, Any]) -> None:
    model = make_tosa(**settings)
    for each in read_selection(model, make_images(1)):
        assert each.scores is not None
        known = ~each.scores.isnan()
        kept, skipped = each.scores[known & (each.kept == 1)], each.scores[each.kept == 0]
        assert len(skipped) and not skipped.isnan().any()
        assert kept.min() >= skipped.max() - 1e-6
    assert SELECTORS[model.config.selector].meaning


def test_possible_partners_have_no_score_and_are_all_computed() -> None:
    model = make_tosa(selector="similarity", bypass="nearest")
    for each in read_selection(model, make_images(1)):
        assert each.scores is not None and each.scores.isnan().any()
        assert (each.kept[each.scores.isnan()] == 1).all()


def test_the_random_selector_has_no_scores() -> None:
    assert all(each.scores is None for each in read_selection(make_tosa(selector="random"), make_images(1)))


def test_per_head_selection_is_the_share_of_the_heads() -> None:
    model, images = make_tosa(selection="per-head"), make_images(1)
    selected = model.forward_selection(images)
    for each in read_selection(model, images):
        heads = selected[each.layer].shape[1]
        assert set((each.kept * heads).round(decimals=4).flatten().tolist()) <= set(range(heads + 1))
        assert each.kept.sum().item() * heads == pytest.approx((selected[each.layer] >= model.num_prefix_tokens).sum())


def test_chosen_layers_alone_are_read_and_others_refused() -> None:
    model, images = make_tosa(), make_images(1)
    everything = read_selection(model, images)
    (layer,) = read_selection(model, images, [4])
    assert torch.equal(layer.kept, everything[1].kept)
    with pytest.raises(ConfigError, match=r"Layer 3 .*2,4,6\."):
        read_selection(model, images, [2, 3])


def test_an_image_that_is_not_square_has_a_map_of_its_form() -> None:
    model = make_tosa(make_vit(img_size=(96, 160)))
    (layer, *_) = read_selection(model, make_images(1, size=(96, 160)))
    assert layer.kept.shape == (6, 10) and layer.scores is not None and layer.scores.shape == (6, 10)


def test_features_of_equal_models_have_equal_colors_and_a_cosine_of_one() -> None:
    model = make_tosa(keep_rate=1.0)
    same = compare_tokens(model, model.backbone, make_images(1))
    assert torch.allclose(same.dense, same.converted, atol=1e-3)
    assert same.patch_cosine == pytest.approx(1, abs=1e-5) and same.class_cosine == pytest.approx(1, abs=1e-5)


def test_features_of_different_models_are_told_apart_on_one_scale() -> None:
    model, images = make_tosa(keep_rate=0.3), make_images(1)
    maps = compare_tokens(model, model.backbone, images)
    assert maps.dense.shape == maps.converted.shape == (10, 10, 3)
    both = torch.stack([maps.dense, maps.converted])
    assert both.min() == 0 and both.max() == 1 and not torch.allclose(maps.dense, maps.converted, atol=0.01)
    expected = torch.cosine_similarity(model.backbone.forward_features(images), model.forward_features(images), dim=-1)
    assert maps.patch_cosine == pytest.approx(expected[0, 1:].mean().item(), abs=1e-5)
    assert maps.class_cosine == pytest.approx(expected[0, 0].item(), abs=1e-5)
    assert maps.patch_cosine < 0.999


def test_a_model_without_a_class_token_has_no_cosine_of_it() -> None:
    model = make_tosa("test_vit3")
    assert compare_tokens(model, model.backbone, make_images(1)).class_cosine is None
