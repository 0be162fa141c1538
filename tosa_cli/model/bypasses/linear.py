"""A linear map of the skipped token."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.model.bypasses.base import Bypass
from tosa_cli.model.regression import Sums, linear_sums, solve_linear


class Linear(Bypass):
    """A linear map of what the layer's attention reads of the skipped token: `u = W x + b`."""

    reads_inputs = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.weight = nn.Parameter(torch.zeros(dim, dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, inputs: Tensor, updates: Tensor | None = None) -> Tensor:
        """Updates (B, S, D) of skipped tokens by their inputs (B, S, D)."""
        return F.linear(inputs, self.weight, self.bias)

    @staticmethod
    def sums(inputs: Tensor, updates: Tensor | None, truth: Tensor) -> Sums:
        """Sums of a ridge regression of the truth on the inputs."""
        return linear_sums(inputs, truth)

    @staticmethod
    def solve(sums: Sums) -> dict[str, Tensor]:
        """Weight (D, D) and bias (D)."""
        weight, bias = solve_linear(sums)
        return {"weight": weight, "bias": bias}

    @staticmethod
    def macs(dim: int) -> int:
        """One product with the weight."""
        return dim * dim
