"""What becomes of a skipped token, and that a model with any bypass is whole: exact, savable, trainable."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import tosa_cli
from tosa_cli.errors import TosaError
from tosa_cli.model.bypasses import BYPASSES as KINDS
from tosa_cli.model.bypasses import Linear, Nearest, NearestAffine, NearestLinear
from tosa_cli.model.choice import Choice
from tosa_cli.model.families import attention_input, embed_with_places, mean_key_projection
from tosa_cli.model.matching import match_with_kept, other_indices
from tosa_cli.model.places import Places
from tosa_cli.model.selection import choose_tokens, gather_tokens, merge_tokens
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_layer import run_tosa_layer
from tosa_cli.model.tosa_vit import TosaViT

from .test_backbone import SHRUNK
from .tiny_models import make_images, make_tosa, make_vit, randomize_

SELECTORS = ["attention", "similarity", "probe", "previous", "random"]
BYPASSES = ["identity", "linear", "nearest", "nearest+affine", "nearest+linear"]
NEAREST = BYPASSES[2:]
BLOCKS = ["vit_small_patch16_224", "vit_base_patch16_rpn_224", "vit_base_patch16_xp_224"]
"""Architectures of `Block`, `ResPostBlock` and `ParallelScalingBlock`."""


def make_fitted(source: str | nn.Module = "test_vit", **settings: Any) -> TosaViT:
    """A ToSA model with bypasses as if fitted, small enough that the stream does not run away."""
    model = make_tosa(source, **settings)
    randomize_(model.bypasses, seed=3)
    with torch.no_grad():
        for parameter in model.bypass_parameters():
            parameter *= 0.3
    return model


def make_small(architecture: str) -> nn.Module:
    return make_vit(architecture, **SHRUNK)


# ---------------------------------------------------------------------- formulas


def test_an_identity_bypass_updates_nothing() -> None:
    assert not KINDS["identity"].updates_tokens and not list(KINDS["identity"](8).parameters())
    assert not list(make_tosa(selector="similarity").bypass_parameters())


def test_the_linear_bypass_is_a_linear_map_of_the_input() -> None:
    bypass = randomize_(Linear(5), seed=0)
    inputs = torch.randn(2, 3, 5)
    assert torch.allclose(bypass(inputs), inputs @ bypass.weight.T + bypass.bias, atol=1e-6)


def test_the_nearest_bypasses_correct_the_update_by_the_difference_as_they_say() -> None:
    updates, differences = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    plain = Nearest(5)
    assert torch.equal(plain(None, updates), updates) and not plain.reads_inputs and not list(plain.parameters())
    affine = randomize_(NearestAffine(5), seed=0)
    expected = affine.update_scale * updates + affine.input_scale * differences + affine.bias
    assert torch.allclose(affine(differences, updates), expected, atol=1e-6) and affine.reads_inputs
    assert sum(parameter.numel() for parameter in affine.parameters()) == 3 * 5
    linear = randomize_(NearestLinear(5), seed=0)
    expected = linear.update_scale * updates + differences @ linear.weight.T + linear.bias
    assert torch.allclose(linear(differences, updates), expected, atol=1e-6) and linear.reads_inputs


@pytest.mark.parametrize("selector", ["similarity", "previous"])
def test_a_bypass_that_is_not_fitted_does_what_its_plainest_form_does(selector: str) -> None:
    source, images = make_vit(), make_images()
    outputs = {bypass: make_tosa(source, selector=selector, bypass=bypass)(images) for bypass in BYPASSES}
    assert torch.allclose(outputs["linear"], outputs["identity"], atol=1e-5)
    assert torch.allclose(outputs["nearest+affine"], outputs["nearest"], atol=1e-5)
    assert torch.allclose(outputs["nearest+linear"], outputs["nearest"], atol=1e-5)
    assert not torch.allclose(outputs["nearest"], outputs["identity"], atol=1e-2)


# ---------------------------------------------------------------------- the layer


@pytest.mark.parametrize("bypass", BYPASSES)
def test_a_tosa_layer_is_the_block_on_the_selected_tokens_and_the_bypass_on_the_others(bypass: Any) -> None:
    block, tokens = make_vit().blocks[2], torch.randn(2, 17, 64)
    keep = choose_tokens(torch.rand(2, 17), 9, 1)
    module = randomize_(KINDS[bypass](64), seed=0)
    matched = module.reads_updates
    choice = match_with_kept(tokens, keep, 1, 3) if matched else Choice(keep, other_indices(keep, 17))
    with torch.no_grad():
        output = run_tosa_layer(block, tokens, choice, module)  # type: ignore[arg-type]
        for image in range(2):
            kept, skipped = keep[image].tolist(), choice.skip_indices[image].tolist()  # type: ignore[index]
            sizes = dict.fromkeys(kept, 1.0)
            stands = {}
            if choice.partners is not None and choice.weights is not None:
                for token, places, weights in zip(skipped, choice.partners[image], choice.weights[image], strict=True):
                    stands[token] = [
                        (kept[place], weight.item()) for place, weight in zip(places, weights, strict=True)
                    ]
                    for partner, weight in stands[token]:
                        sizes[partner] += weight
            mask = torch.tensor([sizes[token] for token in kept]).log()[None, None, None]
            computed = block(tokens[image, kept][None], attn_mask=mask if matched else None)[0]
            assert torch.allclose(output[image, kept], computed, atol=1e-4)
            inputs = block.norm1(tokens[image])
            updates = dict(zip(kept, computed - tokens[image, kept], strict=True))
            for token in skipped:
                update, other = None, torch.zeros(64)
                if matched:
                    update = sum(weight * updates[partner] for partner, weight in stands[token])
                    other = sum(weight * inputs[partner] for partner, weight in stands[token])
                expected = module(inputs[token] - other, update)
                assert torch.allclose(output[image, token], tokens[image, token] + expected, atol=1e-4)


@torch.no_grad()
def test_a_bypass_without_partners_normalises_the_skipped_tokens_alone() -> None:
    block, tokens = make_vit().blocks[2], torch.randn(2, 17, 64)
    keep = choose_tokens(torch.rand(2, 17), 9, 1)
    normalised: list[int] = []
    block.norm1.register_forward_hook(lambda module, args, output: normalised.append(args[0].shape[1]))
    run_tosa_layer(block, tokens, Choice(keep, other_indices(keep, 17)), KINDS["linear"](64))
    assert normalised == [8, 9]  # for the bypass, and by the block


@pytest.mark.parametrize("bypass", BYPASSES)
@pytest.mark.parametrize("selector", SELECTORS)
def test_number_and_order_of_the_tokens_stay_and_the_selection_is_fixed_in_size(selector: str, bypass: str) -> None:
    model, images = make_fitted("test_vit2", selector=selector, bypass=bypass, keep_rate=0.4), make_images()
    with torch.no_grad():
        outputs = model.run_layers(*embed_with_places(model.backbone, images), take=range(1, 7))
    assert [tokens.shape for tokens in outputs.intermediates] == [outputs.tokens.shape] * 6
    assert outputs.tokens.isfinite().all()
    for keep in outputs.keep_indices.values():
        assert keep.shape == (2, round(0.4 * outputs.tokens.shape[1])) and (keep.diff(dim=1) > 0).all()
        assert (keep[:, : model.num_prefix_tokens] == torch.arange(model.num_prefix_tokens)).all()


def test_two_groups_are_merged_into_their_places_and_every_token_is_written_once() -> None:
    tokens = torch.full((2, 7, 3), float("nan"))
    first = torch.tensor([[0, 2, 5], [1, 2, 6]])
    second = other_indices(first, 7)
    values = torch.randn(2, 7, 3)
    merged = merge_tokens(first, gather_tokens(values, first), second, gather_tokens(values, second))
    assert torch.equal(merged, values) and tokens.isnan().all()


def test_gradients_reach_the_bypass_and_both_groups() -> None:
    model = make_fitted(selector="similarity", bypass="nearest+linear").train()
    model.reset_classifier(0)
    model.forward_features(make_images()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


# ---------------------------------------------------------------------- what must come out exactly


@pytest.mark.parametrize("bypass", BYPASSES)
@pytest.mark.parametrize("selector", SELECTORS)
def test_with_every_token_kept_the_model_is_its_source(selector: str, bypass: str) -> None:
    source, images = make_vit("test_vit2"), make_images()
    model = make_fitted(source, selector=selector, bypass=bypass, keep_rate=1.0)
    assert torch.allclose(model(images), source(images), atol=1e-4)


@pytest.mark.parametrize("architecture", BLOCKS)
@pytest.mark.parametrize("bypass", NEAREST)
@pytest.mark.parametrize(("selector", "layers"), [("similarity", (1, 2, 3, 6)), ("previous", (2, 4, 6))])
@pytest.mark.parametrize("keep_rate", [0.3, 0.8])
def test_an_image_of_equal_patches_is_computed_exactly(
    architecture: str, bypass: str, selector: str, layers: tuple[int, ...], keep_rate: float
) -> None:
    # Skipped tokens then are copies of kept ones, and the attention must count those as often as they stand for.
    source = make_small(architecture)
    nn.init.zeros_(source.pos_embed)
    images = torch.ones(2, 3, 64, 64) * torch.tensor([0.5, -1.0])[:, None, None, None]
    model = make_tosa(source, selector=selector, bypass=bypass, layers=layers, keep_rate=keep_rate)
    with torch.no_grad():
        assert torch.allclose(model.forward_features(images), source.forward_features(images), atol=1e-4)
    # Without the counting it is not so: the class token attends too little to the patches.
    plain = make_tosa(source, selector=selector, bypass="identity", layers=layers, keep_rate=keep_rate)
    with torch.no_grad():
        assert not torch.allclose(plain.forward_features(images), source.forward_features(images), atol=1e-2)


@pytest.mark.parametrize("architecture", BLOCKS)
@pytest.mark.parametrize("bypass", BYPASSES)
def test_blocks_of_every_build_take_every_bypass(architecture: str, bypass: str) -> None:
    source, images = make_small(architecture), make_images(size=64)
    for selector in ("similarity", "probe"):
        model = make_fitted(source, selector=selector, bypass=bypass, layers=(1, 2, 4))
        output = model(images)
        assert output.isfinite().all() and not torch.allclose(output, source(images), atol=1e-3)
        whole = make_fitted(source, selector=selector, bypass=bypass, layers=(1, 2, 4), keep_rate=1.0)
        assert torch.allclose(whole(images), source(images), atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "args"),
    [
        *((name, SHRUNK) for name in BLOCKS),
        ("test_vit", {"qkv_bias": False}),
        ("test_vit", {"qk_norm": True}),
        ("vit_base_patch16_xp_224", {**SHRUNK, "qkv_bias": False}),
    ],
    ids=str,
)
def test_matching_keys_are_the_mean_over_the_heads_of_the_blocks_own_keys(architecture: str, args: Any) -> None:
    model = make_vit(architecture, **args)
    block = model.blocks[1]
    tokens = torch.randn(2, 5, model.embed_dim)
    # Normalisation of the keys by head is not part of them: it comes after the projection.
    seen: list[Tensor] = []
    norm, heads = (block.k_norm, 2) if hasattr(block, "k_norm") else (block.attn.k_norm, 1)
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        block(tokens)
        weight, bias = mean_key_projection(block)
        found = F.linear(attention_input(block, tokens), weight, bias)
    assert torch.allclose(found, seen[0].mean(dim=heads), atol=1e-5)


def test_neighbors_tell_how_many_kept_tokens_a_skipped_one_follows() -> None:
    for neighbors in (1, 3):
        model = make_tosa(selector="similarity", bypass="nearest", neighbors=neighbors)
        choice = model.choose(2, Stream(torch.randn(2, 101, 64), Places((10, 10))))
        assert choice.partners is not None and choice.partners.shape == (2, 51, neighbors)


@pytest.mark.parametrize("bypass", BYPASSES)
@pytest.mark.parametrize("selector", ["similarity", "probe"])
def test_layers_of_a_span_compute_the_tokens_that_its_first_layer_chose(selector: str, bypass: str) -> None:
    model = make_fitted(selector=selector, bypass=bypass, layers=(1, 2, 3, 5, 6), span=2)
    images = make_images()
    with torch.no_grad():
        tokens, places = embed_with_places(model.backbone, images)
        outputs = model.run_layers(tokens, places, take=range(1, 7))
        final, until_five = model.run_layers(tokens, places), model.run_layers(tokens, places, last=5)
        intermediates = iter(outputs.intermediates)
        for layers in ((1, 2), (3,), (4,), (5, 6)):
            choice = model.choose(layers[0], Stream(tokens, places)) if layers != (4,) else None
            for layer in layers:
                block = model.blocks[layer - 1]
                tokens = run_tosa_layer(block, tokens, choice, model.bypass(layer)) if choice else block(tokens)
                # Inside a span as well, all tokens are there for who asks.
                assert torch.allclose(next(intermediates), tokens, atol=1e-5)
    assert torch.allclose(outputs.tokens, tokens, atol=1e-5) and torch.equal(final.tokens, outputs.tokens)
    assert torch.equal(until_five.tokens, outputs.intermediates[4])
    chosen = outputs.keep_indices
    assert chosen[1].equal(chosen[2]) and chosen[5].equal(chosen[6]) and not chosen[3].equal(chosen[2])
    # What chooses is there for the layers that choose, and for no other.
    for parts in (model.selectors, model.keys):
        assert set(parts) in ({"1", "3", "5"}, set())


@pytest.mark.parametrize("bypass", BYPASSES)
@pytest.mark.parametrize("selector", ["similarity", "random"])
def test_gradients_of_a_span_are_those_of_its_layers_one_by_one(selector: str, bypass: str) -> None:
    model = make_fitted(selector=selector, bypass=bypass, layers=(1, 2, 3, 4), span=2)
    tokens, places = embed_with_places(model.backbone, make_images())
    found = model.run_layers(tokens, places, last=4)
    expected = tokens
    for layer in range(1, 5):
        expected = run_tosa_layer(model.blocks[layer - 1], expected, found.choices[layer], model.bypass(layer))
    trained = [parameter for name, parameter in model.named_parameters() if name.startswith(("blocks.", "bypasses."))]
    weights = torch.randn_like(expected)
    pairs = [
        torch.autograd.grad((out * weights).sum(), trained, allow_unused=True, retain_graph=True)
        for out in (found.tokens, expected)
    ]
    for mine, other in zip(*pairs, strict=True):
        assert (mine is None) == (other is None) and (mine is None or torch.allclose(mine, other, atol=1e-3, rtol=1e-3))


@pytest.mark.parametrize("bypass", BYPASSES)
@pytest.mark.parametrize("selector", ["similarity", "probe", "attention"])
def test_half_precision_stays_close(selector: str, bypass: str) -> None:
    model, images = make_fitted(selector=selector, bypass=bypass, keep_rate=0.9), make_images()
    with torch.no_grad():
        expected = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(images)
        half = model.bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    for output in (mixed, half):
        assert (output - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.parametrize("bypass", NEAREST)
@torch.no_grad()
def test_under_autocast_tokens_are_chosen_and_matched_as_in_full_precision(bypass: str) -> None:
    model = make_fitted(selector="similarity", bypass=bypass, keep_rate=0.5)
    generator = torch.Generator().manual_seed(0)
    # Patches in tight groups, as flat parts of an image give: half precision would tie them.
    centers = torch.randn(2, 12, 64, generator=generator)
    groups = torch.randint(0, 12, (2, 101), generator=generator)
    tokens = centers.gather(1, groups[..., None].expand(-1, -1, 64))
    stream = Stream(tokens + 0.03 * torch.randn(2, 101, 64, generator=generator), Places((10, 10)))
    expected = model.choose(2, stream)
    with torch.autocast("cpu", torch.bfloat16):
        choice = model.choose(2, stream)
    for found, wanted in zip(choice, expected, strict=True):
        assert (found is None) == (wanted is None)
        assert found is None or (found.dtype == wanted.dtype and torch.equal(found, wanted))


@pytest.mark.parametrize("bypass", BYPASSES)
@pytest.mark.parametrize("selector", SELECTORS)
def test_what_is_added_to_a_backbone_has_its_number_format(selector: str, bypass: str) -> None:
    model = make_tosa(make_vit().bfloat16(), selector=selector, bypass=bypass)
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    assert model(make_images().bfloat16()).isfinite().all()


@pytest.mark.parametrize("bypass", NEAREST)
def test_equal_tokens_are_no_trouble_in_half_precision(bypass: str) -> None:
    source = make_vit()
    nn.init.zeros_(source.pos_embed)
    images = torch.ones(1, 3, 160, 160)
    for dtype in (torch.bfloat16, torch.float16):
        model = make_tosa(source, selector="similarity", bypass=bypass).to(dtype)
        with torch.no_grad():
            assert model(images.to(dtype)).isfinite().all()


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize("bypass", BYPASSES)
@pytest.mark.parametrize("selector", SELECTORS)
def test_a_saved_model_is_the_same_model_with_its_bypasses_and_keys(selector: str, bypass: str, tmp_path: Path) -> None:
    model, images = make_fitted(selector=selector, bypass=bypass, neighbors=2), make_images()
    with torch.no_grad():
        for key in model.keys.values():  # not what a new model would take from the backbone
            key.weight += 1
    tosa_cli.save(model, tmp_path / "model")
    loaded = tosa_cli.load(tmp_path / "model")
    assert loaded.config == model.config
    state, expected = loaded.state_dict(), model.state_dict()
    assert list(state) == list(expected) and all(state[name].equal(value) for name, value in expected.items())
    torch.manual_seed(0)
    before = model(images)
    torch.manual_seed(0)
    assert torch.equal(loaded(images), before)
    assert any(name.startswith("keys.") for name in state) == model.config.needs_keys
    assert any(name.startswith("bypasses.") for name in state) == (bypass not in ("identity", "nearest"))


@pytest.mark.parametrize("name", ["bypasses.4.weight", "bypasses.2.update_scale", "keys.6.weight"])
def test_a_folder_that_lacks_a_part_is_refused(name: str, tmp_path: Path) -> None:
    model = make_fitted(selector="similarity", bypass="nearest+linear")
    tosa_cli.save(model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(TosaError, match=name.replace(".", r"\.")):
        tosa_cli.load(tmp_path / "model")
    with pytest.raises(RuntimeError, match=name.replace(".", r"\.")):
        model.load_state_dict(tensors)


def test_finetuning_the_backbone_does_not_change_by_what_tokens_are_matched() -> None:
    model = make_fitted(selector="similarity", bypass="nearest+affine")
    before = copy.deepcopy(model.keys.state_dict())
    trained = {id(parameter) for parameter in model.parameters()}
    assert not any(id(value) in trained for value in model.keys.buffers()) and not list(model.keys.parameters())
    tokens = torch.randn(2, 101, 64)
    choice = model.choose(4, Stream(tokens, Places((10, 10))))
    with torch.no_grad():
        for parameter in model.blocks[3].attn.parameters():
            parameter.normal_()
    again = model.choose(4, Stream(tokens, Places((10, 10))))
    assert torch.equal(choice.keep_indices, again.keep_indices)
    assert all(value.equal(before[name]) for name, value in model.keys.state_dict().items())


def test_layers_that_are_pruned_take_their_parts_with_them() -> None:
    model = make_fitted(selector="similarity", bypass="nearest+linear", layers=(1, 2, 5))
    model.prune_intermediate_layers([2])
    assert list(model.keys) == list(model.bypasses) == ["1", "2"] and model(make_images()).isfinite().all()


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_patches_that_training_drops_are_no_trouble(name: str, selector: str) -> None:
    source = timm.create_model(name, img_size=112, depth=4, patch_drop_rate=0.5)
    model = make_tosa(source, selector=selector, bypass="nearest", layers=(2, 4)).train()
    assert model(torch.randn(2, 3, 112, 112)).isfinite().all()
