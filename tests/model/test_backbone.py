"""Which models are converted, how logits are read out of an untouched block, and selection by head."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tests.sentences import fragments
from tosa_cli.config import TosaConfig
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.attention import run_and_tap
from tosa_cli.model.families import check_convertible, check_supported, embed
from tosa_cli.model.per_head import run_block_per_head
from tosa_cli.model.selection import choose_tokens

from .tiny_models import MODELS, make_images, make_vit, randomize_

SHRUNK: dict[str, Any] = {"depth": 6, "embed_dim": 64, "num_heads": 2, "img_size": 64}
"""Arguments that make a big architecture tiny without changing the types of its parts."""


@pytest.mark.parametrize("name", [*MODELS, "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_plain_vision_transformers_are_supported(name: str) -> None:
    for selection in ("shared", "per-head"):
        check_supported(timm.create_model(name, device="meta"), selection)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18", "ResNet"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("samvit_base_patch16", "VisionTransformerSAM"),
        ("vit_dlittle_patch16_reg1_gap_256", "Layer 1"),
        ("vit_dpwee_patch16_reg1_gap_256", "Layer 1"),
        ("naflexvit_base_patch16_gap", "NaFlexVit"),
        ("cait_xxs24_224", "Cait"),
    ],
)
def test_other_models_are_refused_by_the_name_of_their_type(name: str, kind: str) -> None:
    with pytest.raises(UnsupportedModelError) as failure:
        check_supported(timm.create_model(name, device="meta"))
    assert kind in str(failure.value) and name in str(failure.value)


def test_a_module_that_timm_did_not_make_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear"):
        check_supported(nn.Linear(2, 2))


def test_a_subclass_is_refused_as_it_may_compute_something_else() -> None:
    class Almost(type(make_vit())):  # type: ignore[misc]
        pass

    model = make_vit()
    model.__class__ = Almost
    with pytest.raises(UnsupportedModelError, match="Almost"):
        check_supported(model)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("vit_base_patch16_rpn_224", "ResPostBlock"), ("vit_base_patch16_xp_224", "ParallelScalingBlock")],
)
def test_blocks_of_another_build_select_whole_layers_only(name: str, kind: str) -> None:
    model = timm.create_model(name, device="meta")
    check_supported(model, "shared")
    with pytest.raises(UnsupportedModelError) as failure:
        check_supported(model, "per-head")
    assert all(named in str(failure.value) for named in ("Layer 1", name, kind, "per-head"))


def test_gated_attention_selects_whole_layers_only() -> None:
    model = make_vit()
    model.blocks[3].attn.gate = nn.Linear(64, 64)
    check_convertible(model, TosaConfig(layers=(2, 4)))
    check_convertible(model, TosaConfig(layers=(2, 6), selection="per-head"))
    with pytest.raises(UnsupportedModelError, match=fragments.LAYER_4_SELECTION_SHARED):
        check_convertible(model, TosaConfig(layers=(2, 4), selection="per-head"))
    for block in model.blocks:
        block.attn.gate = nn.Linear(64, 64)
    check_supported(model, "shared")
    with pytest.raises(UnsupportedModelError, match=fragments.LAYER_1_SELECTION_SHARED):
        check_supported(model, "per-head")


@pytest.mark.parametrize("name", MODELS)
def test_embedded_tokens_run_through_the_layers_are_what_the_model_computes(name: str) -> None:
    model, images = make_vit(name), make_images()
    assert torch.equal(model.norm(model.blocks(embed(model, images))), model.forward_features(images))


class CountAttention(TorchFunctionMode):
    """Counts the calls of PyTorch's fused attention that really happen."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def expected_logits(attention: nn.Module, normalised: Tensor) -> Tensor:
    """Scaled logits (B, H, N, N) of attention, from its weights."""
    batch, length, _ = normalised.shape
    qkv = (normalised @ attention.qkv.weight.T + attention.qkv.bias).view(batch, length, 3, attention.num_heads, -1)
    query, key = attention.q_norm(qkv[:, :, 0]), attention.k_norm(qkv[:, :, 1])
    return torch.einsum("bmhd,bnhd->bhmn", query, key) / attention.head_dim**0.5


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("rows", [1, 16, "all"])
def test_the_logits_read_are_those_that_the_block_attends_with(rows: int | str, qk_norm: bool) -> None:
    model = make_vit(qk_norm=qk_norm)
    tokens, block = embed(model, make_images()), model.blocks[2]
    with torch.no_grad():
        output, logits = run_and_tap(block, tokens, rows)
        full = expected_logits(block.attn, block.norm1(tokens))
    count = 101 if rows == "all" else int(rows)
    indices = torch.linspace(0, 100, count).round().long()
    assert logits.shape == (2, 2, count, 101)
    assert full.std() > 0.5
    assert torch.allclose(logits, full[:, :, indices], atol=1e-4)
    assert torch.allclose(output, block(tokens), atol=1e-5)
    assert isinstance(block.attn.q_norm, nn.Identity) != qk_norm


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "vit_base_patch16_xp_224"])
@pytest.mark.parametrize("rows", [4, "all"])
def test_blocks_of_another_build_are_read_and_run_unchanged(name: str, rows: int | str) -> None:
    model = make_vit(name, **SHRUNK)
    tokens = embed(model, make_images(size=64))
    output, logits = run_and_tap(model.blocks[0], tokens, rows)
    assert torch.allclose(output, model.blocks[0](tokens), atol=1e-5)
    assert logits.shape == (2, 2, tokens.shape[1] if rows == "all" else rows, tokens.shape[1])


@pytest.mark.parametrize(("rows", "calls"), [(16, 1), (1, 1), ("all", 0), (101, 0)])
def test_fused_attention_stays_on_unless_the_whole_map_is_read(rows: int | str, calls: int) -> None:
    model = make_vit()
    with CountAttention() as count:
        run_and_tap(model.blocks[0], embed(model, make_images()), rows)
    assert count.calls == calls


def test_the_map_computed_for_all_rows_passes_gradients_as_fused_attention_does() -> None:
    model = make_vit()
    gradients = []
    for run in (model.blocks[0], lambda tokens: run_and_tap(model.blocks[0], tokens, "all")[0]):
        tokens = embed(model, make_images()).detach().requires_grad_()
        run(tokens).square().sum().backward()
        gradients.append(tokens.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-3)


def test_logits_carry_no_gradient_into_the_backbone() -> None:
    model = make_vit()
    for rows in (16, "all"):
        output, logits = run_and_tap(model.blocks[0], embed(model, make_images()), rows)
        assert output.requires_grad and not logits.requires_grad


def test_attention_dropout_holds_for_the_map_computed_for_all_rows() -> None:
    model = make_vit(attn_drop_rate=0.5).train()
    tokens = embed(model, make_images())
    first, second = (run_and_tap(model.blocks[0], tokens, "all")[0] for _ in range(2))
    assert not torch.allclose(first, second)
    model.eval()
    assert torch.equal(*(run_and_tap(model.blocks[0], tokens, "all")[0] for _ in range(2)))


def test_a_block_without_fused_attention_cannot_be_read() -> None:
    model = make_vit()
    model.blocks[0].attn.fused_attn = False
    with pytest.raises(UnsupportedModelError, match="TIMM_FUSED_ATTN"):
        run_and_tap(model.blocks[0], embed(model, make_images()), 16)


def slow_block_per_head(block: nn.Module, tokens: Tensor, keep_indices: Tensor) -> Tensor:
    """Paper Eq. 4, one image and one head at a time."""
    attention, normalised = block.attn, block.norm1(tokens)
    dim, attended = attention.head_dim, tokens.new_zeros(*tokens.shape[:2], attention.attn_dim)
    for image in range(len(tokens)):
        for head in range(attention.num_heads):
            kept = keep_indices[image, head]
            selected = normalised[image, kept]
            columns = slice(head * dim, (head + 1) * dim)
            query, key, value = (
                F.linear(
                    selected,
                    attention.qkv.weight.chunk(3)[part][columns],
                    attention.qkv.bias.chunk(3)[part][columns] if attention.qkv.bias is not None else None,
                )
                for part in range(3)
            )
            logits = attention.q_norm(query) @ attention.k_norm(key).T / dim**0.5
            attended[image, kept, columns] = logits.softmax(dim=-1) @ value
    tokens = tokens + block.ls1(attention.proj(attention.norm(attended)))
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_vit", {}),
        ("test_vit", {"qk_norm": True}),
        ("test_vit", {"qkv_bias": False}),
        ("test_vit", {"scale_attn_norm": True, "scale_mlp_norm": True}),
        ("test_vit2", {}),
        ("test_vit4", {}),
    ],
    ids=str,
)
def test_each_head_attends_among_its_own_tokens_alone(name: str, args: dict[str, Any]) -> None:
    model = make_vit(name, **args)
    block, tokens = model.blocks[3], embed(model, make_images())
    keep = choose_tokens(torch.rand(2, block.attn.num_heads, tokens.shape[1]), 23, model.num_prefix_tokens)
    assert not torch.equal(keep[:, 0], keep[:, 1])
    output = run_block_per_head(block, tokens, keep)
    assert torch.allclose(output, slow_block_per_head(block, tokens, keep), atol=1e-4)
    assert not torch.allclose(output, block(tokens), atol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_heads_that_keep_every_token_give_the_block_itself(name: str) -> None:
    model = make_vit(name)
    block, tokens = model.blocks[3], embed(model, make_images())
    keep = torch.arange(tokens.shape[1]).expand(2, block.attn.num_heads, -1)
    assert torch.allclose(run_block_per_head(block, tokens, keep), block(tokens), atol=1e-4)


def test_dropout_and_drop_path_hold_for_selection_by_head() -> None:
    for args in ({"attn_drop_rate": 0.5}, {"proj_drop_rate": 0.5}, {"drop_path_rate": 0.9}):
        model = make_vit(**args).train()
        block, tokens = model.blocks[5], embed(model, make_images(batch=8))
        keep = torch.arange(tokens.shape[1]).expand(8, 2, -1)
        assert not torch.allclose(*(run_block_per_head(block, tokens, keep) for _ in range(2))), args


def test_weights_of_a_trained_size_make_every_layer_of_the_test_models_matter() -> None:
    # Were this not so, the tests of equality here could not fail.
    for name in MODELS:
        model = make_vit(name)
        tokens = embed(model, make_images())
        for block in model.blocks:
            output = block(tokens)
            assert (output - tokens).norm() > 0.1 * tokens.norm()
            tokens = output
    assert isinstance(randomize_(nn.Linear(2, 2), 0), nn.Linear)
