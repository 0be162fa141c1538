"""What must come out exactly with any bypass, in any block, span and precision."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.model.families import attention_input, embed_with_places, mean_key_projection
from tosa_cli.model.places import Places
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_layer import run_tosa_layer

from .bypass_runs import BYPASSES, SELECTORS, make_fitted
from .test_backbone import SHRUNK
from .tiny_models import make_images, make_tosa, make_vit

NEAREST = BYPASSES[2:]


BLOCKS = ["vit_small_patch16_224", "vit_base_patch16_rpn_224", "vit_base_patch16_xp_224"]
"""Architectures of `Block`, `ResPostBlock` and `ParallelScalingBlock`."""


def make_small(architecture: str) -> nn.Module:
    return make_vit(architecture, **SHRUNK)


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
