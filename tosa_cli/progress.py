"""What long work tells while it runs, and to whom. Imports no torch."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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


class Listener(Protocol):
    """Who is told what a verb does; the command line's console is one."""

    def say(self, message: str) -> None:
        """Something worth knowing."""

    def warn(self, message: str) -> None:
        """Something that may be wrong."""

    def progress(self, description: str) -> AbstractContextManager[Progress]:
        """Long work begins, whose advance is told to what this gives."""


class Nobody:
    """Listens to nothing."""

    def say(self, message: str) -> None:
        """Do nothing."""

    def warn(self, message: str) -> None:
        """Do nothing."""

    @contextmanager
    def progress(self, description: str) -> Iterator[Progress]:
        """Give what tells nothing."""
        yield NoProgress()


def counted(number: int, thing: str) -> str:
    """A number of things: `1 image`, `2 images`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def figure(value: float | None, decimals: int = 4) -> str:
    """A figure as text; `-` where there is none."""
    return "-" if value is None else f"{value:.{decimals}f}"


def tell_skipped(failed: list[str], listener: Listener) -> None:
    """Name the images that could not be read."""
    if failed:
        listener.warn(f"Images that could not be read were skipped, {len(failed)} in all:")
        for name in failed[:10]:
            listener.say(f"  {name}")
        if len(failed) > 10:
            listener.say(f"  and {len(failed) - 10} more.")
