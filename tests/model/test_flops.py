"""MACs by arithmetic equal what PyTorch counts on the running model."""

import functools
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from tests.sentences import fragments
from tosa_cli.config import TosaConfig
from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.model.flops import count_flops

from ..model.families import FAMILIES, MECHANISMS, make_family
from ..model.test_backbone import SHRUNK
from ..model.tiny_models import LAYERS, MODELS, make_tosa, make_vit
from .counting import count, macs, run_and_count


@functools.cache
def dense_macs(name: str) -> int:
    """MACs that PyTorch counts while a model of timm runs with every token."""
    return run_and_count(make_vit(name))


def test_the_counter_that_this_is_held_against_sees_attention_once() -> None:
    query, key = torch.ones(1, 2, 5, 4), torch.ones(1, 2, 7, 4)
    assert count(F.scaled_dot_product_attention, query, key, key) == 2 * (2 * 5 * 7 * 4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"query_rows": 1},
        {"query_rows": "all"},
        {"query_rows": 5000},
        {"keep_rate": (0.1, 0.55, 0.9)},
        {"keep_rate": 1.0},
        {"keep_rate": 0.001},
        {"selector_kernel": 3},
        {"selector_kernel": 5, "query_rows": "all"},
        {"selector": "previous"},
        {"selector": "previous", "query_rows": "all"},
        {"selector": "random"},
        {"selector": "random", "layers": (1, 2, 3)},
        {"layers": (3,)},
        {"selection": "per-head"},
        {"selection": "per-head", "query_rows": "all", "keep_rate": (0.2, 0.4, 0.6)},
        {"selection": "per-head", "selector": "random"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", MODELS)
def test_the_macs_are_those_of_the_running_model(name: str, settings: dict[str, Any]) -> None:
    model = make_tosa(name, **settings)
    report = count_flops(model)
    assert run_and_count(model) == macs(report)
    assert dense_macs(name) == round(report.dense_gmacs * 1e9)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_vit", {"img_size": (64, 96)}),
        ("test_vit", {"num_classes": 0}),
        ("test_vit", {"qkv_bias": False, "qk_norm": True}),
        ("test_vit2", {"class_token": False}),
        ("test_vit3", {"pool_include_prefix": False}),
        ("vit_base_patch16_rpn_224", SHRUNK),
        ("vit_base_patch16_xp_224", SHRUNK),
        ("deit_tiny_distilled_patch16_224", SHRUNK),
        ("vit_tiny_r_s16_p8_224", {"depth": 6, "img_size": 64}),
        ("vit_base_patch16_clip_224", SHRUNK),
        ("vit_base_patch16_siglip_224", SHRUNK),
        ("vit_small_patch16_224", {**SHRUNK, "mlp_layer": timm.layers.SwiGLU}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_architectures_are_counted_as_they_run_too(name: str, args: dict[str, Any]) -> None:
    model = make_tosa(make_vit(name, **args))
    report = count_flops(model)
    assert run_and_count(model) == macs(report)
    assert run_and_count(model.backbone) == round(report.dense_gmacs * 1e9)


@pytest.mark.parametrize("keep_rate", [1.0, 0.9, 0.62, 0.3, 0.01])
@pytest.mark.parametrize("bypass", ["identity", "linear", "nearest", "nearest+affine", "nearest+linear"])
@pytest.mark.parametrize("selector", ["attention", "similarity", "probe", "previous", "random"])
def test_every_selector_with_every_bypass_is_counted_as_it_runs(selector: str, bypass: str, keep_rate: float) -> None:
    source = make_vit("vit_tiny_patch16_224", depth=4, img_size=(96, 64))
    reads_maps = selector in ("attention", "previous")
    layers, span = ((2, 4), 1) if reads_maps else ((1, 2, 3, 4), 3)
    model = make_tosa(source, selector=selector, bypass=bypass, layers=layers, span=span, keep_rate=keep_rate)
    report = count_flops(model)
    assert run_and_count(model) == macs(report)
    assert report.params == sum(parameter.numel() for parameter in model.parameters())
    assert count_flops(source, model.config) == report
    maps = keep_rate < 1 and bypass in ("linear", "nearest+linear")
    matches = bypass.startswith("nearest") and selector != "similarity"  # which has matched the tokens already
    assert (report.bypass_gmacs > 0) == (maps or matches)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_vit2", {"class_token": False, "img_size": (32, 48)}),
        ("test_vit3", {}),
        ("vit_base_patch16_rpn_224", SHRUNK),
        ("vit_base_patch16_xp_224", SHRUNK),
        ("deit_tiny_distilled_patch16_224", SHRUNK),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_architectures_with_matching_are_counted_as_they_run_too(name: str, args: dict[str, Any]) -> None:
    source = make_vit(name, **args)
    for selector in ("similarity", "probe", "attention"):
        model = make_tosa(source, selector=selector, bypass="nearest+linear", neighbors=2, selector_kernel=3)
        report = count_flops(model)
        assert run_and_count(model) == macs(report) and count_flops(source, model.config) == report
        assert report.params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_counted_as_it_runs(family: str) -> None:
    source = make_family(family)
    dense = run_and_count(source)
    for settings in ({}, {"query_rows": "all"}, {"selector": "similarity", "bypass": "nearest+linear"}):
        model = make_tosa(source, layers=(2, 4), keep_rate=0.6, **settings)
        report = count_flops(model)
        assert run_and_count(model) == macs(report) and count_flops(source, model.config) == report
        assert dense == round(report.dense_gmacs * 1e9)
        assert report.params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("selector", ["attention", "similarity", "probe", "previous", "random"])
@pytest.mark.parametrize("family", MECHANISMS)
def test_every_selector_and_bypass_of_a_family_is_counted_as_it_runs(family: str, selector: str) -> None:
    source = make_family(family, depth=2)
    for bypass in ("identity", "linear", "nearest", "nearest+affine", "nearest+linear"):
        model = make_tosa(source, layers=(2,), keep_rate=0.6, selector=selector, bypass=bypass)
        assert run_and_count(model) == macs(count_flops(model))


def test_skipped_tokens_are_really_not_computed() -> None:
    dense = run_and_count(make_vit())
    counted = [run_and_count(make_tosa(selector="random", keep_rate=rate)) for rate in (1.0, 0.8, 0.4, 0.1)]
    assert dense == counted[0] > counted[1] > counted[2] > counted[3] > dense / 2


def test_a_pruned_model_is_counted_as_it_runs() -> None:
    for index in (1, 2, 3):  # the last layer left is a ToSA layer, a feeding layer of none, a ToSA layer
        model = make_tosa()
        model.prune_intermediate_layers([index])
        assert run_and_count(model) == macs(count_flops(model))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", [{}, {"selection": "per-head"}, {"selector": "random"}], ids=str)
def test_a_dense_model_is_counted_as_if_it_were_converted(name: str, settings: dict[str, Any]) -> None:
    source = make_vit(name)
    model = make_tosa(source, **settings)
    assert count_flops(source, model.config, "x") == count_flops(model, name="x")


def test_a_layer_that_the_model_does_not_have_is_not_counted_as_if_it_had() -> None:
    with pytest.raises(ConfigError, match=fragments.LAYER_7_1_TO_6):
        count_flops(make_vit(), TosaConfig(layers=(2, 7)))


def test_selection_that_the_blocks_do_not_allow_is_not_counted() -> None:
    model = timm.create_model("vit_base_patch16_xp_224", device="meta")
    with pytest.raises(UnsupportedModelError, match="ParallelScalingBlock"):
        count_flops(model, TosaConfig(layers=LAYERS, selection="per-head"))


def test_a_dense_model_saves_nothing() -> None:
    report = count_flops(make_vit())
    assert report.gmacs == report.dense_gmacs and report.reduction == 0
    assert {layer.kind for layer in report.layers} == {"standard"}
    assert report.selector_gmacs == report.bypass_gmacs == 0
