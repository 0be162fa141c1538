"""Which tokens a ToSA layer computes, and what stands in for the others."""

from typing import NamedTuple

from torch import Tensor


class Grown(NamedTuple):
    """Which of M groups stay as they are or take others in, and where each has gone.

    Attributes:
        rows: Indices of the K that stay, rising, behind them of the r = M - K others, in any order, and behind them of
            what each of the others has gone into, (B, K + 2 r).
        row_sizes: How many tokens each of `rows` stood for before, (B, K + 2 r), in float32.
        into: Position among those that stay of what each of the others has gone into, (B, r).
        position: The same of each of the M groups, (B, M).
        sizes: How many tokens each of those that stay stands for now, (B, K), in float32.
    """

    rows: Tensor
    row_sizes: Tensor
    into: Tensor
    position: Tensor
    sizes: Tensor

    @property
    def stay(self) -> Tensor:
        """Indices of those that stay, (B, K)."""
        return self.rows[:, : self.sizes.shape[1]]

    @property
    def goes(self) -> Tensor:
        """Indices of those that do not stay, (B, r)."""
        return self.rows[:, self.sizes.shape[1] : self.position.shape[1]]

    @property
    def pairs(self) -> Tensor:
        """Indices of those that do not stay, and behind them of what each has gone into, (B, 2 r)."""
        return self.rows[:, self.sizes.shape[1] :]


class Choice(NamedTuple):
    """Which tokens a ToSA layer computes, and what stands in for the others.

    Attributes:
        keep_indices: Selected tokens (B, K), rising; (B, H, K) for per-head selection.
        skip_indices: Skipped tokens (B, S), rising; None where the bypass leaves them alone.
        partners: Positions (B, S, k) among the kept tokens of each skipped token's nearest; None without matching.
        weights: Shares (B, S, k) of the partners in float32, which sum to 1.
        groups: Positions (B, N) of each token's group among the kept tokens; None unless a layer computes the means of
            groups, for each of which one of its tokens is kept.
        sizes: Number of tokens in each group, (B, K), in float32.
        grown: How the groups of the choice before have become these; None where it is not told.
    """

    keep_indices: Tensor
    skip_indices: Tensor | None = None
    partners: Tensor | None = None
    weights: Tensor | None = None
    groups: Tensor | None = None
    sizes: Tensor | None = None
    grown: Grown | None = None
