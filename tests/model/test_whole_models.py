"""Whole models of transformers convert in place, equal their source with every token kept, and are saved and loaded."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import tosa_cli
from tests.model.whole_models import CONVERTED, REFUSED, batch_for
from tosa_cli import TosaConfig
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.runs import converted_runs, dense
from tosa_cli.model.runs.calls import call_on
from tosa_cli.model.runs.flops import TEXT_LENGTH, count_whole, counted_call

GROUPED = TosaConfig(layers=(2, 3, 4), keep_rate=(0.8, 0.7, 0.5), selector="ward", bypass="mean")
NEAREST = TosaConfig(layers=(2, 3, 4), keep_rate=0.7, selector="similarity", bypass="nearest+affine", span=2)


def build(name: str) -> Any:
    torch.manual_seed(0)
    model = CONVERTED[name][0]().eval()
    for parameter in model.parameters():  # heads and positions that begin as zeros would hide what is wrong
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    if name.endswith("depth_anything"):
        model.head.conv3.bias.data.fill_(1.0)  # depth is cut off below 0
    return model


def output(model: Any, name: str, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return getattr(model(**batch_for(model), **options), CONVERTED[name][1])


@pytest.mark.parametrize("name", CONVERTED)
def test_a_model_with_every_token_kept_equals_its_source(name: str) -> None:
    source = build(name)
    expected = output(source, name)
    model = tosa_cli.convert(copy.deepcopy(source), GROUPED)
    changed = output(model, name)
    for found in converted_runs(model):
        found.run.keep_rates = dict.fromkeys(found.run.keep_rates, 1.0)
    kept = output(model, name)
    assert kept.shape == expected.shape == changed.shape
    assert (kept - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1)
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, expected)
    with dense(model):
        assert torch.equal(output(model, name), expected)


@pytest.mark.parametrize("config", [GROUPED, NEAREST], ids=["grouped", "nearest"])
@pytest.mark.parametrize("name", CONVERTED)
def test_a_saved_model_loads_as_it_was(name: str, config: TosaConfig, tmp_path: Path) -> None:
    model = tosa_cli.convert(build(name), config)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert converted_runs(loaded.eval())[0].run.config == config
    saved = model.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[key]) for key, value in loaded.state_dict().items())
    torch.testing.assert_close(output(loaded, name), output(model, name))


@pytest.mark.parametrize("name", CONVERTED)
def test_the_multiply_accumulates_of_the_whole_are_those_that_run(name: str) -> None:
    model = tosa_cli.convert(build(name), GROUPED)
    report = count_whole(model)
    # Language models cannot be run without numbers: of those the tower is counted.
    part = next(module for module in model.modules() if type(module).__name__ == report.counted)
    assert (part is model) == (name not in ("llava", "paligemma"))
    call = call_on(part, {"pixel_values": batch_for(model)["pixel_values"][:1]})
    if part is model and "input_ids" in batch_for(model):
        call.kwargs["input_ids"] = torch.ones((1, TEXT_LENGTH), dtype=torch.long)  # type: ignore[index]
    assert report.gmacs * 1e9 == pytest.approx(counted_call(call), rel=1e-6)
    assert 0 < report.reduction < report.encoder_reduction


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_converted_says_why(name: str) -> None:
    make, word = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=word):
        tosa_cli.convert(make().eval(), TosaConfig(layers=(2,), selector="ward", bypass="mean"))
