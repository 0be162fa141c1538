"""What asks a run to stop: Ctrl-C, and the signals by which schedulers and terminals end one. Imports no torch."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""SIGTERM comes from `kill`, from schedulers and from `timeout`; SIGHUP from a terminal that is closed."""


@dataclass
class Request:
    """Whether a run was asked to stop."""

    asked: bool = False


@contextmanager
def raising_interrupt() -> Iterator[None]:
    """Have every one of the signals raise `KeyboardInterrupt`, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextmanager
def noted() -> Iterator[Request]:
    """Take note of the signals, so that a run stops between two steps; a second one, if Ctrl-C, stops it at once.

    Python would raise `KeyboardInterrupt` anywhere, and lose it where an exception is ignored. Schedulers and `timeout`
    send theirs to the process and to its group, so that two of them are one.
    """
    request = Request()

    def note(number: int, _: object) -> None:
        if request.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.asked = True

    with _handled(note):
        yield request


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Hand the signals to a handler, those left out that are ignored, as after `nohup`; in other threads than the main
    one Python takes no handlers."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in STOPPING}
        before = {number: kept for number, kept in before.items() if kept not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, kept in before.items():
            signal.signal(number, kept)
