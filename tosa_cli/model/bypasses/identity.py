"""The bypass of the paper: a skipped token stays as it is (section 2.1)."""

import torch
from torch import Tensor

from tosa_cli.model.bypasses.base import Bypass


class Identity(Bypass):
    """No update: `u = 0`."""

    updates_tokens = False

    def forward(self, inputs: Tensor, updates: Tensor) -> Tensor:
        """Updates of skipped tokens: zeros of the form of `inputs`."""
        return torch.zeros_like(inputs)
