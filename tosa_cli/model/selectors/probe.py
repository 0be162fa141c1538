"""A linear map of the token that predicts how wrong the bypass is about it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.config import Method
from tosa_cli.model.families import Backbone
from tosa_cli.model.regression import Sums, linear_sums, solve_linear
from tosa_cli.model.selectors.base import Entry, Selector


class Probe(Selector):
    """Predicts how wrong the bypass of a ToSA layer is about each token, by a linear map of the token.

    Fitted in closed form. A new one says the same of every token.

    Args:
        dim: Width D of the tokens.
    """

    reads_inputs = True
    meaning = "how wrong the bypass is predicted to be about a patch (log)"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dim))
        self.bias = nn.Parameter(torch.zeros(1))

    @classmethod
    def for_layer(cls, backbone: Backbone, layer: int, method: Method) -> "Probe":
        """The probe of a ToSA layer, of the width of the tokens."""
        return cls(backbone.embed_dim)

    @staticmethod
    def macs(backbone: Backbone, layer: int, method: Method, tokens: int, kept: int) -> int:
        """One product a token."""
        return tokens * backbone.embed_dim

    def forward(self, inputs: Tensor) -> Tensor:
        """Logarithm of the norm of the bypass's error (B, N) by what the layer's attention reads, (B, N, D)."""
        return F.linear(inputs.to(self.weight.dtype), self.weight, self.bias).squeeze(-1).float()

    def score(self, entry: Entry) -> Tensor:
        """The prediction for each token, (B, N)."""
        return self(entry.inputs)

    @staticmethod
    def sums(inputs: Tensor, errors: Tensor) -> Sums:
        """Sums of a ridge regression of the logarithm of the errors on the inputs."""
        return linear_sums(inputs, errors.log().unsqueeze(-1))

    @staticmethod
    def solve(sums: Sums) -> dict[str, Tensor]:
        """Weight (1, D) and bias (1)."""
        weight, bias = solve_linear(sums)
        return {"weight": weight, "bias": bias}
