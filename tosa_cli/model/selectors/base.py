"""What every selector has in common."""

from abc import ABC
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tosa_cli.config import Method
from tosa_cli.model.choice import Choice
from tosa_cli.model.families import Backbone
from tosa_cli.model.matching import match_with_kept, other_indices
from tosa_cli.model.regression import Sums
from tosa_cli.model.selection import choose_tokens


class Entry(NamedTuple):
    """What is known of a ToSA layer that is about to choose its tokens.

    Attributes:
        shape: Of the tokens that enter it: B and N.
        num_kept: Number of tokens K to keep, at least the prefix tokens and one more.
        num_prefix_tokens: Number of prefix tokens, which are always kept.
        grid: Patches (rows, columns).
        heads: Number of attention heads H where each selects tokens of its own; None where one set is selected.
        neighbors: Number of partners of each skipped token.
        matches: Whether each skipped token needs partners.
        lists_skipped: Whether the indices of the skipped tokens are needed.
        device: Where the tokens are.
        inputs: What the attention of the layer reads of the tokens, (B, N, D); None where nothing reads it.
        keys: Keys (B, N, key_dim) by which tokens are compared; None where none are.
        scores: What the feeding layer's logits say, (B, N) or (B, H, N); None where the selector does not read them.
        means: Means (B, M, D) of the groups that enter, or all tokens (B, N, D); None where tokens are in no groups.
        before: The choice that made these groups; None where each token is one.
    """

    shape: tuple[int, int]
    num_kept: int
    num_prefix_tokens: int
    grid: tuple[int, int]
    heads: int | None
    neighbors: int
    matches: bool
    lists_skipped: bool
    device: torch.device
    inputs: Tensor | None = None
    keys: Tensor | None = None
    scores: Tensor | None = None
    means: Tensor | None = None
    before: Choice | None = None


class Ranks(NamedTuple):
    """By what tokens are selected.

    Attributes:
        values: Numbers in float64, (B, N) or (B, H, N), greater for a token that stays.
        unit: The size of a usual one, (B,): two that differ by a small share of it are equal but for rounding.
    """

    values: Tensor
    unit: Tensor


class Selector(nn.Module, ABC):
    """What ranks the tokens of one ToSA layer.

    A subclass has a score for each token (`score`), or chooses by other means (`choose`).
    """

    reads_inputs: ClassVar[bool] = False
    """Whether it reads what the attention of the layer reads."""

    meaning: ClassVar[str | None] = None
    """What its scores, as `shown` gives them, say of a patch, in words; None without scores."""

    @classmethod
    def for_layer(cls, backbone: Backbone, layer: int, method: Method) -> "Selector":
        """The selector of a ToSA layer of a backbone, new."""
        return cls()

    @staticmethod
    def macs(backbone: Backbone, layer: int, method: Method, tokens: int, kept: int) -> int:
        """Multiply-accumulates of a choice for one image, what is computed for it in the feeding layer included.

        Args:
            backbone: The backbone.
            layer: The ToSA layer.
            method: Settings of the conversion.
            tokens: Number of tokens N, or of groups of them, that enter the layer.
            kept: Number of them that are kept, K.
        """
        return 0

    def read(self, logits: Tensor) -> Tensor:
        """What a selector that reads maps makes of scaled attention logits (B, H, M, N): scores (B, H, N)."""
        raise NotImplementedError(f"{type(self).__name__} reads no maps.")

    def score(self, entry: Entry) -> Tensor:
        """A score for each token, the higher the sooner selected: (B, N), or (B, H, N) for per-head selection."""
        raise NotImplementedError(f"{type(self).__name__} gives no scores.")

    def choose(self, entry: Entry) -> Choice:
        """Choose the tokens that the layer computes, and find what the bypass needs for the others."""
        return match(choose_tokens(self.score(entry), entry.num_kept, entry.num_prefix_tokens), entry)

    def ranks(self, entry: Entry) -> Ranks | None:
        """By what `choose` selects, to judge how much speaks against another choice; None if nothing does."""
        values = self.score(entry).double()
        sizes = values[..., entry.num_prefix_tokens :].abs().flatten(1)
        return Ranks(values, at_least_rounding(sizes.median(1).values))

    def may_be_partner(self, keep_indices: Tensor, entry: Entry) -> Tensor:
        """Which of the kept tokens (B, K) a skipped one may have for a partner: a mask (B, K)."""
        return (
            torch.arange(keep_indices.shape[1], device=keep_indices.device).expand_as(keep_indices)
            >= entry.num_prefix_tokens
        )

    def shown(self, entry: Entry) -> Tensor | None:
        """Scores of the patches of one image (N - prefix), as a picture shows them; NaN where a patch has none."""
        return self.score(entry).flatten(0, -2).sum(0)[entry.num_prefix_tokens :]

    @staticmethod
    def sums(inputs: Tensor, errors: Tensor) -> Sums:
        """Sums that `solve` finds the parameters from; those of several batches are added.

        Args:
            inputs: What the attention of the layer reads of the patches, (B, n, D).
            errors: How wrong the bypass is about each, above 0, (B, n).
        """
        return {}

    @staticmethod
    def solve(sums: Sums) -> dict[str, Tensor]:
        """The parameters by name, from the sums of all patches."""
        return {}


def match(keep_indices: Tensor, entry: Entry) -> Choice:
    """Find what the bypass needs for selected tokens (B, K), or (B, H, K): the skipped ones, and their partners."""
    if entry.matches:
        assert entry.keys is not None
        return match_with_kept(entry.keys, keep_indices, entry.num_prefix_tokens, entry.neighbors)
    return Choice(keep_indices, other_indices(keep_indices, entry.shape[1]) if entry.lists_skipped else None)


def at_least_rounding(size: Tensor) -> Tensor:
    """A size that one may divide by."""
    return size.clamp_min(torch.finfo(torch.float32).tiny)
