"""What long work tells of its advance. Imports no torch."""

from typing import Protocol


class Progress(Protocol):
    """What the loop tells about its advance."""

    def start(self, total: int, done: int) -> None:
        """A run of `total` batches starts, of which `done` are behind it."""

    def advance(self, num_images: int, text: str) -> None:
        """One more batch is done."""


class NoProgress:
    """Tells nothing."""

    def start(self, total: int, done: int) -> None:
        """Do nothing."""

    def advance(self, num_images: int, text: str) -> None:
        """Do nothing."""
