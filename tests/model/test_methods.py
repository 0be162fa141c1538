"""Selectors and bypasses by name: what settings know of them is what they are."""

import inspect

import pytest
import torch

from tosa_cli import methods
from tosa_cli.config import Method
from tosa_cli.model.bypasses import BYPASSES
from tosa_cli.model.selectors import SELECTORS
from tosa_cli.model.selectors.previous import MapSelector

from .tiny_models import make_images, make_tosa, make_vit


def test_there_is_a_class_for_each_name_and_a_name_for_each_class() -> None:
    assert list(SELECTORS) == list(methods.SELECTORS) and list(BYPASSES) == list(methods.BYPASSES)


@pytest.mark.parametrize("name", SELECTORS)
def test_the_facts_of_a_selector_are_those_of_its_class(name: str) -> None:
    kind, facts = SELECTORS[name], methods.SELECTORS[name]
    bypass = "mean" if facts.groups_tokens else "identity"
    selector = kind.for_layer(make_vit(), 2, Method(selector=name, bypass=bypass))
    assert issubclass(kind, MapSelector) == facts.reads_maps
    assert bool(list(selector.parameters())) == (facts.is_trained or facts.is_fitted)
    sums = kind.sums(torch.randn(1, 9, 4), torch.rand(1, 9) + 0.1)
    assert bool(sums) == facts.is_fitted
    if facts.is_fitted:
        assert set(kind.solve(sums)) == {name for name, _ in selector.named_parameters()}


@pytest.mark.parametrize("name", SELECTORS)
def test_what_selects_at_random_selects_other_tokens_in_each_pass(name: str) -> None:
    model = make_tosa(selector=name, bypass="mean" if methods.SELECTORS[name].groups_tokens else "identity")
    once, again = (model.forward_selection(make_images())[2] for _ in range(2))
    assert torch.equal(once, again) != methods.SELECTORS[name].is_random


@pytest.mark.parametrize("name", BYPASSES)
def test_the_facts_of_a_bypass_are_those_of_its_class(name: str) -> None:
    kind, facts = BYPASSES[name], methods.BYPASSES[name]
    bypass, (inputs, updates, truth) = kind(4), torch.randn(3, 1, 9, 4)
    assert kind.reads_updates == facts.matches_tokens
    assert bool(list(bypass.parameters())) == facts.is_fitted
    sums = kind.sums(inputs, updates if kind.reads_updates else None, truth)
    assert bool(sums) == facts.is_fitted
    solved = kind.solve(sums) if sums else {}
    assert set(solved) == {name for name, _ in bypass.named_parameters()}
    with torch.no_grad():
        for parameter, value in solved.items():
            getattr(bypass, parameter).copy_(value)
        made = bypass(inputs, updates if kind.reads_updates else None)
    assert made.shape == truth.shape and ((made - truth).norm() < truth.norm() or not facts.is_fitted)


@pytest.mark.parametrize("kind", [*SELECTORS.values(), *BYPASSES.values()])
def test_each_stands_in_a_file_of_its_own_and_says_what_it_is(kind: type) -> None:
    file = inspect.getfile(kind)
    assert sum(inspect.getfile(other) == file for other in (*SELECTORS.values(), *BYPASSES.values())) == 1
    assert inspect.getdoc(kind)
