"""Copying what neighbours change by, a peer: right where it can be known what is right."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import ResPostBlock

from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.model.flops import count_flops
from tosa_cli.peers.copied_flops import count_copied_macs, solve_copied_keep_rate
from tosa_cli.peers.copying import ATTENDED, NEIGHBORS, CopiedViT, choose_by_change, num_changed, paper_layer, put_back

from ..model.counting import run_and_count
from ..model.tiny_models import MODELS, make_images, make_vit
from .test_pruning import KINDS, close, random_tokens


def test_the_layer_stands_where_the_papers_scripts_have_it() -> None:
    assert [paper_layer(depth) for depth in (24, 12, 6, 1)] == [7, 4, 2, 1]


def test_the_patches_that_changed_most_stay_with_all_prefix_tokens() -> None:
    before = torch.zeros(1, 6, 2)
    after = torch.tensor([[[0.0, 0.0], [9.0, 9.0], [3.0, 4.0], [1.0, 1.0], [0.0, 6.0], [2.0, 2.0]]])
    choice = choose_by_change(before, after, 4, 2)
    assert choice.keep_indices.tolist() == [[0, 1, 2, 4]] and choice.skip_indices is not None
    assert choice.skip_indices.tolist() == [[3, 5]] and choice.partners is not None
    # Nearest to (1, 1) is the first token at (0, 0), nearest to (2, 2) the one at (3, 4); all kept ones are copied.
    assert choice.partners[0, :, 0].tolist() == [0, 2] and choice.partners.shape == (1, 2, 4)


def test_a_token_that_is_out_changes_by_the_mean_of_its_nearest() -> None:
    entered = random_tokens(2, 30, 5)
    choice = choose_by_change(torch.zeros_like(entered), entered, 15, 1)
    kept = random_tokens(2, 15, 5).flip(0)
    whole = put_back(entered, kept, choice)
    assert choice.skip_indices is not None
    for image in range(2):
        keep, skip = choice.keep_indices[image], choice.skip_indices[image]
        assert whole[image, keep].equal(kept[image])
        for token in skip:
            near = (entered[image, keep] - entered[image, token]).norm(dim=-1).argsort()[:NEIGHBORS]
            expected = entered[image, token] + (kept[image] - entered[image, keep])[near].mean(0)
            assert close(whole[image, token], expected)


@pytest.mark.parametrize(("name", "args"), KINDS, ids=str)
def test_with_keep_rate_1_it_is_the_dense_model(name: str, args: dict[str, Any]) -> None:
    dense: Any = make_vit(name, **args)
    images = make_images(2, dense.patch_embed.img_size)
    model = CopiedViT(dense, 1.0, 2)
    with torch.no_grad():
        assert model(images).equal(dense(images))
        assert model.forward_features(images).equal(dense.forward_features(images))


def test_the_layers_run_as_by_hand() -> None:
    dense: Any = make_vit("test_vit")
    images, layer = make_images(2), 2
    model = CopiedViT(dense, 0.5, layer)
    with torch.no_grad():
        tokens, _ = model.embed(images)
        for block in dense.blocks[:layer]:
            before, tokens = tokens, block(tokens)
        choice = choose_by_change(before, tokens, num_changed(tokens.shape[1], 0.5, 1), 1)
        index = choice.keep_indices[..., None].expand(-1, -1, tokens.shape[-1])
        kept = tokens.gather(1, index)
        for number, block in enumerate(dense.blocks[layer:]):
            if number < ATTENDED:  # as in a dense block, of which the MLP is run on those that are kept
                whole = put_back(tokens, kept, choice)
                middle = (whole + block.ls1(block.attn(block.norm1(whole)))).gather(1, index)
                kept = middle + block.ls2(block.mlp(block.norm2(middle)))
            else:
                kept = block(kept)
        expected = dense.norm(put_back(tokens, kept, choice))
        found = model.forward_features(images)
        assert close(found, expected) and not close(found, dense.forward_features(images))
        assert close(model(images), dense.forward_head(expected))


@pytest.mark.parametrize("layer", [1, 3, 5])
@pytest.mark.parametrize("rate", [1.0, 0.7, 0.3, 0.001])
@pytest.mark.parametrize("name", MODELS)
def test_the_macs_are_those_of_the_running_model(name: str, rate: float, layer: int) -> None:
    dense = make_vit(name)
    layer = min(layer, len(dense.blocks) - 1)
    assert run_and_count(CopiedViT(dense, rate, layer)) == count_copied_macs(dense, rate, layer)


@pytest.mark.parametrize("target", [0.02, 0.1, 0.2])
def test_the_keep_rate_saves_what_is_asked_for_and_hardly_more(target: float) -> None:
    dense = make_vit()
    dense_macs = round(count_flops(dense).dense_gmacs * 1e9)
    rate = solve_copied_keep_rate(dense, 2, target)
    reduction, next_reduction = (1 - count_copied_macs(dense, each, 2) / dense_macs for each in (rate, rate + 0.001))
    assert next_reduction < target <= reduction < target + 0.03


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(ConfigError):
        solve_copied_keep_rate(make_vit(), 2, 0.9)
    with pytest.raises(ConfigError):
        CopiedViT(make_vit(), 0.0, 2)
    with pytest.raises(ConfigError):
        CopiedViT(make_vit(), 0.5, 6)
    with pytest.raises(UnsupportedModelError):
        CopiedViT(make_vit("test_vit", block_fn=ResPostBlock), 0.5, 2)


def test_it_runs_in_bfloat16_and_at_another_size() -> None:
    model = CopiedViT(make_vit(img_size=(96, 128)), 0.5, 2).bfloat16()
    with torch.no_grad():
        assert model.forward_features(make_images(1, (96, 128)).bfloat16()).isfinite().all()
