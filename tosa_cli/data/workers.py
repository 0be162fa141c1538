"""What is said where a process that loads data is killed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tosa_cli.errors import DataProcessError

_WORKER = "DataLoader worker"


@contextmanager
def lost_workers_told(advice: Callable[[], str] = str) -> Iterator[None]:
    """Say in a sentence that a process that loads data was killed, wherever PyTorch notices it.

    Args:
        advice: Asked then what else helps, as a sentence.

    Raises:
        DataProcessError: If one was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if _WORKER not in str(error):
            raise
        raise DataProcessError(
            f"A process that loads data was killed, most likely for want of memory. Pass a smaller --workers, 0 loads "
            f"in the main process, or a smaller --batch-size. {advice()}".rstrip()
        ) from error
