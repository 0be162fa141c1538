"""MACs by arithmetic equal what PyTorch counts on the running model, and the paper's figures where they are right."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.sentences import fragments
from tosa_cli.config import TosaConfig
from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.model.convert import insert_selectors
from tosa_cli.model.flops import count_flops, solve_keep_rate
from tosa_cli.model.flops_report import FlopsReport
from tosa_cli.model.tosa_vit import TosaViT

from ..model.families import FAMILIES, MECHANISMS, make_family
from ..model.test_backbone import SHRUNK
from ..model.tiny_models import LAYERS, MODELS, make_images, make_tosa, make_vit

PAPER_LAYERS = (2, 4, 6, 8, 10)


def count(module: Callable[..., Any], *inputs: Tensor) -> int:
    """MACs that PyTorch counts while a module runs: attention as plain products, which no version of it leaves out."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


def run_and_count(model: nn.Module) -> int:
    """MACs that PyTorch counts while the model runs on one image."""
    model.requires_grad_(False)  # under no_grad the counter fails on attention pooling
    return count(model, make_images(1, model.patch_embed.img_size))


@functools.cache
def dense_macs(name: str) -> int:
    """MACs that PyTorch counts while a model of timm runs with every token."""
    return run_and_count(make_vit(name))


def test_the_counter_that_this_is_held_against_sees_attention_once() -> None:
    query, key = torch.ones(1, 2, 5, 4), torch.ones(1, 2, 7, 4)
    assert count(F.scaled_dot_product_attention, query, key, key) == 2 * (2 * 5 * 7 * 4)


def macs(report: FlopsReport) -> int:
    return round(report.gmacs * 1e9)


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


def test_layers_and_what_surrounds_them_add_up() -> None:
    model = make_tosa(keep_rate=(0.2, 0.5, 0.8))
    report = count_flops(model, name="mine")
    outside = 100 * 3 * 16 * 16 * 64 + 64 * 1000
    layers = report.layers
    assert macs(report) == outside + sum(layer.macs + layer.selector_macs + layer.bypass_macs for layer in layers)
    assert round(report.dense_gmacs * 1e9) == outside + sum(layer.dense_macs for layer in layers)
    assert round(report.selector_gmacs * 1e9) == sum(layer.selector_macs for layer in layers) > 0
    assert report.reduction == pytest.approx(1 - report.gmacs / report.dense_gmacs)
    assert report.params == sum(parameter.numel() for parameter in model.parameters())
    assert report.model == "mine" and report.img_size == (160, 160)


def test_each_layer_says_what_it_is_and_how_many_tokens_it_computes() -> None:
    layers = count_flops(make_tosa(keep_rate=(0.2, 0.5, 0.8))).layers
    assert [layer.layer for layer in layers] == [1, 2, 3, 4, 5, 6]
    assert [layer.kind for layer in layers] == ["feeding", "tosa"] * 3
    assert [layer.kept for layer in layers] == [101, 20, 101, 50, 101, 81]
    assert all(layer.tokens == 101 for layer in layers)
    assert all((layer.macs < layer.dense_macs) == (layer.kind == "tosa") for layer in layers)
    assert all((layer.selector_macs > 0) == (layer.kind == "tosa") for layer in layers)


def test_the_report_is_plain_json() -> None:
    values = json.loads(json.dumps(count_flops(make_tosa(), name="mine").to_dict()))
    names = {"model", "img_size", "gmacs", "dense_gmacs", "reduction", "selector_gmacs", "bypass_gmacs", "params"}
    assert names | {"layers", "norm_gmacs"} == set(values)
    assert {"layer", "kind", "tokens", "kept", "macs", "selector_macs", "bypass_macs"} <= set(values["layers"][0])


@pytest.mark.parametrize(
    ("name", "published"),
    [("deit_tiny_patch16_224", 1.26), ("deit_small_patch16_224", 4.61), ("vit_base_patch16_224", 17.58)],
)
def test_timms_published_figures_come_out_with_the_norms(name: str, published: float) -> None:
    report = count_flops(timm.create_model(name, device="meta"))
    assert round(report.gmacs + report.norm_gmacs, 2) == published
    assert report.gmacs < published


@pytest.mark.parametrize(
    ("selection", "keep_rate", "saved"),
    [
        ("shared", 0.8, 0.090),
        ("shared", 0.6, 0.177),
        ("shared", 0.5, 0.219),
        ("shared", 0.4, 0.258),  # the paper's Table 1 gives this figure for 0.8
        ("per-head", 0.8, 0.038),
    ],
)
def test_what_selection_saves_on_deit_tiny_without_the_selector(selection: Any, keep_rate: float, saved: float) -> None:
    model = timm.create_model("deit_tiny_patch16_224", device="meta")
    config = TosaConfig(layers=PAPER_LAYERS, keep_rate=keep_rate, selector="random", selection=selection)
    assert round(count_flops(model, config).reduction, 3) == saved


def test_the_selector_has_its_price_and_all_rows_the_highest() -> None:
    model = timm.create_model("deit_tiny_patch16_224", device="meta")
    config = TosaConfig(layers=PAPER_LAYERS, keep_rate=0.8)
    free = count_flops(model, dataclasses.replace(config, selector="random")).reduction
    few = count_flops(model, config).reduction
    every = count_flops(model, dataclasses.replace(config, query_rows="all")).reduction
    assert free > few > every > 0 and free - few < 0.005


# ---------------------------------------------------------------------- solving for the keep rate


@pytest.mark.parametrize("target", [0.01, 0.1, 0.2, 0.258, 0.3])
@pytest.mark.parametrize("settings", [{}, {"selector": "random"}, {"query_rows": 64}], ids=str)
def test_the_keep_rate_found_reaches_the_target_and_the_next_thousandth_does_not(
    target: float, settings: dict[str, Any]
) -> None:
    model = timm.create_model("deit_tiny_patch16_224", device="meta")
    config = solve_keep_rate(model, TosaConfig(layers=PAPER_LAYERS, **settings), target)
    rate = config.keep_rate
    assert isinstance(rate, float) and rate == round(rate, 3)
    assert count_flops(model, config).reduction >= target
    above = dataclasses.replace(config, keep_rate=round(rate + 0.001, 3))
    assert count_flops(model, above).reduction < target


def test_the_papers_saving_is_reached_at_its_true_keep_rate() -> None:
    model = timm.create_model("deit_tiny_patch16_224", device="meta")
    config = solve_keep_rate(model, TosaConfig(layers=PAPER_LAYERS, selector="random"), 0.2575)
    assert config.keep_rate == pytest.approx(0.4, abs=0.005)


def test_only_the_keep_rate_is_solved_for() -> None:
    config = TosaConfig(layers=LAYERS, keep_rate=(0.1, 0.2, 0.3), query_rows=4, selection="per-head")
    solved = solve_keep_rate(make_vit(), config, 0.05)
    assert dataclasses.replace(solved, keep_rate=config.keep_rate) == config


def test_the_model_converted_with_the_keep_rate_found_saves_as_much() -> None:
    source = make_vit()
    model = insert_selectors(source, solve_keep_rate(source, TosaConfig(layers=LAYERS), 0.2))
    assert isinstance(model, TosaViT) and count_flops(model).reduction >= 0.2


def test_a_target_out_of_reach_says_how_far_these_layers_go() -> None:
    model = timm.create_model("deit_tiny_patch16_224", device="meta")
    with pytest.raises(ConfigError) as failure:
        solve_keep_rate(model, TosaConfig(layers=(2, 4)), 0.5)
    message = str(failure.value)
    assert "50.0%" in message and " 2,4 " in message and " 16.0%" in message


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, 25.8, float("nan")])
def test_a_target_that_is_no_share_is_refused(target: float) -> None:
    with pytest.raises(ConfigError, match=str(target)):
        solve_keep_rate(make_vit(), TosaConfig(layers=LAYERS), target)
