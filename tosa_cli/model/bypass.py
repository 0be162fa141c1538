"""What a skipped token becomes: its update, made without running the layer (DESIGN section 5).

A bypass that was not fitted yet does what its plainest form does: `linear` leaves the token as it is, the `nearest`
kinds copy the update of the partners. Inputs are what the layer's attention reads, so the tokens after its norm.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.methods import Bypass


class LinearBypass(nn.Module):
    """A linear map of the skipped token: `u = W x + b`.

    Args:
        dim: Width D of the tokens.
    """

    reads_inputs = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, inputs: Tensor) -> Tensor:
        """Updates (B, S, D) of skipped tokens by their inputs (B, S, D)."""
        return F.linear(inputs, self.weight, self.bias)


class NearestBypass(nn.Module):
    """The update of the partners, corrected by how the skipped token differs from them.

    With the partners' mean input `m` and mean update `v`, a token of input `x` gets

    - `nearest`: `u = v`
    - `nearest+affine`: `u = a * v + b * (x - m) + c`, three numbers a channel
    - `nearest+linear`: `u = a * v + W (x - m) + c`

    Args:
        dim: Width D of the tokens.
        bypass: One of the three.
    """

    def __init__(self, dim: int, bypass: Bypass) -> None:
        super().__init__()
        self.bypass = bypass
        if bypass == "nearest":
            return
        self.update_scale = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        if bypass == "nearest+affine":
            self.input_scale = nn.Parameter(torch.zeros(dim))
        else:
            self.weight = nn.Parameter(torch.zeros(dim, dim))

    @property
    def reads_inputs(self) -> bool:
        """Whether the inputs of the tokens are needed besides the updates of the partners."""
        return self.bypass != "nearest"

    def forward(self, updates: Tensor, differences: Tensor | None = None) -> Tensor:
        """Updates of skipped tokens.

        Args:
            updates: Mean update of each one's partners, (B, S, D).
            differences: Its input less theirs, (B, S, D); None where inputs are not read.

        Returns:
            Updates (B, S, D).
        """
        if differences is None:
            return updates
        updates = updates * self.update_scale + self.bias
        if self.bypass == "nearest+affine":
            return torch.addcmul(updates, differences, self.input_scale)
        return updates + F.linear(differences, self.weight)


def make_bypass(bypass: Bypass, dim: int) -> LinearBypass | NearestBypass | None:
    """The bypass of one layer by its name, not fitted yet; None for `identity`, which leaves the token as it is."""
    if bypass == "identity":
        return None
    return LinearBypass(dim) if bypass == "linear" else NearestBypass(dim, bypass)
