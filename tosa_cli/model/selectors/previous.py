"""A baseline, what the feeding layer attends to; and what all selectors that read maps have in common."""

import torch
from torch import Tensor

from tosa_cli.config import Method
from tosa_cli.model.families import Backbone, head_dim, num_heads
from tosa_cli.model.selection import column_sum, num_query_rows
from tosa_cli.model.selectors.base import Entry, Selector


class MapSelector(Selector):
    """A selector whose scores come from the attention logits of the feeding layer."""

    def score(self, entry: Entry) -> Tensor:
        """What was read of the feeding layer."""
        assert entry.scores is not None
        return entry.scores

    def shown(self, entry: Entry) -> Tensor | None:
        """Logarithms, as attention received spans orders of magnitude."""
        scores = super().shown(entry)
        return None if scores is None else scores.log()


class PreviousSelector(MapSelector):
    """Selects what the feeding layer attends to (A-MoD, arXiv 2412.20875)."""

    meaning = "attention that a patch received in the layer before (log)"

    @staticmethod
    def macs(backbone: Backbone, layer: int, method: Method, tokens: int, kept: int) -> int:
        """Query rows of the feeding layer."""
        return row_macs(backbone, layer, method, tokens)

    def read(self, logits: Tensor) -> Tensor:
        """Column sum of the feeding layer's own maps, (B, H, N)."""
        return column_sum(logits.softmax(dim=-1, dtype=torch.float32))


def row_macs(backbone: Backbone, layer: int, method: Method, tokens: int) -> int:
    """Multiply-accumulates of the query rows that the feeding layer computes for the selector of a ToSA layer."""
    feeder, rows = backbone.blocks[layer - 2], num_query_rows(tokens, method.query_rows)
    # The full map is computed once and used for the attention itself; a few rows are computed beside it.
    return 0 if rows == tokens else rows * tokens * num_heads(feeder) * head_dim(feeder)
