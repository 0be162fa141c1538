"""The state of a ToSA model: keys under timm's names, copies, averages."""

import copy
import pickle

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

from .tiny_models import LAYERS, MODELS, make_images, make_tosa, make_vit


@pytest.mark.parametrize("name", MODELS)
def test_the_keys_are_timms_own_and_those_of_the_selectors(name: str) -> None:
    source = make_vit(name)
    model = make_tosa(source)
    keys = set(model.state_dict())
    assert {key for key in keys if not key.startswith("selectors.")} == set(source.state_dict())
    assert {key for key in keys if key.startswith("selectors.")} == {
        f"selectors.{layer}.conv{n}.{kind}" for layer in LAYERS for n in (1, 2) for kind in ("weight", "bias")
    }
    # So any timm tool reads the backbone.
    plain = timm.create_model(name)
    state = {key: value for key, value in model.state_dict().items() if key in source.state_dict()}
    plain.load_state_dict(state)
    assert torch.equal(plain.eval()(make_images()), source(make_images()))


def assert_equal_models(one: nn.Module, other: nn.Module) -> None:
    assert torch.equal(one(make_images()), other(make_images()))


def test_a_state_loads_strictly_into_another_model() -> None:
    model, other = make_tosa(), make_tosa(make_vit(seed=5))
    assert not torch.equal(model(make_images()), other(make_images()))
    result = other.load_state_dict(model.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert_equal_models(model, other)


def test_the_given_state_is_left_as_it_was() -> None:
    model = make_tosa()
    state = model.state_dict()
    keys = list(state)
    model.load_state_dict(state)
    assert list(state) == keys


def test_a_state_with_a_missing_or_unknown_key_is_refused() -> None:
    model = make_tosa()
    for key in ("norm.weight", "selectors.4.conv1.weight"):
        state = model.state_dict()
        del state[key]
        with pytest.raises(RuntimeError, match=f"Missing key.*{key}"):
            model.load_state_dict(state)
    for key in ("norm.scale", "selectors.3.conv1.weight"):
        with pytest.raises(RuntimeError, match=f"Unexpected key.*{key}"):
            model.load_state_dict(model.state_dict() | {key: torch.ones(1)})


def test_the_keys_keep_their_names_inside_another_module() -> None:
    wrapped = nn.ModuleDict({"encoder": make_tosa(), "decoder": nn.Linear(2, 2)})
    keys = set(wrapped.state_dict())
    assert keys == {f"encoder.{key}" for key in make_tosa().state_dict()} | {"decoder.weight", "decoder.bias"}
    other = nn.ModuleDict({"encoder": make_tosa(make_vit(seed=5)), "decoder": nn.Linear(2, 2)})
    other.load_state_dict(wrapped.state_dict())
    assert_equal_models(wrapped["encoder"], other["encoder"])
    assert torch.equal(wrapped["decoder"].weight, other["decoder"].weight)
    # Two names of which one begins with the other must not be taken for each other.
    pair = nn.ModuleDict({"a": make_tosa(), "ab": make_tosa(make_vit(seed=5))})
    pair.load_state_dict(pair.state_dict())
    assert_equal_models(pair["a"], make_tosa())


def test_a_copy_is_independent_of_the_original() -> None:
    original = make_tosa()
    images = make_images()
    expected, state = original(images), {key: value.clone() for key, value in original.state_dict().items()}
    for duplicate in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert torch.equal(duplicate(images), expected)
        for parameter in duplicate.parameters():
            nn.init.zeros_(parameter)
        assert torch.equal(original(images), expected)
        assert set(duplicate.state_dict()) == set(state)
        duplicate.load_state_dict(state)
        assert torch.equal(duplicate(images), expected)


def test_a_copy_outlives_the_original() -> None:
    model = make_tosa()
    duplicate, state, expected = copy.deepcopy(model), model.state_dict(), model(make_images())
    del model
    duplicate.load_state_dict(state)
    assert torch.equal(duplicate(make_images()), expected)


def test_an_average_of_the_weights_is_kept_as_timm_does() -> None:
    model = make_tosa()
    average = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        model.backbone.head.bias += 1
    before = average.module.backbone.head.bias.clone()
    average.update(model, step=10)
    assert torch.allclose(average.module.backbone.head.bias, before + 0.5, atol=1e-6)
    assert set(average.module.state_dict()) == set(model.state_dict())
