"""Conversion proves that with every token kept nothing changed."""

import pytest
import torch
from torch import Tensor, nn

from tests.sentences import fragments
from tosa_cli.api import convert
from tosa_cli.config import TosaConfig
from tosa_cli.errors import ConfigError, IdentityError, UnsupportedModelError
from tosa_cli.model.convert import check_identity, insert_selectors
from tosa_cli.model.tosa_vit import TosaViT

from .test_backbone import SHRUNK
from .tiny_models import LAYERS, MODELS, make_images, make_tosa, make_vit


@pytest.mark.parametrize("selection", ["shared", "per-head"])
@pytest.mark.parametrize("rows", [16, "all"])
@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_with_every_token_kept_is_its_source(name: str, rows: int | str, selection: str) -> None:
    difference = check_identity(make_tosa(name, query_rows=rows, selection=selection))
    assert 0 <= difference < 1e-3


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_rpn_224", "vit_base_patch16_xp_224", "deit_tiny_distilled_patch16_224"]
)
def test_other_supported_architectures_pass_the_check(name: str) -> None:
    model = insert_selectors(make_vit(name, **SHRUNK), TosaConfig(layers=LAYERS))
    assert isinstance(model, TosaViT) and not model.training


def test_the_check_leaves_the_model_as_it_was() -> None:
    model = make_tosa()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs, rates = model(make_images()), dict(model.keep_rates)
    check_identity(model)
    assert model.keep_rates == rates == {2: 0.5, 4: 0.5, 6: 0.5}
    assert torch.equal(model(make_images()), outputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_source_becomes_part_of_the_model_unchanged() -> None:
    source = make_vit()
    expected = source(make_images())
    model = insert_selectors(source, TosaConfig(layers=LAYERS))
    assert model.blocks is source.blocks and list(model.backbone.state_dict()) == list(source.state_dict())
    assert torch.equal(source(make_images()), expected)


def test_half_precision_passes_the_check_with_the_rounding_of_half_precision() -> None:
    assert check_identity(make_tosa(make_vit().bfloat16())) < 1


class AddsPlace(nn.Module):
    """Adds to each token something that depends on where it stands."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + 0.01 * torch.arange(tokens.shape[1])[:, None]


def test_a_layer_that_depends_on_where_a_token_stands_is_found() -> None:
    source = make_vit()
    source.blocks[3].ls1 = AddsPlace()
    with pytest.raises(IdentityError, match=r"layer 4 .* \d\.\d"):
        insert_selectors(source, TosaConfig(layers=LAYERS))


def test_a_standard_layer_may_depend_on_where_a_token_stands() -> None:
    source = make_vit()
    source.blocks[4].ls1 = AddsPlace()
    insert_selectors(source, TosaConfig(layers=LAYERS))


def test_a_forward_that_does_more_than_its_layers_is_found() -> None:
    source = make_vit()
    plain = source.forward_features
    source.forward_features = lambda images, **kwargs: 1.001 * plain(images)
    with pytest.raises(IdentityError, match=r" 0\.0"):
        insert_selectors(source, TosaConfig(layers=LAYERS))


def test_selection_by_head_that_forgets_a_part_of_the_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_vit("test_vit2")
    monkeypatch.setattr(source.blocks[3], "forward", lambda tokens, **kwargs: 1.01 * tokens)
    with pytest.raises(IdentityError):
        insert_selectors(source, TosaConfig(layers=LAYERS, selection="per-head"))


def test_weights_that_are_not_finite_are_found() -> None:
    source = make_vit()
    with torch.no_grad():
        source.blocks[5].mlp.fc1.weight[0, 0] = float("nan")
    with pytest.raises(IdentityError, match=fragments.DIFFERS_BY_NAN):
        insert_selectors(source, TosaConfig(layers=LAYERS))


def test_what_cannot_be_converted_is_refused_before_anything_changes() -> None:
    with pytest.raises(UnsupportedModelError):
        insert_selectors(nn.Sequential(nn.Linear(2, 2)), TosaConfig(layers=(2,)))
    with pytest.raises(ConfigError, match=fragments.LAYER_7_1_TO_6):
        insert_selectors(make_vit(), TosaConfig(layers=(2, 7)))


def test_a_model_at_hand_is_converted_and_says_what_it_comes_from() -> None:
    config = TosaConfig(layers=LAYERS, keep_rate=0.25)
    model = convert(make_vit(), config)
    assert model.config == config and not model.training
    assert model.provenance.base_model == "test_vit" and model.provenance.base_hub_id is None
    assert model.provenance.steps["convert"]["layers"] == [2, 4, 6]
