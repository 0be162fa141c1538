"""The one module that prints: stdout is data, stderr is talk. Of several processes only the main one prints."""

import json
import math
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text

from tosa_cli.errors import OutputError

# The launchers of `accelerate` and `torch` number their processes so.
is_main_process = os.environ.get("RANK", "0") == "0"

# Names of files and classes are printed as they are: `[raw]` is no style there, and `:x:` no emoji.
PLAIN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False, "quiet": not is_main_process}


class _Stdout(Console):
    """Tells of a pipe that nobody reads, where rich would end without a word."""

    def on_broken_pipe(self) -> None:
        """Go on with the error that is being handled."""
        raise


out = _Stdout(soft_wrap=True, **PLAIN)
err = Console(stderr=True, soft_wrap=True, **PLAIN)

UNBOUNDED = 10_000


def say(message: str) -> None:
    """Tell the user something."""
    err.print(message)


def warn(message: str) -> None:
    """Warn the user of something."""
    err.print(f"Warning: {message}", style="yellow")


def can_ask() -> bool:
    """Whether there is somebody to answer a question."""
    return is_main_process and err.is_terminal and sys.stdin.isatty()


def ask(question: str) -> bool:
    """Ask the user a question, whose default answer is no."""
    return Confirm.ask(Text(question), console=err, default=False)


def next_command(*words: object) -> None:
    """Tell what to type next, word by word, so that names with spaces stay one word in the shell."""
    err.print(f"Next: {shlex.join(map(str, words))}", style="bold")


def fail(message: str) -> None:
    """Say in one sentence what went wrong."""
    err.print("Error:", style="bold red", end=" ")
    err.print(message)


def show_traceback() -> None:
    """Print the exception that is being handled."""
    err.print(traceback.format_exc())


def speak_up() -> None:
    """Let this process print from here on even if it is not the main one: it fails in a way of its own."""
    err.quiet = False


def print_json(values: Any) -> None:
    """Print a report as JSON on stdout; a number that is not finite is null there."""
    if is_main_process:
        with _whole_stdout():
            sys.stdout.write(json.dumps(_finite(values), indent=2) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], footer: Sequence[str] = ()) -> None:
    """Print a table on stdout; numbers stand to the right, the first column to the left."""
    table = Table(show_footer=bool(footer))
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", footer=footer[i] if footer else "", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # rich cuts cells short to fit the console's width; off a terminal there is none to fit.
    wide = out if out.is_terminal else _Stdout(file=out.file, width=UNBOUNDED, **PLAIN)
    with _whole_stdout():
        wide.print(Text(title, style="bold"))  # rich would fold a table's own title to its width
        wide.print(table)


def print_line(text: str) -> None:
    """Print a line on stdout."""
    with _whole_stdout():
        out.print(text)


def flush() -> None:
    """Write what others printed on stdout, such as `--help`."""
    with _whole_stdout():
        pass


@contextmanager
def _whole_stdout() -> Iterator[None]:
    """Write what is printed at once, so that a full disk or a closed pipe is told, and not lost at the end."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        discard_stdout()
        raise OutputError(f"stdout could not be written ({error.strerror or error}): write it elsewhere.") from error


def discard_stdout() -> None:
    """Write what comes on stdout, and what is left to write, to nowhere: Python would fail once more at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class TrainProgress:
    """A bar with images a second and time left, where stderr is a terminal; nothing elsewhere."""

    def __init__(self, bar: Progress, description: str, unit: str = "images") -> None:
        self._bar = bar
        self._unit = unit
        self._task = bar.add_task(description, total=None, speed="", text="")
        self._images = 0

    def start(self, total: int, done: int) -> None:
        """A run of `total` steps starts, of which `done` are behind it."""
        self._bar.reset(self._task, total=total, completed=done)

    def advance(self, num_images: int, text: str = "") -> None:
        """One more step is done."""
        self._images += num_images
        elapsed = self._bar.tasks[self._task].elapsed or 0
        speed = f"{self._images / elapsed:.1f} {self._unit}/s" if elapsed else ""
        self._bar.update(self._task, advance=1, speed=speed, text=text)


@contextmanager
def progress(description: str, unit: str = "images") -> Iterator[TrainProgress]:
    """Show the advance of long work, and how many of what is counted are done in a second."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        yield TrainProgress(bar, description, unit)


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
