"""What a bypass reads and what it should say, of the tokens that a layer skips or of all that it might skip."""

from typing import NamedTuple

import torch
from torch import Tensor

from tosa_cli.model.families import attention_input
from tosa_cli.model.matching import (
    Choice,
    mean_of_partners,
    nearest_of,
    other_indices,
    partner_weights,
    two_sets,
)
from tosa_cli.model.places import Places
from tosa_cli.model.selection import gather_tokens, scatter_tokens
from tosa_cli.model.tosa_layer import Parts, bypass_reads, partner_bias, partner_updates, run_selected
from tosa_cli.model.tosa_layers import TosaLayers


class Partners(NamedTuple):
    """The partners that some patches would have, if they were skipped and those around them kept.

    Attributes:
        patches: The patches (A,), as indices among all tokens.
        indices: Partners (B, A, k) of each, as indices among all tokens.
        weights: Their shares (B, A, k).
    """

    patches: Tensor
    indices: Tensor
    weights: Tensor


def candidate_partners(model: TosaLayers, layer: int, tokens: Tensor, grid: tuple[int, int]) -> list[Partners]:
    """Find the partners of every patch among those of the other color of a checkerboard.

    Args:
        model: The ToSA model.
        layer: A ToSA layer that makes a choice.
        tokens: Tokens (B, N, D) that enter it.
        grid: Patches (rows, columns).

    Returns:
        Those of either color; none where tokens are not matched.
    """
    if not model.config.matches_tokens:
        return []
    keys = model.keys[str(layer)](attention_input(model.blocks[layer - 1], tokens))
    sides = [indices + model.num_prefix_tokens for indices in two_sets(grid, 1, tokens.device)]
    found = []
    for mine, others in (sides, reversed(sides)):
        nearest = nearest_of(keys[:, mine], keys[:, others], min(model.config.neighbors, len(others)))
        found.append(Partners(mine, others[nearest.indices], partner_weights(nearest.values)))
    return found


def candidate_features(
    model: TosaLayers, layer: int, tokens: Tensor, updates: Tensor, partners: list[Partners]
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the bypass of a layer would read of every patch, if that patch were skipped and those around it kept.

    Args:
        model: The ToSA model.
        layer: The ToSA layer.
        tokens: Tokens (B, N, D) that enter it.
        updates: What the layer adds to each, (B, N, D).
        partners: From `candidate_partners` of the layer whose choice it uses.

    Returns:
        Inputs of the patches or their differences from the partners, (B, n, D); the partners' updates (B, n, D) or
        None; the true updates (B, n, D).
    """
    prefix = model.num_prefix_tokens
    inputs = attention_input(model.blocks[layer - 1], tokens)
    if not partners:
        return inputs[:, prefix:], None, updates[:, prefix:]
    differences, partners_updates = [], []
    for patches, indices, weights in partners:
        differences.append(inputs[:, patches] - mean_of_partners(inputs, indices, weights))
        partners_updates.append(mean_of_partners(updates, indices, weights))
    order = torch.cat([side.patches for side in partners]).argsort()
    return (
        torch.cat(differences, 1)[:, order],
        torch.cat(partners_updates, 1)[:, order],
        updates[:, prefix:],
    )


def bypass_errors(model: TosaLayers, layer: int, tokens: Tensor, updates: Tensor, partners: list[Partners]) -> Tensor:
    """How wrong the bypass of a layer is about every patch: norm (B, N - prefix) of what it gets wrong.

    Args:
        model: The ToSA model.
        layer: The ToSA layer.
        tokens: Tokens (B, N, D) that enter it.
        updates: What the layer adds to each, (B, N, D).
        partners: From `candidate_partners` of the layer whose choice it uses.
    """
    inputs, partners_updates, truth = candidate_features(model, layer, tokens, updates, partners)
    return (apply_bypass(model, layer, inputs, partners_updates) - truth).norm(dim=-1).clamp_min(1e-8)


def skipped_features(
    model: TosaLayers, layer: int, tokens: Tensor, choice: Choice, places: Places
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a ToSA layer on its selected tokens, and find out what its bypass reads and should say of the others.

    Args:
        model: The ToSA model.
        layer: The ToSA layer.
        tokens: Tokens (B, N, D) that enter it.
        choice: Which ones it computes.
        places: Where all of them stand.

    Returns:
        Tokens (B, N, D) after it, the skipped ones as they were; and of the skipped ones: their indices `skip` (B, S),
        their true updates `truth` (B, S, D), their `inputs` or differences from the partners (B, S, D), and the
        `updates` of the partners (B, S, D) where the bypass is a `nearest` one.
    """
    block = model.blocks[layer - 1]
    skip = choice.skip_indices
    if skip is None:
        skip = other_indices(choice.keep_indices, tokens.shape[1])
    selected, skipped = gather_tokens(tokens, choice.keep_indices), gather_tokens(tokens, skip)
    computed = run_selected(block, selected, choice, places.of(layer), partner_bias(choice))
    values = {"skip": skip, "truth": gather_tokens(model.run_block(layer, tokens, places), skip) - skipped}
    values["inputs"] = bypass_reads(Parts(attention_input(block, selected), attention_input(block, skipped)), choice)
    if choice.partners is not None:
        values["updates"] = partner_updates(selected, computed, choice)
    return scatter_tokens(tokens, choice.keep_indices, computed), values


def apply_bypass(model: TosaLayers, layer: int, inputs: Tensor, updates: Tensor | None) -> Tensor:
    """Updates (B, S, D) that the bypass of a layer makes of its inputs (B, S, D) and the partners' updates."""
    return model.bypass(layer)(inputs, updates)
