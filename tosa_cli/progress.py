"""What long work tells of its advance. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def no_progress(description: str) -> Iterator[Progress]:
    """Show nothing of the advance of long work."""
    yield NoProgress()


def say_nothing(message: str) -> None:
    """Keep to oneself what is done."""
