"""What is read of the blocks of a family: logits, keys, and places that go with the tokens."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tosa_cli.model.attention import run_and_tap
from tosa_cli.model.convert import check_identity
from tosa_cli.model.families import (
    attention_input,
    embed_with_places,
    mean_key_projection,
)
from tosa_cli.model.places import Places, gather_bias, gather_rope

from .families import FAMILIES, make_family
from .family_runs import convert_family, images_of, read_keys, read_softmax

# ---------------------------------------------------------------------- what is read of a block


@pytest.mark.parametrize("rows", [5, "all"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_logits_read_are_those_that_the_softmax_sees(family: str, rows: int | str) -> None:
    model = make_family(family)
    tokens, places = embed_with_places(model, images_of(model))
    block: Any = model.blocks[1]
    output, logits = run_and_tap(block, tokens, rows, extras=places.of(2))
    assert torch.allclose(output, block(tokens, **places.of(2)), atol=1e-4)
    for module in block.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with read_softmax() as seen:
        block(tokens, **places.of(2))
    whole = torch.cat(seen.found, dim=1)
    if rows != "all":
        whole = whole[:, :, torch.linspace(0, tokens.shape[1] - 1, int(rows)).round().long()]
    assert logits.shape == whole.shape and torch.allclose(logits, whole, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_tokens_are_compared_by_the_mean_of_their_attention_keys(family: str) -> None:
    model = make_family(family)
    tokens, places = embed_with_places(model, images_of(model))
    block: Any = model.blocks[1]
    for module in block.modules():
        if hasattr(module, "k_norm"):
            module.k_norm = nn.Identity()
    with read_keys() as seen:  # a block that is told of no places does not rotate its keys
        block(tokens, **{name: value for name, value in places.of(2).items() if name != "rope"})
    weight, bias = mean_key_projection(block)
    keys = F.linear(attention_input(block, tokens), weight, bias)
    assert torch.allclose(keys, seen.found[0].mean(dim=1), atol=1e-4)


@torch.no_grad()
def test_parallel_attentions_are_read_together() -> None:
    model = convert_family("parallel attentions")
    assert model.selectors["2"].conv1.in_channels == 4  # two attentions of two heads
    tokens, places = embed_with_places(model.backbone, images_of(model))
    calls = []
    _, result = run_and_tap(
        model.blocks[0], tokens, 3, lambda logits: calls.append(logits.shape) or logits, extras=places.of(1)
    )
    assert calls == [(2, 4, 3, tokens.shape[1])] and result.shape == calls[0]


# ---------------------------------------------------------------------- places


def test_rotary_tables_are_gathered_for_each_image() -> None:
    indices = torch.tensor([[0, 3, 4], [5, 1, 2]])
    shared, by_head = torch.randn(6, 8), torch.randn(2, 6, 8)
    of_images = torch.randn(2, 1, 6, 8)
    for image in range(2):
        for place, patch in enumerate(indices[image].tolist()):
            assert gather_rope(shared, indices)[image, 0, place].equal(shared[patch])
            assert gather_rope(by_head, indices)[image, :, place].equal(by_head[:, patch])
            assert gather_rope(of_images, indices)[image, :, place].equal(of_images[image, :, patch])


@pytest.mark.parametrize("shape", [(2, 6, 6), (1, 2, 6, 6)], ids=str)
def test_a_bias_is_gathered_by_rows_and_columns(shape: tuple[int, ...]) -> None:
    indices = torch.tensor([[0, 3, 4], [5, 1, 2]])
    bias = torch.randn(shape)
    gathered, whole = gather_bias(bias, indices), bias.view(2, 6, 6)
    assert gathered.shape == (2, 2, 3, 3)
    for image, head, row, column in torch.cartesian_prod(*(torch.arange(n) for n in gathered.shape)).tolist():
        expected = whole[head, indices[image, row], indices[image, column]]
        assert gathered[image, head, row, column] == expected


def test_plain_blocks_are_told_nothing() -> None:
    for family in ("plain", "norm after", "attention beside MLP", "parallel attentions", "EVA", "relative positions"):
        model = make_family(family)
        _, places = embed_with_places(model, images_of(model))
        assert places == Places((4, 6)) and places.of(3) == {}


def test_mixed_tables_differ_from_layer_to_layer() -> None:
    model = make_family("mixed rotation")
    _, places = embed_with_places(model, images_of(model))
    assert not torch.allclose(places.of(1)["rope"], places.of(2)["rope"], atol=0.1)
    assert places.of(1)["rope"].shape == (2, 24, 48)


@pytest.mark.parametrize("family", ["EVA-02", "BEiT", "relative positions", "shared relative positions"])
@torch.no_grad()
def test_the_check_of_conversion_finds_places_that_are_not_gathered(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = convert_family(family)
    monkeypatch.setattr("tosa_cli.model.families.timm_eva.gather_rope", lambda rope, indices: rope)
    monkeypatch.setattr("tosa_cli.model.places.gather_bias", lambda bias, indices: bias)
    with pytest.raises(Exception, match="layer 2"):
        check_identity(model)
