"""A runtime may compute all of an exported graph in half precision, without a word: nothing in it may break there.

Half precision is brought about here as such a runtime does it: every operation of the graph is run on half-precision
numbers, and leaves some, whatever type the graph names.
"""

import ast
import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from tests.model.tiny_models import make_images
from tosa_cli.export.photos import sample_images
from tosa_cli.export.program import decompose, trace
from tosa_cli.model.grouping import halves, merge_costs
from tosa_cli.model.matching import FLOOR, length_scale, partner_weights, squared_distances
from tosa_cli.model.tosa_vit import TosaViT

from .tiny import shortest_tosa

HALVES = (torch.bfloat16, torch.float16)
SETTINGS: list[dict[str, Any]] = [
    {"selector": "ward", "bypass": "mean", "layers": (1, 2, 3), "keep_rate": (0.9, 0.6, 0.3)},
    {"selector": "similarity", "bypass": "nearest+affine", "neighbors": 4, "layers": (1, 2, 3), "span": 2},
    {"selector": "similarity", "bypass": "nearest"},
    {"selector": "probe", "bypass": "nearest+linear", "neighbors": 3},
    {"selector": "attention", "bypass": "linear"},
    {"selector": "attention", "selection": "per-head", "query_rows": "all"},
]


@functools.cache
def traced(settings: str) -> tuple[TosaViT, "InHalf", dict[str, Tensor]]:
    """A model, its graph, which shares its weights, and a copy of these: tracing takes longest."""
    model = shortest_tosa(**ast.literal_eval(settings))
    return model, InHalf(model, sample_images(model, 2)), copy.deepcopy(model.state_dict())


def in_half(settings: dict[str, Any]) -> tuple[TosaViT, "InHalf"]:
    """A model with its weights as they were made, and its graph."""
    model, half, weights = traced(repr(settings))
    model.load_state_dict(weights)
    return model, half


class InHalf(fx.Interpreter):
    """Runs a graph with all numbers in half precision.

    Args:
        model: What is traced and run.
        images: Images (B, C, height, width) to trace with.
    """

    dtype: torch.dtype

    def __init__(self, model: TosaViT, images: Tensor) -> None:
        super().__init__(decompose(trace(model, ["last_hidden_state"], images, True, True)).module())

    def run_in(self, dtype: torch.dtype, images: Tensor) -> Tensor:
        """Tokens of images, computed in a half-precision type; tracing takes long, and does for all."""
        self.dtype = dtype
        return self.run(images)["last_hidden_state"]

    def run_node(self, n: fx.Node) -> Any:
        """What a node leaves, in half precision."""
        return fx.node.map_aggregate(super().run_node(n), self.rounded)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call an operation; one that names a type of numbers names this one."""
        if target is torch.ops.aten._assert_tensor_metadata.default:
            return None
        floats = (torch.float32, torch.float64)
        return super().call_function(
            target, args, {key: self.dtype if value in floats else value for key, value in kwargs.items()}
        )

    def rounded(self, value: Any) -> Any:
        """A value in half precision, if it is a number."""
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def equal_images(model: TosaViT) -> Tensor:
    """Images whose patches all look the same: tokens at distance 0 from each other, but for their positions."""
    torch.nn.init.zeros_(model.pos_embed)
    return torch.full((2, 3, 32, 32), 0.4)


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_graph_holds_in_half_precision(settings: dict[str, Any]) -> None:
    model, half = in_half(settings)
    images = sample_images(model, 4)
    own = model.forward_features(images)
    for dtype in HALVES:
        tokens = half.run_in(dtype, images)
        assert tokens.dtype == dtype and tokens.isfinite().all()
        assert F.cosine_similarity(tokens.float(), own, dim=-1).median() > 0.99
    equal = equal_images(model)
    assert all(half.run_in(dtype, equal).isfinite().all() for dtype in HALVES)


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS[:3], ids=str)
def test_large_activations_and_equal_patches_break_nothing(settings: dict[str, Any]) -> None:
    # Some models have single channels of hundreds, whose squares are beyond what float16 holds.
    (model, half), images = in_half(settings), make_images(3, size=32)
    model.patch_embed.proj.bias[3] += 700
    assert all(half.run_in(dtype, images).isfinite().all() for dtype in HALVES)
    equal = equal_images(model)
    assert all(half.run_in(dtype, equal).isfinite().all() for dtype in HALVES)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_shares_of_partners_are_right_at_any_distance_that_half_precision_holds(dtype: torch.dtype) -> None:
    assert torch.finfo(torch.float16).tiny == FLOOR
    for size in (0.0, 1e-6, 1e-3, 1.0, 300.0, 60000.0):
        distances = torch.tensor([[[0.0, 0.0, size], [size / 4, size / 2, size]]])
        shares = partner_weights(distances.to(dtype).float())
        near = distances.to(dtype).double().clamp_min(1e-12)
        expected = (near[..., :1] / near).square()
        assert shares.isfinite().all()
        if size >= 1e-3:
            assert torch.allclose(shares.double(), expected / expected.sum(-1, keepdim=True), atol=1e-3)


def test_distances_of_large_tokens_fit_into_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = 100 * torch.randn(1, 64, 384, generator=torch.Generator().manual_seed(0))
    limit = torch.finfo(torch.float16).max
    assert squared_distances(tokens, tokens).max() < limit
    own = merge_costs(*halves(tokens, torch.ones(1, 64)))
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True)
    exported = merge_costs(*halves(tokens, torch.ones(1, 64)))
    assert exported.max() < limit
    assert torch.allclose(exported, own * length_scale(384) ** 2, rtol=1e-4)
