"""What a ToSA model computes: the selected tokens, nothing else, and every token is still there at the end."""

import copy
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.sentences import fragments
from tosa_cli.config import TosaConfig
from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.model.families import embed_with_places
from tosa_cli.model.per_head import run_block_per_head
from tosa_cli.model.selection import choose_tokens, num_kept
from tosa_cli.model.tosa_vit import TosaViT

from .test_backbone import SHRUNK, CountAttention, expected_logits
from .tiny_models import MODELS, ROWS, SELECTIONS, make_images, make_tosa, make_vit

# ---------------------------------------------------------------------- tokens


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
