"""Who asks a run to stop is heard, whatever a library makes of it, and what tidies up is left in peace."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tosa_cli import interrupts
from tosa_cli.errors import TrainingError
from tosa_cli.interrupts import noted, raising_interrupt

LONG = 20.0


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "INSIST_EVERY", 0.02)


def work(seconds: float = LONG) -> None:
    """Go on for some time, unless somebody interrupts it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.001)


def ask(number: int = signal.SIGTERM) -> None:
    signal.raise_signal(number)


def swallow(number: int = signal.SIGTERM) -> None:
    """Be asked inside a library that takes every error for a package that is missing."""
    with suppress(BaseException):
        ask(number)


@pytest.mark.parametrize("number", interrupts.STOPPING)
def test_a_request_that_a_library_swallows_is_made_again(number: int) -> None:
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt), raising_interrupt():
        swallow(number)
        work()
    assert time.monotonic() - before < LONG / 2


def test_one_that_is_swallowed_twice_is_made_a_third_time() -> None:
    swallowed = 0
    with pytest.raises(KeyboardInterrupt), raising_interrupt():
        swallow()
        for _ in range(2):
            try:
                work()
            except KeyboardInterrupt:
                swallowed += 1
        work()
    assert swallowed == 2


def test_one_that_is_ignored_where_an_object_is_deleted_is_made_again() -> None:
    class Deaf:
        def __del__(self) -> None:
            ask()

    with pytest.raises(KeyboardInterrupt), raising_interrupt(), pytest.warns(pytest.PytestUnraisableExceptionWarning):
        Deaf()
        work()


@pytest.mark.parametrize(
    "made_of_it", [ImportError("initialization failed"), ValueError("no"), SystemExit(1)], ids=repr
)
def test_what_a_library_makes_of_a_request_is_the_request(made_of_it: BaseException) -> None:
    with pytest.raises(KeyboardInterrupt), raising_interrupt():
        try:
            ask()
        except KeyboardInterrupt:
            raise made_of_it from None


def test_other_errors_stay_and_so_does_an_end_that_is_well() -> None:
    with pytest.raises(ValueError, match="mine"), raising_interrupt():
        raise ValueError("mine")
    with pytest.raises(SystemExit), raising_interrupt():
        swallow()
        raise SystemExit(0)
    with pytest.raises(TrainingError), raising_interrupt():
        swallow()
        raise TrainingError("Interrupted. The last checkpoint is here.")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_tidies_up_is_not_interrupted_again(number: int) -> None:
    tidied = []

    @contextmanager
    def folder() -> Iterator[None]:
        try:
            yield
        finally:
            ask(number)
            work(0.1)
            try:
                raise OSError("gone")
            except OSError:
                work(0.1)
            tidied.append(True)

    with pytest.raises(KeyboardInterrupt), raising_interrupt(), folder():
        ask(number)
    assert tidied


def test_a_second_ctrl_c_is_meant() -> None:
    tidied = []
    with pytest.raises(KeyboardInterrupt), raising_interrupt():
        try:
            ask(signal.SIGINT)
        finally:
            ask(signal.SIGINT)
            tidied.append(True)
    assert not tidied


def test_a_run_that_takes_note_knows_of_a_request_that_was_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt), raising_interrupt():
        with noted() as request:
            assert not request.asked
        swallow()
        with noted() as request:
            assert request.asked
            work(0.1)
        work()


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in interrupts.STOPPING]
    with pytest.raises(KeyboardInterrupt), raising_interrupt():
        ask()
    assert [signal.getsignal(number) for number in interrupts.STOPPING] == before
