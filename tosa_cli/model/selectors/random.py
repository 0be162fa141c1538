"""A baseline: chance."""

import torch
from torch import Tensor

from tosa_cli.model.selectors.base import Entry, Ranks, Selector


class RandomSelector(Selector):
    """Selects tokens at random, others in each pass."""

    def score(self, entry: Entry) -> Tensor:
        """Random numbers."""
        batch, length = entry.shape
        heads = () if entry.heads is None else (entry.heads,)
        return torch.rand(batch, *heads, length, device=entry.device)

    def ranks(self, entry: Entry) -> Ranks | None:
        """Nothing speaks against any choice."""
        return None

    def shown(self, entry: Entry) -> Tensor | None:
        """Nothing to show."""
        return None
