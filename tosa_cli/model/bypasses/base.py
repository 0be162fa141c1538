"""What every bypass has in common."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from tosa_cli.model.regression import Sums


class Bypass(nn.Module, ABC):
    """What a skipped token becomes in one ToSA layer: its update, made without running the layer.

    A bypass that was not fitted yet does what its plainest form does: it leaves the token as it is, or copies the
    update of the token's partners.

    Args:
        dim: Width D of the tokens.
    """

    updates_tokens: ClassVar[bool] = True
    """Whether a skipped token changes at all."""

    reads_inputs: ClassVar[bool] = False
    """Whether it reads what the layer's attention reads of a skipped token, less its partners' where it has some."""

    reads_updates: ClassVar[bool] = False
    """Whether it reads the update of the partners, so that each skipped token needs some."""

    def __init__(self, dim: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, inputs: Tensor, updates: Tensor) -> Tensor:
        """Updates (B, S, D) of skipped tokens.

        Args:
            inputs: What the layer's attention reads of them, less the mean of their partners' where they have some,
                (B, S, D); None where it is not read.
            updates: Mean update of each one's partners, (B, S, D); None where it is not read.
        """

    @staticmethod
    def sums(inputs: Tensor, updates: Tensor | None, truth: Tensor) -> Sums:
        """Sums over tokens that `solve` finds the parameters from; those of several batches are added.

        Args:
            inputs: As for `forward`, (B, S, D).
            updates: Likewise.
            truth: What the layer would have added to the tokens, (B, S, D).
        """
        return {}

    @staticmethod
    def solve(sums: Sums) -> dict[str, Tensor]:
        """The parameters by name that bring the updates nearest to the truth, from the sums of all tokens."""
        return {}

    @staticmethod
    def macs(dim: int) -> int:
        """Multiply-accumulates for one skipped token of width D."""
        return 0
