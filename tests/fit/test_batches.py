"""Tokens of a whole model's run, layer by layer, are those that the model itself has there."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tosa_cli
from tests.model.whole_models import batch_for, depth_anything, yolos
from tosa_cli.config import TosaConfig
from tosa_cli.fit.batches import BatchTokens
from tosa_cli.model.runs import converted_runs
from tosa_cli.model.runs.insert import dense
from tosa_cli.model.stream import Stream, run_all

MODELS: dict[str, Any] = {
    "adds nothing between its layers": depth_anything,
    "adds positions between its layers": lambda: yolos(use_mid_position_embeddings=True),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", [("ward", "mean"), ("similarity", "nearest")], ids="-".join)
@torch.no_grad()
def test_the_last_tokens_are_the_models_own_with_every_token_and_with_some(name: str, method: tuple[Any, Any]) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():  # positions between the layers are 0 until they are trained
        parameter.add_(0.05 * torch.randn_like(parameter))
    selector, bypass = method
    tosa_cli.convert(model, TosaConfig(layers=(2, 3), keep_rate=(0.8, 0.6), selector=selector, bypass=bypass))
    found = converted_runs(model)[0]
    run, batch = found.run, batch_for(model)
    assert run is not None
    last: list[Tensor] = []
    handle = found.layers[-1].register_forward_hook(lambda module, args, output: last.append(run.enter(output)))
    model(**batch)
    with dense(model):
        model(**batch)
    handle.remove()
    with BatchTokens(model, found, [batch, batch]) as kept:
        for _, tokens in kept.read():
            for layers, expected in zip((run.layers, run.dense_layers), last, strict=True):
                stream = Stream(tokens, kept.places)
                run_all(layers(stream))
                torch.testing.assert_close(stream.tokens, expected, atol=1e-4, rtol=1e-4)
