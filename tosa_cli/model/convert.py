"""Conversion: check first, then insert selectors, then prove that nothing else changed (DESIGN: identity)."""

import copy

import torch
from torch import Tensor

from tosa_cli.config import TosaConfig
from tosa_cli.errors import IdentityError
from tosa_cli.model.choice import Choice
from tosa_cli.model.families import Backbone
from tosa_cli.model.selection import gather_tokens, scatter_tokens
from tosa_cli.model.tosa_layer import run_selected
from tosa_cli.model.tosa_vit import TosaViT

IDENTITY_TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest value of the output: float32 rounding stays well below."""


def insert_selectors(backbone: Backbone, config: TosaConfig) -> TosaViT:
    """Turn a timm ViT into a ToSA model and check that with every token kept it equals its source.

    Args:
        backbone: A timm ViT, which becomes part of the new model.
        config: Where and how tokens are selected.

    Returns:
        The ToSA model, in evaluation mode.

    Raises:
        UnsupportedModelError: If the model is of a type that cannot be converted.
        ConfigError: If the model does not have the layers asked for.
        IdentityError: If the check fails.
    """
    model = TosaViT(backbone, config).eval()
    check_identity(model, backbone)
    model.record_input_size()
    return model


@torch.no_grad()
def check_identity(model: TosaViT, source: Backbone | None = None) -> float:
    """Check on a real forward pass that selection alone changes nothing.

    Two things are compared with the source model. The whole model at keep rate 1.0, which goes through selection,
    gathering and scattering; and each ToSA layer on its patches in a shuffled order, put back in place, which shows
    that the layer does not depend on where a token stands, or is told it for each token it is given.

    Args:
        model: The ToSA model, in evaluation mode.
        source: The model that it was made of; None takes its dense model.

    Returns:
        Largest absolute difference of final tokens and outputs.

    Raises:
        IdentityError: If a difference is beyond rounding, or a value is not finite.
    """
    keep_all = copy.copy(model)
    keep_all.keep_rates = dict.fromkeys(model.keep_rates, 1.0)
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    dense = model.backbone if source is None else source
    images = torch.randn(2, model.in_chans, *model.patch_embed.img_size, generator=generator).to(parameter)
    expected = dense.forward_features(images)
    tokens = keep_all.forward_features(images)
    difference = _compare("the final tokens", expected, tokens)
    output, logits = dense.forward_head(expected), keep_all.forward_head(tokens)
    difference = max(difference, _compare("the output", output, logits))
    _, places = model.embed(images)
    for layer in model.keep_rates:
        order = _shuffled(tokens, model.num_prefix_tokens, generator)
        selected = gather_tokens(tokens, order)
        computed = run_selected(model.blocks[layer - 1], selected, Choice(order), places.of(layer))
        shuffled = scatter_tokens(tokens, order, computed)
        whole = model.run_block(layer, tokens, places)
        difference = max(difference, _compare(f"layer {layer} on shuffled tokens", whole, shuffled))
    return difference


def _shuffled(tokens: Tensor, num_prefix_tokens: int, generator: torch.Generator) -> Tensor:
    """Indices (B, N) of tokens (B, N, D) with the patches of each image in an order of their own."""
    batch, length, _ = tokens.shape
    patches = [torch.randperm(length - num_prefix_tokens, generator=generator) for _ in range(batch)]
    prefix = torch.arange(num_prefix_tokens).expand(batch, -1)
    return torch.cat([prefix, torch.stack(patches) + num_prefix_tokens], dim=1).to(tokens.device)


def _compare(what: str, expected: Tensor, actual: Tensor) -> float:
    difference = (expected - actual).abs().max().item()
    scale = max(1.0, expected.abs().max().item())
    tolerance = IDENTITY_TOLERANCE if expected.dtype == torch.float32 else 100 * IDENTITY_TOLERANCE
    if not difference <= tolerance * scale:
        raise IdentityError(
            f"With every token kept, {what} should equal the source model's, but differs by {difference:.2g}. "
            f"Nothing was written. Please report the model's name."
        )
    return difference
