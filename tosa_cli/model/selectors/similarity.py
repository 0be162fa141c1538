"""Skips the tokens that have the nearest partner among the others; needs no training."""

import torch
from torch import Tensor

from tosa_cli.config import Method
from tosa_cli.model.families import Backbone, key_dim
from tosa_cli.model.matching import (
    Choice,
    choose_by_similarity,
    least_distances,
    length_scale,
    num_partners,
    partner_spacing,
    similarity_sets,
)
from tosa_cli.model.selectors.base import Entry, Ranks, Selector, at_least_rounding

EXACT = "donot_use_mm_for_euclid_dist"


class SimilaritySelector(Selector):
    """Splits the patches into candidates and possible partners, and skips the candidates whose partner is nearest."""

    reads_inputs = True
    meaning = "distance to the nearest possible partner; those are always computed and left white here"

    @staticmethod
    def macs(backbone: Backbone, layer: int, method: Method, tokens: int, kept: int) -> int:
        """The keys of all tokens, and the distances of candidates and possible partners."""
        width = key_dim(backbone.blocks[layer - 1], backbone.embed_dim)
        grid = backbone.patch_embed.grid_size
        partners = num_partners(grid, partner_spacing(grid, tokens - kept))
        matching = (tokens - backbone.num_prefix_tokens - partners) * partners * width
        return tokens * backbone.embed_dim * width + (matching if kept < tokens else 0)

    def choose(self, entry: Entry) -> Choice:
        """Skip the candidates with the nearest partner, which is found on the way."""
        assert entry.keys is not None
        choice = choose_by_similarity(entry.keys, entry.num_kept, entry.num_prefix_tokens, entry.grid, entry.neighbors)
        return choice if entry.matches else choice._replace(partners=None, weights=None)

    def ranks(self, entry: Entry) -> Ranks | None:
        """Distances of the candidates to the nearest possible partner; infinite for those, which are never skipped."""
        assert entry.keys is not None
        keys = entry.keys.double()
        candidates, others = _sets(entry)
        values = torch.full(entry.shape, torch.inf, dtype=torch.float64)
        values[:, candidates] = torch.cdist(keys[:, candidates], keys[:, others], compute_mode=EXACT).amin(-1)
        return Ranks(values, key_size(keys))

    def may_be_partner(self, keep_indices: Tensor, entry: Entry) -> Tensor:
        """The possible partners among the kept tokens."""
        return torch.isin(keep_indices, _sets(entry)[1])

    def shown(self, entry: Entry) -> Tensor | None:
        """Distance of each candidate to the nearest possible partner; NaN for those."""
        assert entry.keys is not None
        prefix, length = entry.num_prefix_tokens, entry.shape[1]
        candidates, partners = similarity_sets(entry.grid, length - entry.num_kept, 0, entry.device)
        keys = entry.keys[:, prefix:]
        distances = least_distances(keys[:, candidates], keys[:, partners])[0].sqrt()
        distances = distances / length_scale(keys.shape[-1])
        return torch.full((length - prefix,), torch.nan, device=entry.device).index_copy(0, candidates, distances)


def key_size(keys: Tensor) -> Tensor:
    """The length of a usual key of each image, (B,), by keys (B, N, key_dim)."""
    # Distances are judged as lengths: a length is wrong by what a key is wrong by, a square by any factor.
    return at_least_rounding(keys.square().sum(-1).mean(-1).sqrt())


def _sets(entry: Entry) -> tuple[Tensor, Tensor]:
    """Tokens that may be skipped, and their possible partners."""
    return similarity_sets(entry.grid, entry.shape[1] - entry.num_kept, entry.num_prefix_tokens)
