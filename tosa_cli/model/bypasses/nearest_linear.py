"""The update of the partners, corrected by a linear map."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.model.bypasses.base import Bypass
from tosa_cli.model.regression import Sums, scaled_linear_sums, solve_scaled_linear


class NearestLinear(Bypass):
    """The mean update of the partners, corrected by a linear map of how the skipped token differs from them.

    With the partners' mean input `m` and mean update `v`, a token of input `x` gets `u = a * v + W (x - m) + c`.
    """

    reads_inputs = True
    reads_updates = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.update_scale = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, inputs: Tensor, updates: Tensor) -> Tensor:
        """Updates (B, S, D) of skipped tokens by their differences from the partners and the partners' updates."""
        return updates * self.update_scale + self.bias + F.linear(inputs, self.weight)

    @staticmethod
    def sums(inputs: Tensor, updates: Tensor | None, truth: Tensor) -> Sums:
        """Sums of a ridge regression of the truth on both."""
        assert updates is not None
        return scaled_linear_sums(updates, inputs, truth)

    @staticmethod
    def solve(sums: Sums) -> dict[str, Tensor]:
        """A number a channel (D), weight (D, D) and bias (D)."""
        scale, weight, bias = solve_scaled_linear(sums)
        return {"update_scale": scale, "weight": weight, "bias": bias}

    @staticmethod
    def macs(dim: int) -> int:
        """One product with the weight."""
        return dim * dim
