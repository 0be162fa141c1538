"""Where the benchmarks keep their figures, and how one runs another."""

import subprocess
import sys
from pathlib import Path
from typing import Any

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
