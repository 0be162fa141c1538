"""A converted model of any family speaks timm's language, compiles and runs in half precision."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from tosa_cli import methods
from tosa_cli.hub.checkpoint import load
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.workflow.save import save

from .families import MECHANISMS, make_family
from .family_runs import LAYERS, RunHidden, convert_family, images_of
from .intermediates import flatten
from .tiny_models import make_images, make_tosa

TOLD_OF_PLACES = ("EVA-02", "mixed rotation", "BEiT, both biases")
"""One family for each way in which a block is told where its tokens stand."""


def convert_short(family: str, **settings: Any) -> TosaViT:
    """A ToSA layer of a family, behind a standard one where that feeds it: for compilers, which are slow."""
    depth = 2 if methods.SELECTORS[settings.get("selector", "attention")].reads_maps else 1
    return make_tosa(make_family(family, depth=depth), layers=(depth,), keep_rate=0.6, **settings)


@pytest.mark.parametrize("family", MECHANISMS)
@torch.no_grad()
def test_intermediates_have_the_sources_form(family: str) -> None:
    source = make_family(family)
    images = images_of(source)
    for options in ({}, {"indices": [1, 2], "output_fmt": "NLC", "norm": True}, {"indices": [2], "stop_early": True}):
        expected = flatten(source.forward_intermediates(images, **options))
        for keep_rate in (1.0, 0.5):
            model = make_tosa(source, layers=LAYERS, keep_rate=keep_rate)
            features = flatten(model.forward_intermediates(images, **options))
            assert [(place, t.shape) for place, t in features] == [(place, t.shape) for place, t in expected]
            same = [torch.allclose(a, b, atol=1e-3) for (_, a), (_, b) in zip(features, expected, strict=True)]
            assert all(same) == (keep_rate == 1.0)


@pytest.mark.parametrize("family", ["dynamic size", "mixed rotation, dynamic size", "DINOv3", "LingBot"])
@torch.no_grad()
def test_images_of_another_size_go_in_where_they_do_in_the_source(family: str) -> None:
    source = make_family(family, dynamic_img_size=True)
    model = make_tosa(source, layers=LAYERS, keep_rate=1.0)
    images = make_images(size=(96, 48))
    assert torch.allclose(model(images), source(images), atol=1e-4)
    assert model.forward_intermediates(images, 1, intermediates_only=True)[0].shape == (2, 48, 6, 3)
    model = make_tosa(source, layers=LAYERS, keep_rate=0.6)
    keep, tokens = model.forward_selection(images), model.forward_features(images)
    RunHidden(source, keep)
    assert torch.allclose(tokens, source.forward_features(images), atol=2e-4)


@pytest.mark.parametrize("family", MECHANISMS)
def test_a_folder_loads_and_gives_features(family: str, tmp_path: Path) -> None:
    model = convert_family(family, selector="similarity", bypass="nearest+affine")
    images = images_of(model)
    save(model, tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "model")(images), model(images))
        source: Any = f"local-dir:{tmp_path / 'model'}"
        extractor = timm.create_model(source, pretrained=True, features_only=True, out_indices=[1, 3]).eval()
        expected = model.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(extractor(images), expected, strict=True))


@pytest.mark.parametrize(
    "family", ["EVA-02", "mixed rotation", "DINOv3", "BEiT, both biases", "shared relative positions"]
)
@torch.no_grad()
def test_another_image_size_is_taken_as_timm_takes_it(family: str, tmp_path: Path) -> None:
    patch = 14 if family == "EVA-02" else 16
    # What a table of BEiT was made for is not saved with it; timm takes it to have been a square.
    source = make_family(family, img_size=4 * patch)
    model = make_tosa(source, layers=LAYERS, keep_rate=1.0)
    save(model, tmp_path / "model")
    size = (5 * patch, 3 * patch)
    images = make_images(size=size)
    resized = load(tmp_path / "model", img_size=size)
    resized.keep_rates = dict.fromkeys(LAYERS, 1.0)
    source.set_input_size(size)
    assert torch.allclose(resized(images), source(images), atol=1e-4)
    built: Any = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, img_size=size).eval()
    # timm resamples with other options while it loads than afterwards; where nothing is resampled it is the same.
    assert built(images).shape == source(images).shape
    assert family != "mixed rotation" or torch.allclose(built(images), source(images), atol=1e-4)


@pytest.mark.parametrize("family", MECHANISMS)
def test_timms_traits_are_those_of_the_source(family: str) -> None:
    source = make_family(family)
    model = make_tosa(source, layers=LAYERS)
    for trait in ("num_classes", "num_features", "embed_dim", "head_hidden_size", "in_chans", "num_prefix_tokens"):
        assert getattr(model, trait) == getattr(source, trait), trait
    assert model.no_weight_decay() == source.no_weight_decay()
    model.reset_classifier(3)
    assert model(images_of(model)).shape == (2, 3)
    model.prune_intermediate_layers([2])
    maps = model.forward_intermediates(images_of(model), indices=[2], intermediates_only=True)
    assert maps[0].shape == (2, model.embed_dim, 4, 6) and len(model.blocks) == 3


@pytest.mark.parametrize("family", MECHANISMS)
def test_gradients_reach_all_that_reaches_the_output(family: str) -> None:
    model = convert_family(family, bypass="nearest+affine")
    tables = [name for name, _ in model.backbone.named_parameters() if "rope" in name or "rel" in name]
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        model.forward_features(images_of(model)).square().sum().backward()
        named = dict(model.backbone.named_parameters())
        assert all(named[name].grad.abs().sum() > 0 for name in tables)
        gradients.append(torch.cat([p.grad.flatten() for p in named.values() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * gradients[0].abs().max())


@pytest.mark.parametrize("settings", [{}, {"selector": "similarity", "bypass": "nearest+affine"}], ids=str)
@pytest.mark.parametrize("family", [family for family in MECHANISMS if family != "plain"])
def test_a_compiled_model_is_one_graph_and_takes_another_number_of_images(
    family: str, settings: dict[str, Any]
) -> None:
    torch.compiler.reset()
    model = convert_short(family, **settings)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    several = (1, 2, 3) if settings and family in TOLD_OF_PLACES else (2,)  # the first two are compiled
    with torch.no_grad():
        for batch in several:
            images = images_of(model, batch)
            assert torch.allclose(compiled(images), model(images), atol=1e-4)


@pytest.mark.parametrize("family", ["EVA-02", "DINOv3", "BEiT, both biases", "shared relative positions"])
@torch.no_grad()
def test_it_runs_in_half_precision(family: str) -> None:
    model = convert_family(family, selector="similarity", bypass="nearest+affine")
    images = images_of(model)
    expected = model.forward_features(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.forward_features(images)
    whole = copy.deepcopy(model).to(torch.bfloat16).forward_features(images.bfloat16())
    assert whole.dtype == torch.bfloat16
    for tokens in (mixed, whole):
        assert F.cosine_similarity(tokens.float(), expected, dim=-1).mean() > 0.9
