"""A converted whole model is a module like any other to what people do with modules."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn

import tosa_cli
from tests.model.test_whole_models import GROUPED, NEAREST, build, output
from tests.model.whole_models import CONVERTED, batch_for
from tests.sentences import fragments
from tosa_cli import TosaConfig
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.runs import converted_runs

PAPER = TosaConfig(layers=(2, 4), keep_rate=0.5, query_rows="all")
SHORT = TosaConfig(layers=(3, 4), keep_rate=(0.8, 0.5), selector="ward", bypass="mean")
"""Groups, and groups of these: what a graph takes of a model with more ToSA layers, in less time."""

NAMES = ["depth_anything", "vitpose", "clip"]


@pytest.fixture(params=NAMES)
def name(request: Any) -> str:
    return str(request.param)


def test_threads_do_not_mix_their_images(name: str) -> None:
    model = tosa_cli.convert(build(name), NEAREST)
    batch = batch_for(model)
    halves = [{key: value[i : i + 1] for key, value in batch.items()} for i in (0, 1)]
    with torch.no_grad():
        alone = [getattr(model(**half), CONVERTED[name][1]) for half in halves]
    wrong: list[int] = []

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                if not torch.equal(getattr(model(**halves[index]), CONVERTED[name][1]), alone[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("config", [GROUPED, NEAREST, PAPER], ids=["grouped", "nearest", "paper"])
def test_gradient_checkpointing_changes_no_gradient(name: str, config: Any) -> None:
    model = tosa_cli.convert(build(name), config).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        getattr(model(**batch_for(model)), CONVERTED[name][1]).square().mean().backward()
        return {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in converted_runs(model)[0].layers)
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys()
    for key, value in plain.items():
        torch.testing.assert_close(checkpointed[key], value)


def test_a_compiled_and_an_exported_graph_compute_the_same(name: str) -> None:
    model = tosa_cli.convert(build(name), SHORT)
    expected, batch = output(model, name), batch_for(model)
    exported = torch.export.export(model, (), batch, strict=False).module()
    torch.testing.assert_close(getattr(exported(**batch), CONVERTED[name][1]), expected)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(getattr(compiled(**batch), CONVERTED[name][1]), expected)


def test_hidden_states_are_of_all_tokens_in_a_copy_too() -> None:
    model = tosa_cli.convert(build("vit"), GROUPED)
    images = batch_for(model)["pixel_values"]
    states = copy.deepcopy(model)(images, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(2, 17, 32)] * 5
    assert torch.equal(states[-1], model(images, output_hidden_states=True).hidden_states[-1])


def test_attention_without_a_place_for_sizes_is_refused() -> None:
    model = tosa_cli.convert(build("vitpose"), GROUPED)
    model.set_attn_implementation("eager")
    with pytest.raises(UnsupportedModelError, match="attn_implementation='sdpa'"):
        output(model, "vitpose")
    other = tosa_cli.convert(build("depth_anything"), GROUPED)
    expected = output(other, "depth_anything")
    other.set_attn_implementation("eager")
    torch.testing.assert_close(output(other, "depth_anything"), expected)


def test_images_with_a_mask_are_refused() -> None:
    model = tosa_cli.convert(build("vit"), GROUPED)
    mask = torch.ones(2, 17, dtype=torch.long)
    images = batch_for(model)["pixel_values"]
    model(images, attention_mask=mask)
    mask[0, 5:] = 0
    with pytest.raises(UnsupportedModelError, match=fragments.ATTENTION_MASK):
        model(images, attention_mask=mask)
