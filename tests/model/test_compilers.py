"""A ToSA model compiles and exports whole, without a graph break."""

from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import config as inductor

from tosa_cli.methods import SELECTORS
from tosa_cli.model.tosa_vit import TosaViT

from . import tiny_models
from .tiny_models import MODELS, make_vit

BYPASSES: list[dict[str, Any]] = [
    {"selector": "similarity", "bypass": "nearest+linear"},
    {"selector": "probe", "bypass": "linear"},
    {"selector": "ward", "bypass": "mean"},
]


SHORT: dict[str, Any] = {"depth": 4, "img_size": 64}
"""A graph of four layers has all that one of more has."""


def reads_maps(settings: dict[str, Any]) -> bool:
    """Whether the layer before a ToSA layer has to be a standard one."""
    return SELECTORS[settings.get("selector", "attention")].reads_maps


def make_tosa(name: str = "test_vit", **settings: Any) -> TosaViT:
    """A small ToSA model of two ToSA layers, and a standard one before each where that feeds it."""
    settings = {"layers": (2, 4) if reads_maps(settings) else (1, 2), **settings}
    return tiny_models.make_tosa(make_vit(name, **{**SHORT, "depth": settings["layers"][-1]}), **settings)


def make_short(name: str = "test_vit", **settings: Any) -> TosaViT:
    """A ToSA layer, behind a standard one where that feeds it: what each setting puts into a graph, once."""
    depth = 2 if reads_maps(settings) else 1
    return tiny_models.make_tosa(make_vit(name, **{**SHORT, "depth": depth}), **{"layers": (depth,), **settings})


def make_images(batch: int = 2, seed: int = 0) -> Tensor:
    return tiny_models.make_images(batch, size=64, seed=seed)


@pytest.fixture(autouse=True)
def forget_compiled_graphs() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("test_vit", {"selection": "per-head"}),
        ("test_vit2", {"selector": "previous"}),
        ("test_vit3", {"selector_kernel": 3}),
        ("test_vit4", {"selection": "per-head", "query_rows": "all"}),
        ("test_vit", {"selector": "attention", "bypass": "nearest+affine"}),
    ],
    ids=str,
)
def test_a_compiled_model_is_one_graph_and_computes_the_same(name: str, settings: dict[str, Any]) -> None:
    check_compiled(make_short(name, **settings))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("test_vit", {"query_rows": "all"}), *(("test_vit2", settings) for settings in BYPASSES)],
    ids=str,
)
def test_a_compiled_model_takes_another_number_of_images(name: str, settings: dict[str, Any]) -> None:
    # One image is compiled for itself; the graph of two takes any other number.
    check_compiled(make_short(name, **settings), batches=(1, 2, 3))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("test_vit", {}),
        *(("test_vit", settings) for settings in BYPASSES),
        ("test_vit4", {"selector": "similarity", "bypass": "nearest", "layers": (1, 2, 3)}),
        ("test_vit4", {"selector": "similarity", "bypass": "nearest+affine", "layers": (1, 2, 3), "span": 2}),
    ],
    ids=str,
)
def test_a_compiled_model_of_several_tosa_layers_is_one_graph_too(name: str, settings: dict[str, Any]) -> None:
    check_compiled(make_tosa(name, **settings))


def check_compiled(model: TosaViT, batches: tuple[int, ...] = (2,)) -> None:
    """Check that a model compiles as one graph, which computes the same for each number of images in turn."""
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for batch in batches:
            assert torch.allclose(compiled(make_images(batch)), model(make_images(batch)), atol=1e-4)


def test_a_model_with_random_selection_compiles_too() -> None:
    model = make_tosa(selector="random", layers=(1, 2), keep_rate=0.5)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    expected = model(make_images())
    torch.manual_seed(0)
    assert torch.allclose(compiled(make_images()), expected, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, *BYPASSES], ids=str)
def test_a_compiled_model_trains_with_the_same_gradients(settings: dict[str, Any]) -> None:
    gradients = []
    for compile_it in (False, True):
        model = make_short(**settings).train()
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if compile_it else model
        run(make_images()).square().sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.backbone_parameters()]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * gradients[0].abs().max().item())


@pytest.mark.parametrize("settings", BYPASSES, ids=str)
def test_a_compiled_model_lowers_to_one_graph_of_plain_operations(settings: dict[str, Any]) -> None:
    model, graphs = make_short(**settings), []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=count))
    with torch.no_grad():
        assert torch.allclose(compiled(make_images()), model(make_images()), atol=1e-4)
    assert len(graphs) == 1
    assert not any("_local_scalar_dense" in str(node.target) for node in graphs[0].graph.nodes)


@pytest.mark.parametrize("settings", [{}, *BYPASSES], ids=str)
def test_the_default_backend_computes_the_same(settings: dict[str, Any]) -> None:
    model = make_short(**settings)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad(), inductor.patch(compile_threads=1):  # more are processes that import PyTorch first
        assert torch.allclose(compiled(make_images()), model(make_images()), atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"query_rows": "all"}, {"selection": "per-head"}, *BYPASSES], ids=str)
def test_an_exported_model_takes_any_number_of_images(settings: dict[str, Any]) -> None:
    model = make_short(**settings)
    batch = torch.export.Dim("batch", min=1, max=64)
    run = torch.export.export(model, (make_images(2),), dynamic_shapes={"images": {0: batch}}).module()
    for count in (1, 2, 5):
        images = make_images(count)
        assert torch.allclose(run(images), model(images), atol=1e-4)


@pytest.mark.parametrize("name", MODELS[1:])
def test_every_test_model_exports(name: str) -> None:
    model = make_tosa(name)
    program = torch.export.export(model, (make_images(),))
    assert torch.allclose(program.module()(make_images()), model(make_images()), atol=1e-4)


@pytest.mark.parametrize("settings", [{}, *BYPASSES], ids=str)
def test_an_exported_model_still_skips_tokens(settings: dict[str, Any]) -> None:
    # A constant selection, baked in while exporting, would give the right answer for the exported image alone.
    model = make_short(keep_rate=0.3, **settings)
    program = torch.export.export(model, (make_images(seed=0),)).module()
    for seed in (1, 2):
        assert torch.allclose(program(make_images(seed=seed)), model(make_images(seed=seed)), atol=1e-4)
    assert not torch.allclose(program(make_images(seed=1)), model.backbone(make_images(seed=1)), atol=1e-2)
