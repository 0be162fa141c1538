"""The original with the choices of an exported model, and what the original's own scores say to them.

Another runtime adds up in another order, so where two scores are equal but for rounding it may select another token,
and then its outputs differ by far more than rounding, and rightly. So choices and numbers are held apart: every choice
must be one that the original could have made, and given the choices the numbers must agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tosa_cli.model.families import attention_input, embed_with_places
from tosa_cli.model.matching import Choice, other_indices, partner_weights, similarity_sets
from tosa_cli.model.selection import gather_tokens, num_kept
from tosa_cli.model.tosa_vit import TosaViT

_EXACT = "donot_use_mm_for_euclid_dist"


@dataclass(frozen=True)
class Replay:
    """What the original makes of the choices of an exported model.

    Attributes:
        tokens: Final normalised tokens (B, N, D) of the original with these choices.
        same: Whether the original chooses just so in every layer, (B,).
        margin: By how much its scores speak against the choices at most, as a share of a usual score, (B,): 0 where a
            choice is among equal scores, infinite where it is none at all.
    """

    tokens: Tensor
    same: Tensor
    margin: Tensor


@torch.no_grad()
def replay(model: TosaViT, images: Tensor, choices: Mapping[str, Tensor]) -> Replay:
    """Run the original with given choices.

    Args:
        model: The original, in evaluation mode.
        images: Images (B, C, height, width).
        choices: By the names of `name_choices`: keep indices (B, K), or (B, H, K) for per-head selection, and partners
            (B, S, k) where tokens are matched.
    """
    (tokens, places), scores = embed_with_places(model.backbone, images), None
    grid = places.grid
    same = torch.ones(len(images), dtype=torch.bool)
    margin = torch.zeros(len(images), dtype=torch.float64)
    for layer in range(1, len(model.blocks) + 1):
        if layer not in model.keep_rates:
            tokens, scores = model.run_standard_layer(layer, tokens, places)
            continue
        if model.choosing_layers[layer] == layer:
            own = model.choose(layer, tokens, places, scores)
            keep = choices[f"keep_indices_{layer}"]
            same &= (own.keep_indices == keep).flatten(1).all(1)
            keep, against = _judge_kept(model, layer, tokens, grid, scores, own, keep)
            margin = margin.maximum(against)
            choice = Choice(keep)
            if model.config.matches_tokens and own.partners is not None:
                partners = choices[f"partners_{layer}"]
                same &= (own.partners.sort(-1).values == partners.sort(-1).values).flatten(1).all(1)
                choice, against = _judge_partners(model, layer, tokens, grid, keep, partners)
                margin = margin.maximum(against)
            elif model.config.bypass != "identity":
                choice = Choice(keep, other_indices(keep, tokens.shape[1]))
        tokens = model.run_tosa_layer(layer, tokens, choice, places)
    return Replay(model.backbone.norm(tokens), same, margin)


def _judge_kept(
    model: TosaViT,
    layer: int,
    tokens: Tensor,
    grid: tuple[int, int],
    scores: Tensor | None,
    own: Choice,
    keep: Tensor,
) -> tuple[Tensor, Tensor]:
    """Keep indices that can be run, and what the layer's scores say against them, (B,)."""
    prefix, length = model.num_prefix_tokens, tokens.shape[1]
    first = torch.arange(prefix)
    valid = (keep[..., :prefix] == first).all(-1) & (keep.diff(dim=-1) > 0).all(-1) & (keep[..., -1] < length)
    keep = torch.where(valid[..., None], keep, own.keep_indices)
    against = torch.where(valid, 0.0, torch.inf).double()
    ranks = _ranks(model, layer, tokens, grid, scores)
    if ranks is not None:
        values, unit = ranks
        is_kept = torch.zeros(values.shape, dtype=torch.bool).scatter(-1, keep, True)
        best_skipped = values.masked_fill(is_kept, -torch.inf)[..., prefix:].amax(-1)
        worst_kept = values.masked_fill(~is_kept, torch.inf)[..., prefix:].amin(-1)
        # Two infinite ranks: a token was skipped that may never be, and all that were kept may not either.
        excess = torch.nan_to_num(best_skipped - worst_kept, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        against = against.maximum(excess.clamp_min(0) / unit.view(-1, *[1] * (excess.ndim - 1)))
    return keep, against.flatten(1).amax(1) if against.ndim > 1 else against


def _ranks(
    model: TosaViT, layer: int, tokens: Tensor, grid: tuple[int, int], scores: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """By what a layer selects: (B, N) or (B, H, N), greater for a token that stays; and the size of a usual one, (B,).

    None for random selection.
    """
    inputs = attention_input(model.blocks[layer - 1], tokens)
    if model.config.selector == "random":
        return None
    if model.config.selector == "similarity":
        keys = model.keys[str(layer)](inputs).double()
        candidates, others = _candidates(model, layer, tokens.shape[1], grid)
        values = torch.full(tokens.shape[:2], torch.inf, dtype=torch.float64)
        values[:, candidates] = torch.cdist(keys[:, candidates], keys[:, others], compute_mode=_EXACT).amin(-1)
        return values, _key_size(keys)
    values = (model.score(layer, inputs) if scores is None else scores).double()
    return values, _at_least_rounding(values[..., model.num_prefix_tokens :].abs().flatten(1).median(1).values)


def _judge_partners(
    model: TosaViT, layer: int, tokens: Tensor, grid: tuple[int, int], keep: Tensor, partners: Tensor
) -> tuple[Choice, Tensor]:
    """A choice with the given partners, and what the layer's keys say against them, (B,)."""
    prefix, length = model.num_prefix_tokens, tokens.shape[1]
    keys = model.keys[str(layer)](attention_input(model.blocks[layer - 1], tokens)).double()
    skip = other_indices(keep, length)
    distances = torch.cdist(gather_tokens(keys, skip), gather_tokens(keys, keep), compute_mode=_EXACT)
    if model.config.selector == "similarity":
        allowed = torch.isin(keep, _candidates(model, layer, length, grid)[1])
    else:
        allowed = torch.arange(keep.shape[1]).expand_as(keep) >= prefix
    eligible = distances.masked_fill(~allowed[:, None], torch.inf)
    count = partners.shape[-1]
    in_order = partners.sort(-1).values
    valid = (in_order >= 0).all(-1) & (in_order < keep.shape[1]).all(-1) & (in_order.diff(dim=-1) > 0).all(-1)
    nearest = eligible.topk(count, largest=False)
    partners = torch.where(valid[..., None], partners, nearest.indices)
    excess = (eligible.gather(-1, partners).sort(-1).values - nearest.values).amax(-1) / _key_size(keys)[:, None]
    against = torch.where(valid, excess, torch.inf).flatten(1).amax(1) if skip.shape[1] else torch.zeros(len(keep))
    choice = Choice(keep, skip, partners, partner_weights(distances.gather(-1, partners).square()))
    return choice, torch.nan_to_num(against.double(), nan=torch.inf)


def _candidates(model: TosaViT, layer: int, length: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Tokens that `similarity` may skip, and their possible partners."""
    prefix = model.num_prefix_tokens
    return similarity_sets(grid, length - num_kept(length, model.keep_rates[layer], prefix), prefix)


def _key_size(keys: Tensor) -> Tensor:
    # Distances are judged as lengths: a length is wrong by what a key is wrong by, a square by any factor.
    return _at_least_rounding(keys.square().sum(-1).mean(-1).sqrt())


def _at_least_rounding(size: Tensor) -> Tensor:
    return size.clamp_min(torch.finfo(torch.float32).tiny)
