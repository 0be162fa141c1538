"""What a ToSA model computes: the selected tokens, nothing else, and every token is still there at the end."""

import copy
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from tests.sentences import fragments
from tosa_cli.config import TosaConfig
from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.model.attention import run_and_tap
from tosa_cli.model.families import embed, embed_with_places
from tosa_cli.model.per_head import run_block_per_head
from tosa_cli.model.selection import choose_tokens, num_kept
from tosa_cli.model.tosa_vit import TosaViT

from .test_backbone import SHRUNK, CountAttention, expected_logits
from .tiny_models import MODELS, make_images, make_tosa, make_vit

ROWS = [16, "all"]
SELECTIONS = ["shared", "per-head"]


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", MODELS)
def test_with_every_token_kept_the_model_is_its_source(name: str, rows: int | str, selection: str) -> None:
    source, images = make_vit(name), make_images()
    model = make_tosa(source, keep_rate=1.0, query_rows=rows, selection=selection)
    assert torch.allclose(model.forward_features(images), source.forward_features(images), atol=1e-3)
    assert torch.allclose(model(images), source(images), atol=1e-3)


@pytest.mark.parametrize("selector", ["attention", "previous", "random"])
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_number_and_shape_of_the_tokens_never_change(name: str, selection: str, selector: str) -> None:
    source, images = make_vit(name), make_images()
    model = make_tosa(source, keep_rate=(0.2, 0.5, 0.8), selection=selection, selector=selector)
    tokens = model.forward_features(images)
    assert tokens.shape == source.forward_features(images).shape
    assert model.forward_head(tokens).shape == model(images).shape == (2, 1000)
    assert not torch.allclose(tokens, source.forward_features(images), atol=1e-2)


@pytest.mark.parametrize("selector", ["attention", "previous", "random"])
@pytest.mark.parametrize("name", MODELS)
def test_a_skipped_token_leaves_the_layer_bit_for_bit_as_it_came(name: str, selector: str) -> None:
    model = make_tosa(name, keep_rate=0.4, selector=selector)
    everything = range(1, len(model.blocks) + 1)
    outputs = model.run_layers(*embed_with_places(model.backbone, make_images()), take=everything)
    for layer, keep in outputs.keep_indices.items():
        before, after = outputs.intermediates[layer - 2], outputs.intermediates[layer - 1]
        same = (before == after).all(dim=-1)
        selected = torch.zeros_like(same).scatter(1, keep, True)
        assert torch.equal(same, ~selected)
        assert keep.shape == (2, num_kept(before.shape[1], 0.4, model.num_prefix_tokens))


@pytest.mark.parametrize("name", MODELS)
def test_selected_tokens_get_what_the_untouched_block_makes_of_them_alone(name: str) -> None:
    model = make_tosa(name, keep_rate=0.4)
    outputs = model.run_layers(*embed_with_places(model.backbone, make_images()), take=[3, 4])
    before, after = outputs.intermediates
    for image, keep in enumerate(outputs.keep_indices[4]):
        alone = model.blocks[3](before[image : image + 1, keep])
        assert torch.allclose(after[image, keep], alone[0], atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_by_head_every_token_goes_through_the_layer(name: str) -> None:
    model = make_tosa(name, keep_rate=0.4, selection="per-head")
    outputs = model.run_layers(*embed_with_places(model.backbone, make_images()), take=[3, 4])
    before, after = outputs.intermediates
    assert (before != after).any(dim=-1).all()
    keep = outputs.keep_indices[4]
    assert keep.shape[:2] == (2, model.blocks[3].attn.num_heads)
    assert torch.allclose(after, run_block_per_head(model.blocks[3], before, keep), atol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_selected_by_what_the_selector_predicts_they_receive(name: str, rows: int | str) -> None:
    model = make_tosa(name, keep_rate=0.3, query_rows=rows)
    outputs = model.run_layers(*embed_with_places(model.backbone, make_images()), take=[2])
    block, entering = model.blocks[2], outputs.intermediates[0]
    logits = expected_logits(block.attn, block.norm1(entering))
    count = logits.shape[-1] if rows == "all" else int(rows)
    logits = logits[:, :, torch.linspace(0, logits.shape[-1] - 1, count).round().long()]
    received = model.selectors["4"](logits).exp().sum(dim=(1, 2))
    prefix, kept = model.num_prefix_tokens, num_kept(received.shape[1], 0.3, model.num_prefix_tokens)
    for image, keep in enumerate(outputs.keep_indices[4]):
        best = received[image, prefix:].argsort(descending=True)[: kept - prefix] + prefix
        assert keep[:prefix].tolist() == list(range(prefix))
        assert set(keep[prefix:].tolist()) == set(best.tolist())


def test_the_previous_selector_ranks_by_the_map_of_the_feeding_layer_itself() -> None:
    model = make_tosa(selector="previous", query_rows="all", keep_rate=0.3)
    assert not list(model.selector_parameters())
    outputs = model.run_layers(*embed_with_places(model.backbone, make_images()), take=[2])
    block, entering = model.blocks[2], outputs.intermediates[0]
    received = expected_logits(block.attn, block.norm1(entering)).softmax(dim=-1).sum(dim=(1, 2))
    assert torch.equal(outputs.keep_indices[4], choose_tokens(received, 30, 1))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_random_selection_differs_from_pass_to_pass_and_image_to_image(selection: str) -> None:
    model = make_tosa(layers=(1, 2), selector="random", selection=selection, keep_rate=0.3)
    assert not list(model.selector_parameters())
    images = make_images(1).expand(2, -1, -1, -1)
    first, second = model.forward_selection(images), model.forward_selection(images)
    assert not torch.equal(first[1], second[1]) and not torch.equal(first[1][0], first[1][1])
    torch.manual_seed(7)
    again = model.forward_selection(images)
    torch.manual_seed(7)
    assert all(torch.equal(keep, again[layer]) for layer, keep in model.forward_selection(images).items())


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("selector", ["attention", "random"])
@pytest.mark.parametrize("name", MODELS)
def test_prefix_tokens_are_always_selected(name: str, selector: str, selection: str) -> None:
    model = make_tosa(name, keep_rate=0.001, selector=selector, selection=selection)
    selections = model.forward_selection(make_images(4))
    assert list(selections) == [2, 4, 6]
    prefix = torch.arange(model.num_prefix_tokens)
    for keep in selections.values():
        assert keep.shape[-1] == model.num_prefix_tokens + 1
        assert (keep[..., :-1] == prefix).all() and (keep[..., -1] >= len(prefix)).all()


def test_images_do_not_see_each_other() -> None:
    model, images = make_tosa(keep_rate=0.3), make_images(4)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize(("rows", "fused"), [(1, 6), (16, 6), ("all", 3)])
def test_fused_attention_runs_in_every_layer_unless_whole_maps_are_read(rows: int | str, fused: int) -> None:
    model = make_tosa(query_rows=rows)
    with CountAttention() as count:
        model(make_images())
    assert len(model.blocks) == 6 and count.calls == fused


def test_blocks_of_another_build_are_converted_with_whole_layers() -> None:
    for name in ("vit_base_patch16_rpn_224", "vit_base_patch16_xp_224", "deit_tiny_distilled_patch16_224"):
        source, images = make_vit(name, **SHRUNK), make_images(size=64)
        assert torch.allclose(make_tosa(source, keep_rate=1.0)(images), source(images), atol=1e-3)
        selections = make_tosa(source, keep_rate=0.5).forward_selection(images)
        assert all(keep.shape[1] < 16 for keep in selections.values())


def test_a_model_with_a_distillation_token_trains_both_heads() -> None:
    model = make_tosa(make_vit("deit_tiny_distilled_patch16_224", **SHRUNK, num_classes=5)).train()
    model.set_distilled_training(True)
    assert [output.shape for output in model(make_images(size=64))] == [(2, 5), (2, 5)]


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_another_image_size_can_be_set(name: str, selection: str) -> None:
    source = make_vit(name)
    model = make_tosa(source, keep_rate=1.0, selection=selection)
    model.set_input_size(img_size=(96, 192))
    source.set_input_size(img_size=(96, 192))
    images = make_images(size=(96, 192))
    assert torch.allclose(model(images), source(images), atol=1e-3)
    half = make_tosa(source, keep_rate=0.5, selection=selection)
    assert half.forward_selection(images)[2].shape[-1] == num_kept(72 + half.num_prefix_tokens, 0.5, 1)


@pytest.mark.parametrize("name", MODELS)
def test_images_of_any_size_are_taken_where_the_source_takes_them(name: str) -> None:
    source = make_vit(name, dynamic_img_size=True)
    dense, half = make_tosa(source, keep_rate=1.0), make_tosa(source, keep_rate=0.5)
    for size in (160, (64, 128), (208, 96)):
        images = make_images(size=size)
        assert torch.allclose(dense(images), source(images), atol=1e-3)
        tokens = images.shape[2] * images.shape[3] // 256 + half.num_prefix_tokens
        assert half.forward_selection(images)[6].shape == (2, num_kept(tokens, 0.5, half.num_prefix_tokens))
        _, maps = half.forward_intermediates(images, indices=[5])
        assert maps[0].shape[2:] == (images.shape[2] // 16, images.shape[3] // 16)


def test_more_query_rows_than_tokens_are_all_rows() -> None:
    source, images = make_vit(img_size=32), make_images(size=32)
    many, every = make_tosa(source, query_rows=10_000), make_tosa(source, query_rows="all")
    assert torch.equal(many(images), every(images))


# ---------------------------------------------------------------------- the dense pass for distillation


@pytest.mark.parametrize("rows", [8, "all", None])
def test_the_logits_of_the_source_are_read_from_a_pass_with_every_token(rows: int | str | None) -> None:
    source = make_vit()
    model = make_tosa(source, keep_rate=0.2, query_rows=5)
    logits = model.dense_logits(make_images(), [1, 4], rows)
    assert sorted(logits) == [1, 4]
    tokens = embed(source, make_images())
    for layer, block in enumerate(source.blocks[:4], start=1):
        if layer in logits:
            _, expected = run_and_tap(block, tokens, rows or 5)
            assert torch.allclose(logits[layer], expected, atol=1e-4)
            assert not logits[layer].requires_grad
        tokens = block(tokens)


def test_the_dense_pass_stops_behind_the_last_layer_that_is_read() -> None:
    model = make_tosa()
    model.blocks[4] = nn.Identity()  # would fail to be read, and ran if the pass did not stop
    with CountAttention() as count:
        model.dense_logits(make_images(), [2, 4])
    assert count.calls == 4


# ---------------------------------------------------------------------- training


def test_parameters_fall_into_selectors_and_backbone() -> None:
    model = make_tosa()
    selectors, backbone = set(model.selector_parameters()), set(model.backbone_parameters())
    assert selectors | backbone == set(model.parameters()) and not selectors & backbone
    assert len(selectors) == 3 * 4
    assert backbone == set(model.backbone.parameters())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_task_loss_trains_the_whole_backbone_and_no_selector(selection: str, rows: int | str) -> None:
    model = make_tosa(selection=selection, query_rows=rows).train()
    F.cross_entropy(model(make_images()), torch.tensor([1, 2])).backward()
    silent = [name for name, value in model.backbone.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []
    assert all(parameter.grad is None for parameter in model.selector_parameters())


def test_drop_path_and_dropout_hold_in_training_and_not_in_evaluation() -> None:
    for args in ({"drop_path_rate": 0.8}, {"proj_drop_rate": 0.5}, {"attn_drop_rate": 0.5}, {"patch_drop_rate": 0.5}):
        for selection in SELECTIONS:
            model = make_tosa(make_vit(**args), selection=selection)
            images = make_images(8)
            assert torch.equal(model(images), model(images)), args
            model.train()
            assert not torch.allclose(model(images), model(images)), args


def test_dropped_patches_are_not_selected_from() -> None:
    model = make_tosa(make_vit(patch_drop_rate=0.5), keep_rate=0.5).train()
    for keep in model.forward_selection(make_images()).values():
        assert keep.shape == (2, 26) and keep.max() < 51  # 1 class token and 50 of 100 patches


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_gradient_checkpointing_changes_no_gradient(selection: str, rows: int | str) -> None:
    gradients = []
    for enable in (False, True):
        model = make_tosa(selection=selection, query_rows=rows, keep_rate=0.4).train()
        model.set_grad_checkpointing(enable)
        model(make_images()).square().sum().backward()
        gradients.append({name: value.grad for name, value in model.backbone.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max()), name


@pytest.mark.parametrize("selection", SELECTIONS)
def test_gradient_checkpointing_recomputes_each_layer_and_only_for_gradients(selection: str) -> None:
    model, runs = make_tosa(selection=selection).train(), []
    for layer, block in enumerate(model.blocks, start=1):
        block.norm1.register_forward_hook(lambda *_, layer=layer: runs.append(layer))
    model.set_grad_checkpointing()
    model(make_images()).sum().backward()
    assert sorted(runs) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    runs.clear()
    with torch.no_grad():
        model(make_images())
    assert runs == [1, 2, 3, 4, 5, 6]


def test_random_selection_and_dropout_are_recomputed_as_they_were() -> None:
    source = make_vit(drop_path_rate=0.5, attn_drop_rate=0.3)
    gradients = []
    for enable in (False, True):
        model = make_tosa(source, selector="random").train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        model(make_images()).square().sum().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in model.backbone.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4 * gradients[0].abs().max().item())


# ---------------------------------------------------------------------- precision


@pytest.mark.parametrize("selector", ["attention", "previous", "random"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("name", ["test_vit2", "test_vit3"])
def test_half_precision_stays_close(name: str, selection: str, rows: int | str, selector: str) -> None:
    source, images = make_vit(name), make_images()
    settings: dict[str, Any] = {"selection": selection, "query_rows": rows, "selector": selector}
    expected = make_tosa(source, keep_rate=1.0, **settings)(images)
    scale = expected.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        dense, half = (make_tosa(source, keep_rate=rate, **settings)(images) for rate in (1.0, 0.5))
    assert (dense - expected).abs().max() < 0.1 * scale and half.isfinite().all()
    dense, half = (make_tosa(source, keep_rate=rate, **settings).bfloat16()(images.bfloat16()) for rate in (1.0, 0.5))
    assert dense.dtype == torch.bfloat16
    assert (dense - expected).abs().max() < 0.1 * scale and half.isfinite().all()


@pytest.mark.parametrize("selection", SELECTIONS)
def test_training_in_mixed_precision_gives_finite_gradients_in_float32(selection: str) -> None:
    model = make_tosa(selection=selection).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(make_images()), torch.tensor([1, 2]))
    loss.backward()
    for parameter in model.backbone_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()


# ---------------------------------------------------------------------- building


def test_building_refuses_what_cannot_be_converted() -> None:
    with pytest.raises(UnsupportedModelError, match=fragments.IS_A_LINEAR):
        TosaViT(nn.Linear(2, 2), TosaConfig(layers=(2,)))
    with pytest.raises(ConfigError, match=fragments.LAYER_9_1_TO_6):
        TosaViT(make_vit(), TosaConfig(layers=(2, 9)))


def test_selectors_stand_on_the_device_of_the_backbone() -> None:
    backbone = VisionTransformer(img_size=32, embed_dim=32, depth=4, num_heads=2, device="meta")
    model = TosaViT(backbone, TosaConfig(layers=(2, 4)))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 1000)


def test_nothing_of_a_pass_stays_on_the_model() -> None:
    model = make_tosa()

    def attributes() -> dict[str, Any]:
        return {name: sorted(vars(module)) for name, module in model.named_modules()}

    def tensors() -> list[int]:
        held = [value for module in model.modules() for value in vars(module).values()]
        return [id(value) for value in held if isinstance(value, Tensor)]

    before = copy.deepcopy(attributes()), tensors()
    model(make_images())
    model.forward_selection(make_images())
    assert (attributes(), tensors()) == before
