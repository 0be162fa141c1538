"""Tokens in groups: what is merged, what a layer computes of a group, and that every token is there at the end."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tosa_cli
from tests.sentences import fragments
from tosa_cli.config import Method, TosaConfig
from tosa_cli.errors import ConfigError
from tosa_cli.model.choice import Choice, Grown
from tosa_cli.model.convert import check_identity
from tosa_cli.model.flops import count_flops
from tosa_cli.model.grouping import COHERENCE_POWER, grow_groups, halves, join_groups, log_counts, merge_costs
from tosa_cli.model.layer_loop import LayerOutputs
from tosa_cli.model.places import Places
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_vit import TosaViT

from .families import FAMILIES, make_family
from .tiny_models import MODELS, make_images, make_tosa, make_vit

GROUPS: dict[str, Any] = {"selector": "ward", "bypass": "mean"}
GROWING: dict[str, Any] = {**GROUPS, "layers": (1, 2, 3, 5, 6), "keep_rate": (0.8, 0.6, 0.3, 0.7, 0.7)}
"""A row of three layers, and one of two after a standard layer."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(model: TosaViT, images: Tensor) -> LayerOutputs:
    with torch.no_grad():
        return model.run_layers(*model.embed(images), take=range(1, len(model.blocks) + 1))


def members(choice: Choice, image: int) -> list[list[int]]:
    """The tokens of each group of an image."""
    assert choice.groups is not None
    groups = choice.groups[image]
    return [(groups == group).nonzero().flatten().tolist() for group in range(choice.keep_indices.shape[1])]


# ---------------------------------------------------------------------- the pure functions


def test_the_cost_of_a_merge_goes_by_distance_and_roots_of_sizes() -> None:
    means = draw(1, 2, 5)
    distance = (means[0, 0] - means[0, 1]).square().sum().item()
    for sizes, share in (([1.0, 1.0], 1 / 2), ([4.0, 9.0], 2 * 3 / (2 + 3)), ([1.0, 16.0], 4 / 5)):
        assert merge_costs(*halves(means, torch.tensor([sizes]))).item() == pytest.approx(share * distance, rel=1e-5)


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("left", [4, 7, 12, 13])
def test_so_many_groups_are_left_and_each_token_is_in_one(prefix: int, left: int) -> None:
    means, sizes = draw(2, prefix + 13, 6), torch.ones(2, prefix + 13)
    grown = grow_groups(means, sizes, prefix + left, prefix)
    assert grown.stay.shape == grown.sizes.shape == (2, prefix + left)
    assert (grown.stay.diff(dim=1) > 0).all() and grown.stay[:, :prefix].tolist() == [list(range(prefix))] * 2
    assert grown.position.gather(1, grown.stay).equal(torch.arange(prefix + left).expand(2, -1))
    counted = torch.stack([row.bincount(minlength=prefix + left) for row in grown.position])
    assert grown.sizes.equal(counted.float()) and (counted[:, :prefix] == 1).all()


def test_the_pairs_that_cost_least_are_merged_and_a_large_group_stays_apart() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [11.5]])
    alone = grow_groups(points[None], torch.ones(1, 4), 3, 0)
    assert alone.position[0].tolist() == [0, 0, 1, 2]  # the first goes into the second, which is nearest
    # As groups of nine the first two are as near as before, and merging them costs three times as much.
    heavy = grow_groups(points[None], torch.tensor([[9.0, 9.0, 1.0, 1.0]]), 3, 0)
    assert heavy.position[0].tolist() == [0, 1, 2, 2]


def test_what_stands_for_a_group_points_as_the_mean_of_its_tokens_and_is_as_long_as_they_are() -> None:
    tokens, alone = draw(2, 14, 5), torch.ones(2, 14)
    first = grow_groups(tokens, alone, 9, 1)
    means, coherence, _ = join_groups(tokens, alone, first)
    second = grow_groups(means, first.sizes, 5, 1)
    grown, its_coherence, _ = join_groups(means, coherence, second)
    position = second.position.gather(1, first.position)  # however often they grew
    for image in range(2):
        for group in range(5):
            chosen = tokens[image, position[image] == group]
            length = chosen.norm(dim=-1).mean()
            share = chosen.mean(0).norm() / length
            assert torch.allclose(grown[image, group], chosen.mean(0) / share, atol=1e-5)
            assert its_coherence[image, group].item() == pytest.approx(share.item(), rel=1e-4)


def test_tokens_that_cancel_each_other_out_leave_a_mean_that_is_finite() -> None:
    tokens = draw(1, 3, 5)
    tokens = torch.stack([tokens[:, 0], -tokens[:, 0], torch.zeros(1, 5), torch.zeros(1, 5)], dim=1).requires_grad_()
    sizes = torch.tensor([[2.0, 2.0]])
    grown = Grown(
        torch.tensor([[0, 2, 1, 3, 0, 2]]),
        torch.ones(1, 6),
        torch.tensor([[0, 1]]),
        torch.tensor([[0, 0, 1, 1]]),
        sizes,
    )
    means, coherence, _ = join_groups(tokens, torch.ones(1, 4), grown)
    assert means.abs().max() < 1e-5 and (coherence > 0).all() and log_counts(sizes, coherence).isfinite().all()
    means.sum().backward()
    assert tokens.grad is not None and tokens.grad.isfinite().all()


# ---------------------------------------------------------------------- the model


@pytest.mark.parametrize("name", MODELS)
def test_a_layer_computes_the_mean_of_each_group_and_its_tokens_take_the_update(name: str) -> None:
    # In a row of one layer, as behind it a group has the coherence that it had when it was merged.
    model, images = make_tosa(name, **GROUPS, layers=(1, 3, 5), keep_rate=(0.8, 0.6, 0.3)), make_images()
    outputs = run(model, images)
    tokens = model.embed(images)[0]
    for layer, after in enumerate(outputs.intermediates, start=1):
        block = model.blocks[layer - 1]
        if layer not in outputs.choices:
            with torch.no_grad():
                expected = block(tokens)
        else:
            expected = tokens.clone()
            for image in range(2):
                groups = members(outputs.choices[layer], image)
                means = torch.stack([tokens[image, group].mean(0) for group in groups])
                lengths = torch.stack([tokens[image, group].norm(dim=-1).mean() for group in groups])
                sizes = torch.tensor([float(len(group)) for group in groups])
                coherence = means.norm(dim=-1) / lengths
                means = means / coherence[:, None]
                counts = sizes.log() + COHERENCE_POWER * coherence.log()
                with torch.no_grad():
                    computed = block(means[None], attn_mask=counts[None, None, None])[0]
                for group, update in zip(groups, computed - means, strict=True):
                    expected[image, group] += update
        assert torch.allclose(after, expected, atol=1e-4 * float(expected.abs().max())), layer
        tokens = after


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_only_grow_in_a_row_of_layers_and_start_anew_behind_a_standard_one(family: str) -> None:
    source = make_family(family)
    images = make_images(2, source.patch_embed.img_size)
    model = make_tosa(source, layers=(2, 3), keep_rate=(0.7, 0.5), **GROUPS)
    outputs = run(model, images)
    assert [tokens.shape for tokens in outputs.intermediates] == [outputs.tokens.shape] * len(model.blocks)
    assert outputs.tokens.isfinite().all()
    first, second = outputs.choices[2], outputs.choices[3]
    for image in range(2):
        larger = [set(group) for group in members(second, image)]
        assert all(any(set(group) <= other for other in larger) for group in members(first, image))
    assert check_identity(model) < 1e-3


def test_a_layer_that_merges_nothing_leaves_the_groups_as_they_are() -> None:
    model, images = make_tosa(**GROUPS, layers=(2, 3, 4), keep_rate=(1.0, 0.6, 0.6)), make_images()
    stream = Stream(*model.embed(images))
    with torch.no_grad():
        assert [len(stream.parts.moved) for layer in model.layers(stream) if layer in (2, 3) and stream.parts] == [0, 1]


def test_other_tokens_in_the_place_of_all_are_put_into_the_groups_that_there_are() -> None:
    model, images = make_tosa(**GROUPS, layers=(2, 3, 4), keep_rate=(0.8, 0.6, 0.6)), make_images()
    stream = Stream(*model.embed(images))
    tokens = draw(2, 101, model.embed_dim)
    with torch.no_grad():
        for layer in model.layers(stream, 4):
            if layer == 3:
                stream.replace(tokens)
                assert stream.choice is not None and stream.parts is not None
                assert torch.allclose(stream.tokens, tokens, atol=1e-5)
                for image in range(2):
                    groups = [tokens[image, group] for group in members(stream.choice, image)]
                    means = torch.stack([group.mean(0) for group in groups])
                    lengths = torch.stack([group.norm(dim=-1).mean() for group in groups])
                    expected = torch.nn.functional.normalize(means, dim=-1) * lengths[:, None]
                    assert torch.allclose(stream.parts.selected[image], expected, atol=1e-4)


def test_a_row_starts_from_single_tokens() -> None:
    outputs = run(make_tosa(**GROWING), make_images())
    kept = {layer: choice.keep_indices.shape[1] for layer, choice in outputs.choices.items()}
    assert kept == {1: 81, 2: 61, 3: 30, 5: 71, 6: 71}
    # Half of the patches can go into the other half at once, so 30 of 100 leave none of more than a few tokens.
    assert outputs.choices[5].groups.equal(outputs.choices[6].groups)  # type: ignore[union-attr, arg-type]


def test_equal_tokens_are_merged_without_a_change() -> None:
    dense: Any = make_vit("test_vit2")
    prefix = dense.num_prefix_tokens
    half = draw(2, 16, dense.embed_dim, seed=1)
    tokens = torch.cat([draw(2, prefix, dense.embed_dim), half.repeat_interleave(2, dim=1)], dim=1)
    length = prefix + 32
    model = make_tosa(dense, layers=(2, 3, 4), keep_rate=(prefix + 16) / length, **GROUPS)
    with torch.no_grad():
        expected = dense.blocks(tokens)
        outputs = model.run_layers(tokens, Places((4, 8)))
    assert outputs.choices[2].keep_indices.shape[1] == prefix + 16
    assert torch.allclose(outputs.tokens, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def test_layers_that_share_a_choice_have_the_same_groups() -> None:
    outputs = run(make_tosa(**GROUPS, layers=(1, 2, 3, 4), keep_rate=(0.8, 0.8, 0.5, 0.5), span=2), make_images())
    groups = {layer: choice.groups for layer, choice in outputs.choices.items()}
    assert groups[1].equal(groups[2]) and groups[3].equal(groups[4])  # type: ignore[union-attr, arg-type]
    assert not groups[2].equal(groups[3])  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_its_multiply_accumulates_are_those_that_are_counted(name: str) -> None:
    model, images = make_tosa(name, **GROWING), make_images(1)
    model.requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    assert counter.get_total_flops() // 2 == round(count_flops(model).gmacs * 1e9)


def test_the_loss_reaches_every_layer_through_groups() -> None:
    model = make_tosa(**GROWING).train()
    model(make_images()).square().mean().backward()
    for layer, block in enumerate(model.blocks, start=1):
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in block.attn.parameters()), layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_full(dtype: torch.dtype) -> None:
    model, images = make_tosa(**GROWING), make_images()
    with torch.no_grad():
        full = model.forward_features(images)
        half = model.to(dtype).forward_features(images.to(dtype)).float()
    cosine = torch.nn.functional.cosine_similarity(full, half, dim=-1)
    assert half.isfinite().all() and cosine.mean() > 0.97


def test_a_saved_model_computes_the_same(tmp_path: Any) -> None:
    model, images = make_tosa(**GROWING), make_images()
    tosa_cli.save(model, tmp_path / "model")
    loaded = tosa_cli.load(tmp_path / "model")
    with torch.no_grad():
        assert loaded(images).equal(model(images)) and loaded.config == model.config


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize("settings", [{"selector": "ward"}, {"selector": "similarity", "bypass": "mean"}])
def test_groups_need_the_selector_and_the_bypass_that_are_made_for_them(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=fragments.WARD_AND_THE_BYPASS_MEAN):
        Method(**settings)


def test_groups_that_would_have_to_be_split_are_refused() -> None:
    with pytest.raises(ConfigError, match=fragments.LAYER_3_HAS_THE_KEEP):
        TosaConfig(layers=(2, 3), keep_rate=(0.5, 0.8), **GROUPS)
    TosaConfig(layers=(2, 4), keep_rate=(0.5, 0.8), **GROUPS)
