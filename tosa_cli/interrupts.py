"""What asks a run to stop: Ctrl-C, and the signals by which schedulers and terminals end one. Imports no torch."""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tosa_cli.errors import TrainingError

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""SIGTERM comes from `kill`, from schedulers and from `timeout`; SIGHUP from a terminal that is closed."""


@dataclass
class Request:
    """Whether a run was asked to stop."""

    asked: bool = False


INSIST_EVERY = 0.5
"""Seconds after which a request that a library swallowed is made again."""


class _Interrupter:
    """Raises `KeyboardInterrupt`, and once more for as long as it is lost on its way.

    Python raises it between any two steps, so also where a library takes every error for a package that is missing, or
    where exceptions are ignored. Who asked has then gone, and the run would go on to its end.
    """

    def __init__(self) -> None:
        self.asked, self.ended = False, False
        self._raised: BaseException | None = None
        self._is_again = False

    def __call__(self, number: int, _: object) -> None:
        is_again, self._is_again = self._is_again, False
        # Schedulers and `timeout` send theirs to the process and to its group; a second Ctrl-C is meant.
        if self._is_underway() and (is_again or number != signal.SIGINT):
            return
        if not self.asked:
            self.asked = True
            # No locks are taken, which the interrupted step may hold.
            _thread.start_new_thread(self._insist, (number,))
        self._raised = KeyboardInterrupt()
        raise self._raised

    def _is_underway(self) -> bool:
        """Whether what was raised is being handled, as by what tidies up."""
        error, seen = sys.exc_info()[1], set()
        while error is not None and error not in seen:
            if error is self._raised:
                return True
            seen.add(error)
            error = error.__context__
        return False

    def _insist(self, number: int) -> None:
        while not self.ended:
            time.sleep(INSIST_EVERY)
            handler: Any = signal.getsignal(number)
            if not self.ended and handler is self:
                self._is_again = True
                _thread.interrupt_main(signal.Signals(number))


@contextmanager
def raising_interrupt() -> Iterator[None]:
    """Have every one of the signals raise `KeyboardInterrupt`, as Ctrl-C does, whatever a library makes of it.

    Raises:
        KeyboardInterrupt: In place of an error that the body ends with after it was asked to stop.
    """
    interrupter = _Interrupter()
    try:
        with _handled(interrupter):
            yield
    except BaseException as error:
        went_well = isinstance(error, SystemExit) and not error.code
        tells_of_it = isinstance(error, (KeyboardInterrupt, TrainingError))
        if not interrupter.asked or went_well or tells_of_it:
            raise
        raise KeyboardInterrupt from error
    finally:
        interrupter.ended = True


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

    with _handled(note) as before:
        request.asked = any(isinstance(kept, _Interrupter) and kept.asked for kept in before)
        yield request


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[Collection[Any]]:
    """Hand the signals to a handler, and give those they had; left out are those that are ignored, as after `nohup`. In
    other threads than the main one Python takes no handlers."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in STOPPING}
        before = {number: kept for number, kept in before.items() if kept not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield before.values()
    finally:
        for number, kept in before.items():
            signal.signal(number, kept)
