"""Tokens on their way through the layers of a model."""

from collections.abc import Iterator

from torch import Tensor

from tosa_cli.model.choice import Choice
from tosa_cli.model.places import Places
from tosa_cli.model.selection import plain_shape
from tosa_cli.model.tosa_layer import Parts, join_parts, merge_parts, split_tokens


class Stream:
    """Tokens between two layers of a model, and what the layers behind them leave for those ahead.

    Within a span of ToSA layers the tokens are taken apart, as no layer of it reads them in their old order. A stream
    is advanced in place, so that nothing keeps the tokens of layers behind it alive.

    Args:
        tokens: Tokens (B, N, D) that enter the layer after `layer`.
        places: Where they stand.
        layer: The layer that they come from; 0 before the first.

    Attributes:
        places: Where the tokens stand.
        layer: The last layer that they went through.
        scores: What that layer's logits say to the selector of the next layer; None where it does not read them.
        choice: Which tokens the last ToSA layer computed; None before the first.
        parts: The tokens, taken apart by `choice`; None outside of a span.
    """

    def __init__(self, tokens: Tensor, places: Places, layer: int = 0) -> None:
        self._tokens: Tensor | None = tokens
        self.places = places
        self.layer = layer
        self.scores: Tensor | None = None
        self.choice: Choice | None = None
        self.parts: Parts | None = None

    @property
    def tokens(self) -> Tensor:
        """All tokens (B, N, D) in their old order."""
        if self.parts is not None and self.choice is not None:
            return join_parts(self.parts, self.choice)
        assert self._tokens is not None
        return self._tokens

    @tokens.setter
    def tokens(self, tokens: Tensor) -> None:
        self._tokens, self.parts = tokens, None

    def split(self, choice: Choice) -> Parts:
        """Take the tokens apart by a choice, at the start of a span; groups that there are become larger ones."""
        if self.parts is not None and self.choice is not None and self.in_groups:
            parts = merge_parts(self.parts, self.choice, choice)
        else:
            parts = split_tokens(self.tokens, choice)
        # All tokens are put together again where they are needed; these would only stay in memory.
        self._tokens, self.choice, self.parts = None, choice, parts
        return parts

    @property
    def in_groups(self) -> bool:
        """Whether the tokens are in groups, whose means go through the layers."""
        return self.parts is not None and self.choice is not None and self.choice.groups is not None

    @property
    def entering(self) -> Tensor:
        """What enters the next layer: the means of groups (B, M, D), or all tokens (B, N, D)."""
        return self.parts.selected if self.parts is not None and self.in_groups else self.tokens

    @property
    def num_tokens(self) -> int:
        """Number of tokens N, prefix tokens included."""
        if self.in_groups and self.choice is not None and self.choice.groups is not None:
            return plain_shape(self.choice.groups)[1]
        return plain_shape(self.tokens)[1]

    def replace(self, tokens: Tensor) -> None:
        """Go on with other tokens (B, N, D) in the place of all, taken apart as they were."""
        apart, choice = self.parts is not None, self.choice
        self.tokens = tokens
        if apart and choice is not None:
            self.split(choice._replace(grown=None))

    def join(self) -> None:
        """Put the tokens back in their old places, at the end of a span; nothing to do where they are."""
        if self.parts is not None:
            self.tokens = self.tokens


def run_all(layers: Iterator[int]) -> None:
    """Run layers where nothing is to be done between them."""
    for _ in layers:
        pass
