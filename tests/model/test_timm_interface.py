"""A ToSA model speaks timm's language: features, heads, traits."""

from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.workflow.save import save

from .intermediates import flatten
from .test_backbone import SHRUNK
from .tiny_models import MODELS, make_images, make_tosa, make_vit

SPANS: tuple[dict[str, Any], ...] = (
    {"layers": (2, 4), "selection": "per-head"},
    {"layers": (2, 3, 5, 6), "selector": "similarity", "bypass": "nearest+affine", "span": 2},
    {"layers": (1, 2, 3, 5), "selector": "similarity", "span": 3},
    {"layers": (2, 3), "selector": "probe", "bypass": "linear", "span": 2},
)


# ---------------------------------------------------------------------- intermediates


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"indices": 1},
        {"indices": 3},
        {"indices": [0, 2, 5]},
        {"indices": (1, -1)},
        {"indices": [3], "stop_early": True},
        {"indices": [1], "stop_early": True},
        {"indices": [2, 4], "stop_early": True, "intermediates_only": True, "norm": True},
        {"output_fmt": "NLC"},
        {"output_fmt": "NLC", "return_prefix_tokens": True},
        {"return_prefix_tokens": True, "norm": True},
        {"intermediates_only": True},
        {"intermediates_only": True, "return_prefix_tokens": True, "output_fmt": "NLC"},
        {"output_dict": True},
        {"output_dict": True, "return_prefix_tokens": True, "norm": True},
        {"output_dict": True, "intermediates_only": True, "output_fmt": "NLC"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", MODELS)
def test_intermediates_have_timms_form_and_at_keep_rate_one_its_values(name: str, options: dict[str, Any]) -> None:
    source, images = make_vit(name), make_images()
    expected = flatten(source.forward_intermediates(images, **options))
    for keep_rate in (1.0, 0.5):
        features = flatten(make_tosa(source, keep_rate=keep_rate).forward_intermediates(images, **options))
        assert [place for place, _ in features] == [place for place, _ in expected]
        assert [t.shape for _, t in features] == [t.shape for _, t in expected]
        same = [torch.allclose(a, b, atol=1e-3) for (_, a), (_, b) in zip(features, expected, strict=True)]
        assert all(same) == (keep_rate == 1.0)


def test_intermediates_are_the_tokens_behind_each_layer() -> None:
    model, images = make_tosa(keep_rate=0.4), make_images()
    final, intermediates = model.forward_intermediates(images, indices=[1, 5], output_fmt="NLC", norm=True)
    assert torch.equal(final, model.forward_features(images))
    assert torch.equal(intermediates[1], final[:, 1:])
    _, (behind_layer_2,) = model.forward_intermediates(images, indices=[1], output_fmt="NLC", stop_early=True)
    assert not torch.allclose(behind_layer_2, intermediates[0], atol=1e-2)  # the latter is normalised
    assert torch.allclose(model.backbone.norm(behind_layer_2), intermediates[0], atol=1e-5)


def test_an_intermediate_map_has_each_token_in_its_place() -> None:
    model, images = make_tosa(make_vit(img_size=(64, 96))), make_images(size=(64, 96))
    maps = model.forward_intermediates(images, indices=1, intermediates_only=True)[0]
    tokens = model.forward_intermediates(images, indices=1, intermediates_only=True, output_fmt="NLC")[0]
    assert maps.shape == (2, 64, 4, 6)
    for row in range(4):
        for column in range(6):
            assert torch.equal(maps[:, :, row, column], tokens[:, 6 * row + column])


def test_stopping_early_stops() -> None:
    model, runs = make_tosa(), []
    for layer, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda *_, layer=layer: runs.append(layer))
    model.forward_intermediates(make_images(), indices=[0, 3], stop_early=True)
    assert runs == [1, 2, 3, 4]


@pytest.mark.parametrize("output_fmt", ["NCL", "NHWC"])
def test_a_form_that_timm_does_not_give_either_is_refused(output_fmt: str) -> None:
    with pytest.raises(ValueError, match=f"output_fmt .*'{output_fmt}'"):
        make_tosa().forward_intermediates(make_images(), output_fmt=output_fmt)


@pytest.mark.parametrize("index", [6, [0, 6]])
def test_a_layer_that_is_not_there_is_refused_as_timm_does(index: int | list[int]) -> None:
    with pytest.raises(AssertionError):
        make_vit().forward_intermediates(make_images(), indices=[6])
    with pytest.raises(AssertionError):
        make_tosa().forward_intermediates(make_images(), indices=[0, 6] if isinstance(index, list) else [index])


# ---------------------------------------------------------------------- features_only


@pytest.mark.parametrize("name", MODELS)
def test_timm_builds_a_feature_extractor_of_a_saved_model(name: str, tmp_path: Any) -> None:
    model = make_tosa(name, keep_rate=0.5)
    save(model, tmp_path / "model")
    options: dict[str, Any] = {"pretrained": True, "features_only": True, "out_indices": [1, 3]}
    extractor = timm.create_model(f"local-dir:{tmp_path / 'model'}", **options).eval()
    images = make_images()
    expected = model.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
    maps = extractor(images)
    assert [torch.equal(a, b) for a, b in zip(maps, expected, strict=True)] == [True, True]
    dim = model.embed_dim
    assert extractor.feature_info.channels() == [dim, dim] and extractor.feature_info.reduction() == [16, 16]
    assert [item.shape for item in maps] == [(2, dim, 10, 10)] * 2


def test_a_feature_extractor_gives_the_last_layers_unless_told(tmp_path: Any) -> None:
    save(make_tosa(), tmp_path / "model")
    extractor = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, features_only=True)
    assert len(extractor(make_images())) == 3


@pytest.mark.parametrize(("indices", "layers"), [([2], [2]), ([3], [2, 4]), (1, [2, 4, 6]), ([0], [])])
def test_layers_that_are_not_needed_are_dropped_with_their_selectors(indices: Any, layers: list[int]) -> None:
    model, images = make_tosa(), make_images()
    expected = model.forward_intermediates(images, indices=indices, intermediates_only=True)
    kept = model.prune_intermediate_layers(indices)
    assert len(model.blocks) == max(kept) + 1
    assert list(model.keep_rates) == layers and sorted(model.selectors) == [str(layer) for layer in layers]
    assert model.num_classes == 0 and isinstance(model.get_classifier(), nn.Identity)
    maps = model.forward_intermediates(images, indices=kept, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_pruning_may_drop_the_norm_and_keep_the_head() -> None:
    model = make_tosa()
    model.prune_intermediate_layers([3], prune_norm=True, prune_head=False)
    assert isinstance(model.backbone.norm, nn.Identity) and model.num_classes == 1000
    assert model(make_images()).shape == (2, 1000)


# ---------------------------------------------------------------------- head and traits


@pytest.mark.parametrize("name", MODELS)
def test_the_head_can_be_replaced_and_taken_off(name: str) -> None:
    model, images = make_tosa(name), make_images()
    tokens = model.forward_features(images)
    model.reset_classifier(7)
    assert model.num_classes == 7 and model(images).shape == (2, 7)
    assert model.get_classifier() is model.backbone.head
    pooled = model.forward_head(tokens, pre_logits=True)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(images), pooled)
    assert pooled.shape == (2, model.head_hidden_size)


def test_the_pooling_can_be_changed_as_in_timm() -> None:
    model, source, images = make_tosa(keep_rate=1.0), make_vit(), make_images()
    for one in (model, source):
        one.reset_classifier(0, "avg")
    assert torch.allclose(model(images), source(images), atol=1e-4)


@pytest.mark.parametrize("name", [*MODELS, "vit_base_patch16_rpn_224"])
def test_what_timm_reads_from_a_model_is_that_of_the_source(name: str) -> None:
    source = make_vit(name, **({} if name in MODELS else SHRUNK))
    model = make_tosa(source)
    for trait in ("num_classes", "num_features", "embed_dim", "head_hidden_size", "in_chans", "num_prefix_tokens"):
        assert getattr(model, trait) == getattr(source, trait), trait
    assert model.pretrained_cfg == source.pretrained_cfg and model.feature_info == source.feature_info
    assert timm.data.resolve_model_data_config(model) == timm.data.resolve_model_data_config(source)


def test_weight_decay_leaves_alone_what_it_leaves_alone_in_the_source() -> None:
    def spared(module: nn.Module) -> set[int]:
        groups = param_groups_weight_decay(module, 0.1, no_weight_decay_list=module.no_weight_decay())
        return {id(parameter) for group in groups if not group["weight_decay"] for parameter in group["params"]}

    model = make_tosa()
    selectors = {id(parameter) for parameter in model.selector_parameters()}
    assert spared(model) - selectors == spared(model.backbone)
    assert {id(model.backbone.cls_token), id(model.backbone.pos_embed)} <= spared(model)


@pytest.mark.parametrize("settings", SPANS, ids=str)
def test_a_hook_behind_a_layer_sees_all_tokens_in_their_order_and_can_change_them(settings: dict[str, Any]) -> None:
    model, images, seen = make_tosa(keep_rate=0.5, **settings), make_images(), {}
    expected = model.forward_intermediates(images, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True)
    logits = model(images)
    for layer, module in model.outputs.items():
        module.register_forward_hook(lambda _, __, tokens, layer=layer: seen.update({layer: tokens}))
    assert torch.equal(model(images), logits)
    for number, (patches, prefix) in enumerate(expected, start=1):
        assert torch.equal(seen[str(number)], torch.cat([prefix, patches], dim=1))
    gradients = torch.autograd.grad(model(images).square().sum(), list(seen.values()), allow_unused=True)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    model.outputs["3"].register_forward_hook(lambda _, __, tokens: tokens.flip(-1))
    assert not torch.allclose(model(images), logits, atol=1e-3)


def test_timms_hooks_extract_whole_features(tmp_path: Any) -> None:
    model = make_tosa(**SPANS[1])
    folder = save(model, tmp_path / "model")
    hooked: Any = timm.create_model(
        f"local-dir:{folder}", pretrained=True, features_only=True, out_indices=(1, 2), feature_cls="hook"
    ).eval()
    expected = model.forward_intermediates(make_images(), [1, 2], output_fmt="NLC", intermediates_only=True)
    assert all(torch.equal(a[:, 1:], b) for a, b in zip(hooked(make_images()), expected, strict=True))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("settings", [{}, *SPANS], ids=str)
def test_it_can_be_traced(settings: dict[str, Any]) -> None:
    model = make_tosa(keep_rate=0.5, **settings).requires_grad_(False)
    traced: Any = torch.jit.trace(model, make_images(), check_trace=False)
    others = make_images(seed=1)
    assert torch.allclose(traced(others), model(others), atol=1e-5)


@pytest.mark.parametrize("settings", [{}, SPANS[1], SPANS[3]], ids=str)
def test_weights_are_drawn_anew_as_for_a_new_conversion(settings: dict[str, Any]) -> None:
    model = make_tosa(**settings)
    for bypass in model.bypass_parameters():
        nn.init.ones_(bypass)
    before = model.blocks[1].attn.qkv.weight.clone()  # type: ignore[union-attr, operator]
    model.init_weights(mode="", needs_reset=True)
    assert not torch.allclose(model.blocks[1].attn.qkv.weight, before)  # type: ignore[union-attr, arg-type]
    torch.manual_seed(0)
    new = TosaViT(model.backbone, model.config).state_dict()
    random = ("conv1.weight",)  # half of a selector's first weights are drawn
    assert all(torch.equal(value, new[key]) for key, value in model.state_dict().items() if not key.endswith(random))
    assert all(not parameter.requires_grad for parameter in model.selector_parameters())


@pytest.mark.parametrize("settings", [{}, *SPANS], ids=str)
def test_timm_builds_it_in_another_type(settings: dict[str, Any], tmp_path: Any) -> None:
    folder = save(make_tosa(**settings), tmp_path / "model")
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, dtype=torch.bfloat16).eval()
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    assert model(make_images().bfloat16()).dtype == torch.bfloat16
