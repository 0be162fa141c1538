"""Every family that converts computes what its source would, were the skipped tokens hidden from it."""

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from tests.sentences import fragments
from tosa_cli.config import TosaConfig
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.choice import Choice
from tosa_cli.model.convert import check_identity, insert_selectors
from tosa_cli.model.families import (
    check_convertible,
    check_supported,
    embed_with_places,
)
from tosa_cli.model.places import gather_bias
from tosa_cli.model.selection import choose_tokens
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_layer import run_tosa_layer
from tosa_cli.train.finetune import set_drop_path

from .families import FAMILIES, MECHANISMS, make_family
from .family_runs import LAYERS, AddToLogits, RunHidden, convert_family, hide_skipped, images_of
from .tiny_models import make_tosa

SELECTORS = ("attention", "similarity", "probe", "previous", "random")


BYPASSES = ("identity", "linear", "nearest", "nearest+affine", "nearest+linear")


# ---------------------------------------------------------------------- the same as the source


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_with_every_token_kept_it_equals_its_source(family: str) -> None:
    source = make_family(family)
    images = images_of(source)
    model = make_tosa(source, layers=LAYERS, keep_rate=1.0)
    tokens, output = source.forward_features(images), source(images)
    assert tokens.std() > 0.1 and output.std() > 0
    assert torch.allclose(model.forward_features(images), tokens, atol=1e-4)
    assert torch.allclose(model(images), output, atol=1e-4)


@pytest.mark.parametrize("selector", ["attention", "random"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_below_it_equals_its_source_with_the_skipped_tokens_hidden(family: str, selector: str) -> None:
    source = make_family(family)
    images = images_of(source, 3)
    model = make_tosa(source, layers=LAYERS, keep_rate=0.6, selector=selector)
    torch.manual_seed(0)
    keep = model.forward_selection(images)
    torch.manual_seed(0)
    tokens = model.forward_features(images)
    assert all(len({tuple(row.tolist()) for row in rows}) == 3 for rows in keep.values())  # images differ in choice
    dense = source.forward_features(images)
    RunHidden(source, keep)
    assert torch.allclose(tokens, source.forward_features(images), atol=2e-4)
    assert not torch.allclose(tokens, dense, atol=1e-2)


@pytest.mark.parametrize("family", MECHANISMS)
@torch.no_grad()
def test_kept_tokens_count_for_those_they_stand_for_beside_any_bias(family: str) -> None:
    model = convert_family(family, selector="similarity", bypass="nearest")
    tokens, places = embed_with_places(model.backbone, images_of(model))
    choice = model.choose(2, Stream(tokens, places))
    assert choice.partners is not None and choice.weights is not None and choice.skip_indices is not None
    sizes = torch.ones(choice.keep_indices.shape)
    for image, token, k in torch.cartesian_prod(*(torch.arange(n) for n in choice.partners.shape)).tolist():
        sizes[image, choice.partners[image, token, k]] += choice.weights[image, token, k]
    with AddToLogits(hide_skipped(choice.keep_indices, tokens.shape[1], sizes)):
        computed = model.run_block(2, tokens, places)
    expected = computed.clone()
    for image, token in torch.cartesian_prod(*(torch.arange(n) for n in choice.skip_indices.shape)).tolist():
        partners = choice.keep_indices[image, choice.partners[image, token]]
        updates = computed[image, partners] - tokens[image, partners]
        skipped = choice.skip_indices[image, token]
        expected[image, skipped] = tokens[image, skipped] + choice.weights[image, token] @ updates
    output = run_tosa_layer(model.blocks[1], tokens, choice, model.bypass(2), places.of(2))
    assert torch.allclose(output, expected, atol=1e-4)
    assert sizes.max() > 1.5


@pytest.mark.parametrize("family", FAMILIES)
def test_conversion_checks_itself(family: str) -> None:
    model = insert_selectors(make_family(family), TosaConfig(layers=LAYERS, keep_rate=0.5))
    assert check_identity(model) < 1e-3


@pytest.mark.parametrize("family", MECHANISMS)
@pytest.mark.parametrize("selector", SELECTORS)
@torch.no_grad()
def test_every_selector_and_bypass_works(family: str, selector: str) -> None:
    source = make_family(family)
    images = images_of(source)
    expected = source.forward_features(images)
    for bypass in BYPASSES:
        model = make_tosa(source, layers=LAYERS, selector=selector, bypass=bypass, keep_rate=0.6)
        tokens = model.forward_features(images)
        assert tokens.shape == expected.shape and tokens.isfinite().all() and model(images).isfinite().all()


# ---------------------------------------------------------------------- stochastic depth


def drop_rates(model: nn.Module) -> dict[str, float]:
    """The rate of every place where a model drops a branch at random."""
    return {name: module.drop_prob for name, module in model.named_modules() if isinstance(module, DropPath)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_is_given_its_rate_of_stochastic_depth(family: str) -> None:
    expected = drop_rates(make_family(family, drop_path_rate=0.3))
    model = convert_family(family)
    set_drop_path(model, 0.3)
    assert drop_rates(model.backbone) == pytest.approx(expected) and len(expected) >= 3
    set_drop_path(model, 0.0)
    assert drop_rates(model.backbone) == {}


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("family", [family for family in MECHANISMS if family != "plain"])
def test_selection_by_head_is_for_plain_blocks(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=fragments.LAYER_1_PER_HEAD_BLOCK):
        check_supported(make_family(family), "per-head")


def test_a_bias_that_cannot_be_gathered_is_refused() -> None:
    for family in ("BEiT", "relative positions"):
        model: Any = make_family(family)
        model.blocks[2].attn.fused_attn = False
        with pytest.raises(UnsupportedModelError, match=fragments.LAYER_3_TIMM_FUSED_ATTN):
            check_convertible(model, TosaConfig(layers=(3,), selector="similarity"))
        for block in model.blocks:
            block.attn.fused_attn = False
        with pytest.raises(UnsupportedModelError, match=fragments.LAYER_1_TIMM_FUSED_ATTN):
            check_supported(model)


@torch.no_grad()
def test_a_table_without_fused_attention_is_gathered_too() -> None:
    model = convert_family("EVA-02", selector="similarity", bypass="nearest")
    images = images_of(model)
    expected = model(images)
    for block in model.blocks:
        block.attn.fused_attn = False
    assert torch.allclose(model(images), expected, atol=1e-4)


def test_patches_dropped_in_training_take_their_rotation_with_them() -> None:
    for family in ("rotation, register", "mixed rotation"):
        source: Any = make_family(family, patch_drop_rate=0.5).train()
        model = make_tosa(source, layers=LAYERS, keep_rate=1.0, selector="random").train()
        outputs = []
        for one in (source, model):
            torch.manual_seed(3)
            outputs.append(one.forward_features(images_of(source)))
        assert outputs[0].shape[1] == 12 + source.num_prefix_tokens
        assert torch.allclose(*outputs, atol=1e-4)
        model.keep_rates = dict.fromkeys(LAYERS, 0.5)
        assert model(images_of(source)).isfinite().all()


def test_the_choice_of_a_layer_may_stand_in_any_order() -> None:
    # The check of conversion relies on it.
    keep = choose_tokens(torch.randn(2, 9), 5, 1).flip(1)
    assert torch.equal(gather_bias(torch.arange(81.0).view(1, 9, 9), keep)[:, 0, :, 0], keep * 9.0 + keep[:, :1])
    assert Choice(keep).partners is None
