"""Token merging, the peer that others are measured against: right where it can be known what is right."""

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock
from torch import Tensor
from torch.nn import functional as F

from tests.sentences import fragments
from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.peers.merging import MergedViT, MergeMode, match_tokens, merge_tokens, unmerge_tokens

from ..model.tiny_models import MODELS, make_images, make_vit

MODES: tuple[MergeMode, ...] = ("merge", "merge-unmerge")


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, which goes by the largest of the values that were added up."""
    return torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max().clamp(min=1)), rtol=1e-4)


def random_tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def double_patches(tokens: Tensor, prefix: int) -> Tensor:
    """Each patch token of the first half (B, N, D) stands beside its own copy; the number of tokens stays."""
    patches = tokens[:, prefix:]
    half = patches[:, : patches.shape[1] // 2]
    return torch.cat([tokens[:, :prefix], half.repeat_interleave(2, dim=1)], dim=1)


# ---------------------------------------------------------------- the pure functions


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("patches", [8, 9])
@pytest.mark.parametrize("merged", [1, 3, 4])
def test_a_matching_says_where_every_token_is(prefix: int, patches: int, merged: int) -> None:
    length = prefix + patches
    stay, go, position = match_tokens(random_tokens(2, length, 5), merged, prefix)
    for b in range(2):
        assert sorted([*stay[b].tolist(), *go[b].tolist()]) == list(range(length))
        assert stay[b, :prefix].tolist() == list(range(prefix))
        # A token that stays is found where it went, and one that goes at a token of the other set.
        assert position[b][stay[b]].tolist() == list(range(length - merged))
        assert all((stay[b][position[b][i]] - i) % 2 == 1 for i in go[b])
        assert not set(stay[b][position[b]].tolist()) & set(go[b].tolist())


def test_the_closest_pairs_are_merged_and_in_the_right_one() -> None:
    metric = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [2.0, 0.0], [-1.0, 0.3]]])
    # After one prefix token the sets are tokens 1, 3, 5 and 2, 4: 1 is closest to 4, 3 to 2, and 5 to nothing.
    stay, go, position = match_tokens(metric, 2, 1)
    assert stay.tolist() == [[0, 5, 2, 4]] and sorted(go[0].tolist()) == [1, 3]
    assert stay[0][position[0]].tolist() == [0, 4, 2, 2, 4, 5]


def test_merged_tokens_are_averages_weighted_by_size() -> None:
    tokens, sizes = random_tokens(2, 11, 4), torch.randint(1, 5, (2, 11)).float()
    matching = match_tokens(tokens, 4, 1)
    merged, total = merge_tokens(tokens, sizes, matching)
    assert merged.shape == (2, 7, 4) and total.sum(dim=1).equal(sizes.sum(dim=1))
    for b in range(2):
        for k in range(7):
            members = matching.position[b] == k
            weights = sizes[b][members]
            mean = (tokens[b][members] * weights[:, None]).sum(dim=0) / weights.sum()
            assert close(merged[b, k], mean) and total[b, k] == weights.sum()


def test_merging_equal_tokens_changes_nothing_but_their_size() -> None:
    tokens = double_patches(random_tokens(2, 9, 6), 1)
    matching = match_tokens(tokens, 4, 1)
    merged, sizes = merge_tokens(tokens, None, matching)
    assert close(unmerge_tokens(merged, matching.position), tokens)
    assert sizes.tolist() == [[1, 2, 2, 2, 2]] * 2


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_without_merging_it_is_the_dense_model(name: str, mode: MergeMode) -> None:
    dense, images = make_vit(name), make_images()
    model = MergedViT(dense, mode, [0] * len(dense.blocks))
    with torch.no_grad():
        assert model(images).equal(dense(images))
        assert model.forward_features(images).equal(dense.forward_features(images))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("args", [{}, {"qk_norm": True, "qkv_bias": False}, {"init_values": 0.3}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_copies_of_a_token_may_be_merged_without_a_change(name: str, args: dict[str, Any], mode: MergeMode) -> None:
    dense: Any = make_vit(name, **args)
    prefix = dense.num_prefix_tokens
    tokens = double_patches(random_tokens(2, prefix + 12, dense.embed_dim), prefix)
    depth = len(dense.blocks)
    # Once merged, nothing equal is left to merge; unmerged tokens are equal again, and are merged in every layer.
    schedule = [6] + [0] * (depth - 1) if mode == "merge" else [6] * depth
    model = MergedViT(dense, mode, schedule)
    with torch.no_grad():
        expected = dense.blocks(tokens)
        final, position = model.run_layers(tokens)
    if position is not None:
        assert final.shape[1] == prefix + 6
        final = unmerge_tokens(final, position)
    assert close(final, expected)


@pytest.mark.parametrize("name", MODELS)
def test_unmerging_keeps_every_token_in_its_place(name: str) -> None:
    dense, images = make_vit(name), make_images()
    model = MergedViT(dense, "merge-unmerge", [3] * len(dense.blocks))
    with torch.no_grad():
        expected, final = dense.forward_features(images), model.forward_features(images)
    assert final.shape == expected.shape and not close(final, expected)
    cosine = F.cosine_similarity(final[:, :, None], expected[:, None], dim=-1)
    own = cosine.argmax(dim=-1) == torch.arange(final.shape[1])
    assert own.float().mean() > 0.8


@pytest.mark.parametrize("name", MODELS)
def test_merging_leaves_fewer_tokens_and_the_head_still_pools_all(name: str) -> None:
    dense, images = make_vit(name), make_images()
    model = MergedViT(dense, "merge", [5] * len(dense.blocks))
    with torch.no_grad():
        left, position = model.run_layers(model.embed(images)[0])
        final, logits = model.forward_features(images), model(images)
        tokens = dense.num_prefix_tokens + dense.patch_embed.num_patches
        assert left.shape[1] == tokens - 5 * len(dense.blocks) and position is not None
        assert final.equal(unmerge_tokens(model.norm(left), position)) and final.shape[1] == tokens
        assert logits.shape == dense(images).shape and logits.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_it_runs_in_bfloat16(mode: MergeMode) -> None:
    dense, images = make_vit("test_vit2"), make_images()
    model = MergedViT(dense, mode, [5] * len(dense.blocks))
    with torch.no_grad():
        expected = model(images)
        output = model.to(torch.bfloat16)(images.to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert F.cosine_similarity(output.float(), expected).min() > 0.98


def test_the_backbone_stays_as_it_was() -> None:
    dense, images = make_vit(), make_images()
    with torch.no_grad():
        before = dense(images)
        MergedViT(dense, "merge", [5] * len(dense.blocks))(images)
        assert dense(images).equal(before)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "args", "kind"),
    [
        ("test_vit", {"block_fn": ResPostBlock}, "Layer 1 .*ResPostBlock"),
        ("test_vit", {"block_fn": ParallelScalingBlock}, "Layer 1 .*ParallelScalingBlock"),
        ("test_vit_relpos", {}, "Layer 1 .*RelPosBlock"),
        ("test_resnet", {}, "ResNet"),
    ],
)
def test_blocks_of_another_kind_are_refused(name: str, args: dict[str, Any], kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=kind):
        MergedViT(timm.create_model(name, **args), "merge", [0])


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    dense = make_vit()
    depth = len(dense.blocks)
    with pytest.raises(ConfigError, match=rf"^1 .*\b{depth}\b"):
        MergedViT(dense, "merge", [1])
    with pytest.raises(ConfigError, match=fragments.LAYER_2_500_101_0):
        MergedViT(dense, "merge", [0, 500] + [0] * (depth - 2))
