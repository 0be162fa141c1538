"""Pruning by the class token's attention, a peer: right where it can be known what is right."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor
from torch.nn import functional as F

from tests.sentences import fragments
from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.peers.pruning import (
    PrunedViT,
    class_attention,
    num_attentive,
    num_left,
    paper_layers,
    prune_tokens,
    run_block_and_prune,
)

from ..model.tiny_models import make_images, make_vit

KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("test_vit", {}),
    ("test_vit", {"qk_norm": True, "qkv_bias": False, "init_values": 0.3}),
    ("test_vit", {"reg_tokens": 2}),
    ("test_vit", {"global_pool": "avg"}),
    ("test_vit2", {"class_token": True}),
    ("test_vit3", {"class_token": True}),
    ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 4, "num_classes": 5}),
)
"""Class token alone; with LayerScale and query-key norm; registers; pooled patches; attention pooling; distillation."""


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, which goes by the largest of the values that were added up."""
    return torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max().clamp(min=1)), rtol=1e-4)


def random_tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- the pure functions


def test_the_papers_layers_stand_after_each_quarter() -> None:
    assert paper_layers(12) == (4, 7, 10)
    assert paper_layers(24) == (7, 13, 19) and paper_layers(6) == (2, 4, 5) and paper_layers(1) == (1,)


@pytest.mark.parametrize(
    ("patches", "rate", "attentive"),
    [(196, 0.7, 138), (100, 0.07, 7), (10, 0.7, 7), (10, 0.71, 8), (10, 1.0, 10), (10, 0.95, 10), (10, 1e-9, 1)],
)
def test_the_keep_rate_is_rounded_up(patches: int, rate: float, attentive: int) -> None:
    assert num_attentive(patches, rate) == attentive
    assert num_left(patches + 2, rate, 2) == (attentive + 3 if attentive < patches else patches + 2)


def test_the_attention_of_the_class_token_is_its_row_of_the_map() -> None:
    queries, keys = random_tokens(2, 3, 7, 4), random_tokens(2, 3, 7, 4).flip(0)
    maps = (queries @ keys.transpose(-2, -1) / 2).softmax(dim=-1)
    assert close(class_attention(queries, keys), maps.mean(dim=1)[:, 0])


def test_the_most_attended_patches_stay_and_the_others_become_their_weighted_sum() -> None:
    tokens = torch.tensor([[[9.0, 9.0], [7.0, 7.0], [1.0, 0.0], [0.0, 4.0], [5.0, 5.0], [8.0, 0.0]]])
    attention = torch.tensor([[0.05, 0.0, 0.3, 0.1, 0.4, 0.15]])
    # Two prefix tokens, one of them without any attention; of the patches 2 and 4 are attended to most.
    pruned, position = prune_tokens(tokens, attention, 2, 2)
    assert position.tolist() == [[0, 1, 2, 4, 3, 4]]
    fused = [0.1 * 0 + 0.15 * 8, 0.1 * 4 + 0.15 * 0]
    assert close(pruned, torch.tensor([[[9.0, 9.0], [7.0, 7.0], [1.0, 0.0], [5.0, 5.0], fused]]))


def test_each_image_has_its_own_attentive_patches() -> None:
    tokens = random_tokens(2, 6, 3)
    pruned, _ = prune_tokens(tokens, torch.tensor([[0.5, 0.1, 0.2, 0, 0, 0.2], [0.5, 0, 0, 0.4, 0.1, 0]]), 2, 1)
    assert pruned[0, :3].equal(tokens[0, [0, 2, 5]]) and pruned[1, :3].equal(tokens[1, [0, 3, 4]])
    assert close(pruned[0, 3], 0.1 * tokens[0, 1])  # the one other patch that is attended to at all


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize(("name", "args"), KINDS, ids=str)
def test_a_layer_prunes_between_attention_and_mlp(name: str, args: dict[str, Any]) -> None:
    dense: Any = make_vit(name, **args)
    block, prefix = dense.blocks[1], dense.num_prefix_tokens
    tokens = random_tokens(2, prefix + 9, dense.embed_dim)
    with torch.no_grad():
        # By hand, with the whole map.
        attn, inputs = block.attn, block.norm1(tokens)
        qkv = attn.qkv(inputs).unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
        query, key = attn.q_norm(qkv[0]), attn.k_norm(qkv[1])
        attention = (query @ key.mT * attn.scale).softmax(dim=-1).mean(dim=1)[:, 0]
        middle = tokens + block.ls1(attn(inputs))
        expected = []
        for image, weights in zip(middle, attention, strict=True):
            order = prefix + weights[prefix:].argsort(descending=True)
            stay, go = order[:4].sort().values, order[4:]
            fused = (weights[go, None] * image[go]).sum(dim=0, keepdim=True)
            expected.append(torch.cat([image[:prefix], image[stay], fused]))
        left = torch.stack(expected)
        left = left + block.ls2(block.mlp(block.norm2(left)))
        assert close(run_block_and_prune(block, tokens, 4, prefix)[0], left)


@pytest.mark.parametrize(("name", "args"), KINDS, ids=str)
def test_with_keep_rate_1_it_is_the_dense_model(name: str, args: dict[str, Any]) -> None:
    dense: Any = make_vit(name, **args)
    images = make_images(2, dense.patch_embed.img_size)
    model = PrunedViT(dense, 1.0, paper_layers(len(dense.blocks)))
    with torch.no_grad():
        assert model(images).equal(dense(images))
        assert model.forward_features(images).equal(dense.forward_features(images))


@pytest.mark.parametrize(("name", "args"), KINDS, ids=str)
def test_fewer_tokens_are_left_and_the_head_takes_them(name: str, args: dict[str, Any]) -> None:
    dense: Any = make_vit(name, **args)
    images, prefix = make_images(2, dense.patch_embed.img_size), dense.num_prefix_tokens
    model = PrunedViT(dense, 0.7, (1, 3))
    with torch.no_grad():
        left = num_left(num_left(dense.patch_embed.num_patches + prefix, 0.7, prefix), 0.7, prefix)
        tokens, position = model.run_layers(model.embed(images)[0])
        assert tokens.shape[1] == left < dense.patch_embed.num_patches and position is not None
        # In the end a token that was fused into another stands where it was.
        whole = model.forward_features(images)
        assert whole.shape == dense.forward_features(images).shape
        for image in range(2):
            assert close(whole[image], model.norm(tokens)[image, position[image]])
            assert len(set(position[image].tolist())) == left
        logits, expected = model(images), dense(images)
    assert logits.shape == expected.shape and logits.isfinite().all() and not close(logits, expected)


def test_layers_before_the_first_that_prunes_are_the_dense_models() -> None:
    dense, images = make_vit(), make_images()
    with torch.no_grad():
        late, early = (PrunedViT(dense, 0.3, [layer])(images) for layer in (6, 2))
        expected = dense(images)
    # Behind the last attention the class token has all that it takes from others.
    assert close(late, expected) and not close(early, expected)


def test_it_runs_in_bfloat16_and_at_another_size() -> None:
    dense, images = make_vit(), make_images(2, (96, 128))
    model = PrunedViT(dense, 0.5, (2, 4))
    with torch.no_grad():
        expected = model(images)
        output = model.to(torch.bfloat16)(images.to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert F.cosine_similarity(output.float(), expected).min() > 0.98


# ---------------------------------------------------------------- what is refused


def test_a_model_without_a_class_token_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=fragments.CLASS_TOKEN):
        PrunedViT(make_vit("test_vit2"), 0.7, (2,))


@pytest.mark.parametrize(
    ("name", "args", "kind"),
    [
        ("test_vit", {"block_fn": ResPostBlock}, "Layer 1 .*ResPostBlock"),
        ("test_vit_relpos", {}, "Layer 1 .*RelPosBlock"),
        ("test_resnet", {}, "ResNet"),
    ],
)
def test_blocks_of_another_kind_are_refused(name: str, args: dict[str, Any], kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=kind):
        PrunedViT(make_vit(name, **args), 0.7, (1,))


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5, float("nan")])
def test_a_keep_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=str(rate)):
        PrunedViT(make_vit(), rate, (2,))


@pytest.mark.parametrize("layers", [(), (0,), (7,), (2, 2)])
def test_layers_that_the_model_does_not_have_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r" 1 to 6\b"):
        PrunedViT(make_vit(), 0.7, layers)


def test_attention_that_is_not_fused_is_refused() -> None:
    dense: Any = make_vit()
    dense.blocks[1].attn.fused_attn = False
    with pytest.raises(UnsupportedModelError, match="TIMM_FUSED_ATTN"), torch.no_grad():
        PrunedViT(dense, 0.7, (2,))(make_images())
