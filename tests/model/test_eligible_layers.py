"""A model in which some layers cannot select tokens converts in the others, which run beside them."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block, DiffParallelScalingBlock
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.sentences import fragments
from tests.train.tiny_runs import write_photos
from tosa_cli.config import Method, TosaConfig
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import images_to_read
from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.fit.budget import ErrorCurve, allocate, measure_curves
from tosa_cli.hub.source import Source
from tosa_cli.model.convert import insert_selectors
from tosa_cli.model.families import check_convertible, check_supported, eligible_layers
from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.processes import make_accelerator
from tosa_cli.workflow.inspect import inspect

from .tiny_models import make_images, make_vit, randomize_


class TwiceBlock(Block):
    """A block that computes something else than the one it inherits from."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return super().forward(x, **kwargs) * 2


def make_mixed(**args: Any) -> Any:
    """Six layers; the third has differential attention, the fifth is of a type that is not known."""
    model: Any = make_vit("test_vit", img_size=64, patch_size=8, num_classes=10, **args)
    width, heads = model.embed_dim, model.blocks[0].attn.num_heads
    model.blocks[2] = randomize_(DiffParallelScalingBlock(width, heads, qkv_bias=True), 1).eval()
    model.blocks[4] = randomize_(TwiceBlock(width, heads, qkv_bias=True), 2).eval()
    return model


def test_each_layer_answers_for_itself() -> None:
    model = make_mixed()
    check_supported(model)
    assert eligible_layers(model) == eligible_layers(model, "per-head") == (1, 2, 4, 6)
    # A selector that reads maps cannot read those two layers either.
    assert eligible_layers(model, reads_maps=True) == (2,)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": (2, 4, 6), "selector": "similarity", "bypass": "nearest+affine"},
        {"layers": (1, 2, 4), "selector": "probe", "bypass": "linear", "span": 2},
        {"layers": (2,), "selector": "attention"},
        {"layers": (1, 6), "selector": "random", "selection": "per-head"},
    ],
    ids=str,
)
@torch.no_grad()
def test_it_converts_where_the_layers_asked_for_can(settings: dict[str, Any]) -> None:
    source = make_mixed()
    images = make_images(size=64)
    expected = source.forward_features(images)
    model = insert_selectors(source, TosaConfig(**settings, keep_rate=0.5))  # proves that it equals its source
    changed = model.forward_features(images)
    assert changed.isfinite().all() and not torch.allclose(changed, expected, atol=1e-2)
    model.keep_rates = dict.fromkeys(model.keep_rates, 1.0)
    assert torch.allclose(model.forward_features(images), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "layer"),
    [
        ({"layers": (2, 3)}, "Layer 3"),
        ({"layers": (5,)}, "Layer 5"),
        ({"layers": (4,), "selector": "attention"}, "layer 4"),
    ],
    ids=str,
)
def test_a_layer_that_cannot_is_refused_with_those_that_can(settings: dict[str, Any], layer: str) -> None:
    config = TosaConfig(**{"selector": "similarity", **settings})
    for refuse in (check_convertible, TosaViT, count_flops):
        with pytest.raises(UnsupportedModelError) as failure:
            refuse(make_mixed(), config)
        message = str(failure.value)
        can = "2" if config.reads_maps else "1,2,4,6"
        assert layer in message and message.endswith(f" {can}.")
        assert ". " not in message


def test_a_model_without_any_is_refused_whole() -> None:
    model = make_mixed()
    model.blocks = nn.Sequential(model.blocks[2], model.blocks[4])
    with pytest.raises(UnsupportedModelError, match=fragments.LAYER_1_OF_TEST_VIT):
        check_supported(model)


@pytest.mark.parametrize("settings", [{"selector": "similarity", "bypass": "nearest+linear"}, {}], ids=str)
def test_its_layers_are_counted_as_they_run(settings: dict[str, Any]) -> None:
    source = make_mixed().to("meta").requires_grad_(False)
    model = TosaViT(source, TosaConfig(layers=(2,), keep_rate=0.6, **settings)).requires_grad_(False)
    for counted, ran in ((count_flops(model), model), (count_flops(source), source)):
        with FlopCounterMode(display=False) as counter:
            ran(torch.empty(1, 3, 64, 64, device="meta"))
        assert counter.get_total_flops() // 2 == round(counted.gmacs * 1e9)


@pytest.mark.parametrize(("selector", "layers"), [("similarity", [1, 2, 4, 6]), ("previous", [2])])
def test_what_layers_can_spare_is_measured_where_they_can_select(
    selector: Any, layers: list[int], tmp_path: Any
) -> None:
    source = make_mixed()
    write_photos(tmp_path / "photos")
    images = images_to_read(open_dataset(str(tmp_path / "photos")), source, batch_size=4)
    method = Method(selector=selector, query_rows=4)
    accelerator = make_accelerator(TrainConfig())
    curves = measure_curves(accelerator, source, method, images, keep_rates=(0.8, 0.5))
    assert [curve.layers for curve in curves] == [(layer,) for layer in layers]


def test_a_selector_that_can_read_no_layer_is_refused_before_any_image_is_read() -> None:
    model = make_mixed()
    model.blocks = nn.Sequential(model.blocks[0])
    with pytest.raises(ConfigError, match="'previous'"):
        measure_curves(make_accelerator(TrainConfig()), model, Method(selector="previous"), images=None)


def test_two_layers_with_one_between_that_cannot_select_are_not_in_a_row() -> None:
    model = make_vit("test_vit", img_size=64, patch_size=8, num_classes=10)
    curves = [ErrorCurve((layer,), (0.8, 0.3), (0.1, 0.2)) for layer in (2, 4)]
    assert allocate(model, Method(selector="previous", query_rows=1), curves, 0.15).layers == (2, 4)


def test_inspecting_it_proposes_the_layers_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_mixed()
    model.blocks = model.blocks[2:]  # the first and the third layer cannot
    monkeypatch.setattr("tosa_cli.workflow.inspect.load_source", lambda *_, **__: Source(model, "mixed"))
    report = inspect("mixed", Method())
    assert report.eligible == (2, 4) and report.savings == [] and report.facts["num_heads"] == 2
    model = make_mixed()
    report = inspect("mixed", Method())
    assert report.eligible == (1, 2, 4, 6)
    assert {saving.layers for saving in report.savings} == {(2,)}
