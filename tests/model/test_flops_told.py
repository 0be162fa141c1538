"""What is told of MACs: layers and totals, the paper's figures where they are right, and keep rates for a target."""

import dataclasses
import json
from typing import Any

import pytest
import timm

from tosa_cli.config import TosaConfig
from tosa_cli.errors import ConfigError
from tosa_cli.model.convert import insert_selectors
from tosa_cli.model.flops import count_flops, solve_keep_rate
from tosa_cli.model.tosa_vit import TosaViT

from ..model.tiny_models import LAYERS, make_tosa, make_vit
from .counting import macs

PAPER_LAYERS = (2, 4, 6, 8, 10)


# ---------------------------------------------------------------------- told


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
