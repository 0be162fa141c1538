"""The update of the partners, corrected channel by channel."""

import torch
from torch import Tensor, nn

from tosa_cli.model.bypasses.base import Bypass
from tosa_cli.model.regression import Sums, affine_sums, solve_affine


class NearestAffine(Bypass):
    """The mean update of the partners, corrected by how the skipped token differs from them: three numbers a channel.

    With the partners' mean input `m` and mean update `v`, a token of input `x` gets `u = a * v + b * (x - m) + c`.
    """

    reads_inputs = True
    reads_updates = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.update_scale = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.input_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, inputs: Tensor, updates: Tensor) -> Tensor:
        """Updates (B, S, D) of skipped tokens by their differences from the partners and the partners' updates."""
        return torch.addcmul(updates * self.update_scale + self.bias, inputs, self.input_scale)

    @staticmethod
    def sums(inputs: Tensor, updates: Tensor | None, truth: Tensor) -> Sums:
        """Sums of a regression of the truth on both, channel by channel."""
        assert updates is not None
        return affine_sums(updates, inputs, truth)

    @staticmethod
    def solve(sums: Sums) -> dict[str, Tensor]:
        """Three numbers a channel, each (D)."""
        scale, input_scale, bias = solve_affine(sums)
        return {"update_scale": scale, "input_scale": input_scale, "bias": bias}
