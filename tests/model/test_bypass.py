"""What becomes of a skipped token: the formulas, the layer, and weights that are saved and trained."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import tosa_cli
from tosa_cli.errors import TosaError
from tosa_cli.model.bypasses import BYPASSES as KINDS
from tosa_cli.model.bypasses import Linear, Nearest, NearestAffine, NearestLinear
from tosa_cli.model.choice import Choice
from tosa_cli.model.families import embed_with_places
from tosa_cli.model.matching import match_with_kept, other_indices
from tosa_cli.model.places import Places
from tosa_cli.model.selection import choose_tokens, gather_tokens, merge_tokens
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_layer import run_tosa_layer

from .bypass_runs import BYPASSES, SELECTORS, make_fitted
from .tiny_models import make_images, make_tosa, make_vit, randomize_

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
