"""A converted model has its source's modules and parameters under the source's names, and runs what stands there."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tosa_cli.model.families import FAMILIES
from tosa_cli.model.timm_interface import TimmInterface
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.peers.merging import MergedViT
from tosa_cli.peers.pruning import PrunedViT

from .added_parts import ADDED, MATCHED, PROBE
from .families import MECHANISMS, make_family
from .tiny_models import LAYERS, make_images, make_tosa, make_vit


def paths(module: nn.Module) -> set[str]:
    """Paths of all parameters and buffers."""
    return {name for named in (module.named_parameters(), module.named_buffers()) for name, _ in named}


def own(names: Any) -> list[str]:
    """Names without those of what was added."""
    return [name for name in names if not name.startswith(ADDED) and f"{name}." not in ADDED]


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("family", MECHANISMS)
def test_keys_are_paths_of_modules_and_the_names_of_the_source(family: str) -> None:
    source = make_family(family)
    model = make_tosa(source, layers=(2, 4), **MATCHED)
    assert own(model.state_dict()) == list(source.state_dict())
    assert own(name for name, _ in model.named_modules()) == [name for name, _ in source.named_modules()]
    assert own(name for name, _ in model.named_parameters()) == [name for name, _ in source.named_parameters()]
    assert set(model.state_dict()) <= paths(model)
    added = {name for name, _ in model.named_children()} - {name for name, _ in source.named_children()}
    assert added == {"selectors", "keys", "bypasses", "outputs"}


@pytest.mark.parametrize(
    "make",
    [
        lambda source: MergedViT(source, "merge", [4] * 6),
        lambda source: MergedViT(source, "merge-unmerge", [4] * 6),
        lambda source: PrunedViT(source, 0.5, [3]),
    ],
    ids=["merge", "merge-unmerge", "prune"],
)
def test_peers_have_the_names_of_the_source_too(make: Any) -> None:
    source: Any = make_vit()
    peer = make(source)
    assert own(peer.state_dict()) == list(source.state_dict()) and set(peer.state_dict()) <= paths(peer)
    assert list(peer.backbone.state_dict()) == list(source.state_dict())
    assert torch.equal(peer.backbone(make_images()), source(make_images()))
    assert torch.equal(pickle.loads(pickle.dumps(peer))(make_images()), peer(make_images()))


@pytest.mark.parametrize("family", MECHANISMS)
def test_no_trait_of_a_source_stands_in_the_way_of_what_is_added(family: str) -> None:
    source = make_family(family)
    names = (vars(source), source._modules, source._parameters, source._buffers)
    traits = {name for named in names for name in named} - set(vars(nn.Module()))
    kinds = [kind for kind in TosaViT.__mro__ if issubclass(kind, TimmInterface)]
    ours = {name for kind in kinds for name in (*vars(kind), *inspect.get_annotations(kind))}
    set_here = {"selectors", "keys", "bypasses", "outputs", "config", "keep_rates", "choosing_layers", "provenance"}
    shared = {name for name in inspect.get_annotations(TimmInterface) if name not in ("added", "added_args", "made_of")}
    assert traits & (ours - shared | set_here) <= {"pretrained_cfg"}


@pytest.mark.parametrize(
    "kind", [kind for family in FAMILIES for kind in family.models], ids=lambda kind: kind.__name__
)
def test_whatever_of_a_source_runs_its_layers_runs_them_as_a_tosa_model(kind: type[nn.Module]) -> None:
    methods = {name for name, method in inspect.getmembers(kind, inspect.isfunction) if "images" not in name}
    running = {name for name in methods if "blocks" in getattr(kind, name).__code__.co_names} - {
        "__init__",
        "fix_init_weight",  # scales weights
        "set_input_size",
    }
    assert running and all(getattr(TosaViT, name, None) is not None for name in running), running


# ---------------------------------------------------------------------- what stands there is run


@pytest.mark.parametrize("settings", [{}, MATCHED, PROBE], ids=str)
def test_a_call_with_other_weights_computes_with_them(settings: dict[str, Any]) -> None:
    model, other, images = make_tosa(**settings), make_tosa(make_vit(seed=5), **settings), make_images()
    expected = other(images)
    called = torch.func.functional_call(model, dict(other.state_dict()), (images,))
    assert torch.equal(called, expected)
    assert not torch.allclose(model(images), expected, atol=1e-2)  # its own are back


@pytest.mark.parametrize("name", ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.3.attn.qkv.weight"])
def test_a_parameter_that_is_replaced_is_the_one_that_is_used(name: str) -> None:
    model, images = make_tosa(keep_rate=1.0), make_images()
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    module._parameters[leaf] = nn.Parameter(torch.zeros_like(module.get_parameter(leaf)))
    dense = make_vit()
    nn.init.zeros_(dense.get_parameter(name))
    assert torch.allclose(model(images), dense(images), atol=1e-4)
    assert torch.equal(model.backbone(images), dense(images))


class Doubled(nn.Module):
    """What adapters do: a module around another, in its place."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


@pytest.mark.parametrize("name", ["head", "norm", "patch_embed", "blocks.2", "blocks.1.attn.qkv", "blocks.3.mlp.fc2"])
def test_a_module_that_is_replaced_is_the_one_that_is_used(name: str) -> None:
    model, dense, images = make_tosa(layers=(5,), keep_rate=1.0), make_vit(), make_images()
    for net in (model, dense):
        parent, _, leaf = name.rpartition(".")
        inner: Any = net.get_submodule(name)
        wrapped: Any = Doubled(inner)
        if name == "patch_embed":
            wrapped.dynamic_feat_size, wrapped.grid_size = inner.dynamic_feat_size, inner.grid_size
        setattr(net.get_submodule(parent), leaf, wrapped)
    if name == "blocks.2":
        # Of a block that is of no known type no more is known than how it is called.
        assert torch.allclose(model.forward_features(images), dense.forward_features(images), atol=1e-3)
    assert torch.allclose(model(images), dense(images), atol=1e-3)
    assert torch.equal(model.backbone(images), dense(images))


def test_the_dense_model_follows_head_size_and_weights() -> None:
    model = make_tosa()
    model.reset_classifier(3)
    model.set_input_size((96, 64))
    model.double()
    with torch.no_grad():
        model.norm.weight.mul_(2)  # type: ignore[operator]
    images = make_images(size=(96, 64)).double()
    whole = copy.deepcopy(model)
    whole.keep_rates = dict.fromkeys(LAYERS, 1.0)
    assert model.backbone(images).shape == (2, 3)
    assert torch.allclose(model.backbone(images), whole(images), atol=1e-4)


def _no_head(dense: Any) -> None:
    dense.reset_classifier(0)


def _other_head(dense: Any) -> None:
    dense.head = nn.Linear(dense.embed_dim, 3)


def _identity(dense: Any) -> None:
    dense.head = nn.Identity()


def _added(dense: Any) -> None:
    dense.add_module("head", nn.Identity())


def _table(dense: Any) -> None:
    dense._modules["head"] = nn.Identity()


def _pooling(dense: Any) -> None:
    dense.reset_classifier(5, global_pool="avg")


def _fewer_layers(dense: Any) -> None:
    dense.prune_intermediate_layers([2], prune_head=True)


def _size(dense: Any) -> None:
    dense.set_input_size((96, 64))


def _positions(dense: Any) -> None:
    dense.pos_embed = nn.Parameter(torch.zeros_like(dense.pos_embed))


CHANGES = (_no_head, _other_head, _identity, _added, _table, _pooling, _fewer_layers, _size, _positions)


@pytest.mark.parametrize("settings", [{}, MATCHED], ids=["paper", "matched"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
def test_what_is_changed_on_the_dense_model_is_changed_on_the_model(change: Any, settings: dict[str, Any]) -> None:
    model, expected = make_tosa(**settings), make_tosa(**settings)
    for net in (model.backbone, expected):
        torch.manual_seed(0)
        change(net)
    images = make_images(size=model.patch_embed.img_size)
    assert torch.equal(model(images), expected(images)) and not torch.equal(
        expected(images), make_tosa()(make_images())
    )
    assert torch.equal(model.backbone(images), expected.backbone(images))
    assert list(model.state_dict()) == list(expected.state_dict())
    for trait in ("num_classes", "global_pool", "keep_rates"):
        assert getattr(model, trait) == getattr(expected, trait)
    assert model.pretrained_cfg == expected.pretrained_cfg


def test_a_trait_of_the_dense_model_can_be_set_and_taken_away() -> None:
    model = make_tosa()
    model.backbone.set_grad_checkpointing()
    model.backbone.note = "mine"
    assert model.grad_checkpointing and model.note == "mine"
    del model.backbone.note
    assert not hasattr(model, "note")
    del model.backbone.head
    assert not hasattr(model, "head")


def test_the_dense_model_is_one_object_that_keeps_its_hooks() -> None:
    model, calls = make_tosa(), []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    model.backbone.forward = model.backbone.forward
    model(make_images())
    assert not calls and model.backbone is model.backbone
    model.backbone(make_images())
    assert calls == [1]


@pytest.mark.parametrize("family", MECHANISMS)
def test_a_copy_of_the_dense_model_is_a_model_of_the_sources_class_for_itself(family: str) -> None:
    source: Any = make_family(family, num_classes=5)
    model = make_tosa(source, layers=(2, 4))
    images = make_images(size=model.patch_embed.img_size)
    assert isinstance(model.backbone, type(source))
    for made in (copy.deepcopy(model.backbone), pickle.loads(pickle.dumps(model.backbone))):
        assert type(made) is type(source) and torch.equal(made(images), source(images))
        made.reset_classifier(0)
        assert model.num_classes == 5 and set(vars(made)["_modules"]) == set(source._modules)
    assert torch.equal(TosaViT(model.backbone, model.config).backbone(images), source(images))
    dense = make_tosa(source, layers=(2, 4)).backbone  # whose whole model is gone
    dense.reset_classifier(0)
    assert dense(images).shape[1] == dense.num_features


def test_a_hook_or_a_wrapped_forward_of_the_model_is_not_the_dense_models() -> None:
    model, images, calls = make_tosa(), make_images(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.forward = model.forward
    dense = make_vit()
    assert torch.equal(model.backbone(images), dense(images)) and not calls
    model(images)
    assert calls == [1]


def test_the_source_keeps_its_own_head() -> None:
    source = make_vit()
    model = make_tosa(source)
    shared = TosaViT(source, model.config)
    shared.reset_classifier(4)
    assert source(make_images()).shape == (2, 1000) and source.num_classes == 1000
    assert shared.blocks is source.blocks  # weights are shared
