"""A ToSA model trains: the dense pass for distillation, gradients, checkpointing, mixed precision."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tosa_cli.model.attention import run_and_tap
from tosa_cli.model.families import embed

from .test_backbone import CountAttention
from .tiny_models import ROWS, SELECTIONS, make_images, make_tosa, make_vit

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
