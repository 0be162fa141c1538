"""Where the benchmarks keep their figures, how one goes on where it stopped, and how one runs another."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.writer import write_json

HERE = Path(__file__).parent
"""The folder of the pages."""
FIGURES = HERE / "results"
"""The folder of figures and pictures."""
WORK = HERE / "work"
"""Where data and models go unless a benchmark is told otherwise."""
FIVE = (2, 4, 6, 8, 10)
"""The layers of the paper's setting for 12 layers."""


def run_module(name: str, *arguments: Any) -> None:
    """Run a module of this folder as a command in a process of its own."""
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)], check=True)


class Lab:
    """The results so far, in parts with a name for each measurement.

    Args:
        path: The results so far, and where new ones go.
    """

    duration = "seconds"
    """Key of the seconds that a measurement took."""

    def __init__(self, path: Path) -> None:  # noqa: D107
        self.path = path
        self.results: dict[str, Any] = {}
        self.read()

    def read(self) -> None:
        """Take in what is written."""
        if self.path.exists():
            self.results = json.loads(self.path.read_text("utf-8"))

    def measure(self, part: str, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """Measure something unless it is in the results, and write them."""
        if name in self.results.get(part, {}):
            return
        started = time.perf_counter()
        found = run()
        found = {**found, self.duration: time.perf_counter() - started}
        self.record(part, name, found)
        shown = {key: value for key, value in found.items() if not isinstance(value, (dict, list))}
        print(part, name, shown, flush=True)

    def record(self, part: str, name: str, found: dict[str, Any]) -> None:
        """Write one more result; the file before stays until the new one is whole."""
        self.results.setdefault(part, {})[name] = found
        write_json(self.path, self.results)
