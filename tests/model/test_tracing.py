"""Converted models under `torch.fx`, as torchvision and timm use it to take features by the names of modules."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import create_feature_extractor, get_graph_node_names
from torch.fx import symbolic_trace

from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.workflow.save import save

from .families import make_family
from .tiny_models import make_images, make_tosa

SETTINGS: dict[str, dict[str, Any]] = {
    "maps are read": {"layers": (2, 4), "keep_rate": 0.6},
    "spans": {"layers": (1, 2, 4), "keep_rate": 0.6, "selector": "similarity", "bypass": "nearest+affine", "span": 2},
    "groups": {"layers": (2, 3, 4), "keep_rate": (0.9, 0.7, 0.5), "selector": "ward", "bypass": "mean"},
}

FAMILIES = ("plain", "dynamic size", "EVA-02", "BEiT, both biases", "relative positions, class token")


def make(family: str = "plain", setting: str = "groups") -> TosaViT:
    return make_tosa(make_family(family, num_classes=10), **SETTINGS[setting])


def images_for(model: TosaViT) -> torch.Tensor:
    return make_images(2, model.patch_embed.img_size)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_traced_model_computes_the_same_with_the_same_weights(family: str, setting: str) -> None:
    model = make(family, setting)
    traced, images = symbolic_trace(model), images_for(model)
    torch.testing.assert_close(traced(images), model(images), rtol=0, atol=0)
    assert dict(traced.named_parameters()).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("setting", SETTINGS)
def test_features_by_name_are_all_tokens_as_hooks_see_them(setting: str) -> None:
    model, seen = make(setting=setting), {}
    for layer in ("2", "3", "4"):
        model.outputs[layer].register_forward_hook(lambda _, __, tokens, layer=layer: seen.update({layer: tokens}))
    images = images_for(model)
    extract = create_feature_extractor(model, {"blocks.1": "2", "outputs.3": "3", "blocks.3": "4"})
    features = extract(images)
    model(images)
    for layer, tokens in features.items():
        torch.testing.assert_close(tokens, seen[layer], rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_of_a_traced_model_are_those_of_the_source(family: str) -> None:
    def names(model: Any) -> set[str]:
        return {".".join(name.split(".")[:2]) for name in get_graph_node_names(model)[1] if "." in name}

    assert names(make_family(family, num_classes=10)) <= names(make(family))


def test_timm_extracts_features_by_a_graph_of_a_saved_model(tmp_path: Path) -> None:
    model = make()
    folder, images = save(model, tmp_path / "model"), images_for(model)
    options = {"pretrained": True, "features_only": True, "out_indices": (1, 3)}
    by_graph = timm.create_model(f"local-dir:{folder}", feature_cls="fx", **options).eval()
    by_hooks = timm.create_model(f"local-dir:{folder}", feature_cls="hook", **options).eval()
    for mine, theirs in zip(by_graph(images), by_hooks(images), strict=True):
        torch.testing.assert_close(mine, theirs.flatten(2).transpose(1, 2) if theirs.ndim == 4 else theirs)


def test_an_extractor_trains_what_the_model_has() -> None:
    model = make()
    extract = create_feature_extractor(model, ["blocks.3"]).train()
    extract(images_for(model))["blocks.3"].square().mean().backward()
    assert model.blocks[3].mlp.fc1.weight.grad is not None


def test_a_block_that_is_to_be_one_node_is_one() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    model = make()
    kinds = [type(model.blocks[0])]
    extract = create_feature_extractor(model, ["outputs.3"], tracer_kwargs={"leaf_modules": kinds})
    images = images_for(model)
    wanted = model.forward_intermediates(images, [2], True, output_fmt="NLC", intermediates_only=True)[0]
    tokens = torch.cat([wanted[1], wanted[0]], dim=1)
    torch.testing.assert_close(extract(images)["outputs.3"], tokens, rtol=0, atol=0)


def test_a_traced_model_is_kept_in_a_file() -> None:
    model = make()
    traced, images = pickle.loads(pickle.dumps(symbolic_trace(model))), images_for(model)
    torch.testing.assert_close(traced(images), model(images), rtol=0, atol=0)
