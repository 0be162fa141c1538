"""The update of the group's mean. Nothing is fitted."""

import torch
from torch import Tensor

from tosa_cli.model.bypasses.base import Bypass


class Mean(Bypass):
    """A layer computes the mean of each group, and what a token differs from the mean by stays as it is.

    So every token of a group gets the update of its mean, the kept one among them.
    """

    updates_tokens = False

    def forward(self, inputs: Tensor, updates: Tensor) -> Tensor:
        """Updates of what tokens differ from their mean by: zeros of the form of `inputs`."""
        return torch.zeros_like(inputs)
