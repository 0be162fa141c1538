"""Model folders for the rows of the tables, whole and broken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.hub.sources import edit_config


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """A model folder whose configuration was changed."""
    return str(edit_config(folder, change))


def reweighted(folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """A model folder whose weights were changed."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return str(folder)


def rewritten(folder: Path, name: str, content: bytes) -> str:
    """A model folder, one file of which holds something else."""
    (folder / name).write_bytes(content)
    return str(folder)


def without(folder: Path, *names: str) -> str:
    """A model folder without some of its files."""
    for name in names:
        (folder / name).unlink()
    return str(folder)


def written(name: str, content: bytes = b"mine") -> str:
    """A file in the directory of the row."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def cut(path: str | Path, share: float = 0.5) -> Path:
    """A file that is cut short."""
    path = Path(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path
