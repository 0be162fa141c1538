"""Model folders as files: telling one, and writing one whole or not at all. Imports no torch."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from tosa_cli.config import ARCHITECTURE
from tosa_cli.errors import CheckpointError, OutputError
from tosa_cli.task import PREDICTOR_ARCHITECTURE

WEIGHTS, CONFIG, CARD, RECIPE = "model.safetensors", "config.json", "README.md", "recipe.yaml"

Kind = Literal["converted", "predictor"]
"""What tosa writes: a converted model, or a model with a decoder, which predicts for every pixel."""


def read_json(path: Path, shown: str | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        shown: What to call it in an error; None takes its path.

    Raises:
        CheckpointError: If the file is missing, is not JSON, or holds something else.
    """
    shown = shown or str(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}, so it is not a model folder.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{shown} cannot be read as JSON ({error}).") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{shown} should hold a JSON object, but holds a {type(values).__name__}.")
    return values


def kind_of(config: Mapping[str, Any]) -> Kind | None:
    """Which kind of model a config.json is of; None if it is of none that tosa writes."""
    kinds: dict[Any, Kind] = {ARCHITECTURE: "converted", PREDICTOR_ARCHITECTURE: "predictor"}
    architecture = config.get("architecture")
    return kinds.get(architecture) if isinstance(architecture, str) else None


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a model that tosa wrote."""
    try:
        return kind_of(read_json(folder / CONFIG)) is not None
    except CheckpointError:
        return False


def check_output(folder: Path, overwrite: bool) -> None:
    """Check that a folder can be written, before any work is done.

    Raises:
        OutputError: If it exists and may not be overwritten, or its parent cannot be written to.
    """
    if folder.is_file():
        raise OutputError(f"{folder} is a file, but a folder is written: choose another name with -o.")
    if folder.exists() and any(folder.iterdir()):
        if not overwrite:
            raise OutputError(f"{folder} already exists. Choose another name with -o, or pass --overwrite.")
        if not is_model_folder(folder):
            raise OutputError(
                f"{folder} is not a model folder and will not be overwritten. Choose another name with -o."
            )
    check_writable(folder.resolve().parent)


def check_writable(folder: Path) -> None:
    """Check that files can be written into a folder, which may have to be made.

    Raises:
        OutputError: If they cannot.
    """
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} cannot be written to: choose another place with -o.")


@contextmanager
def atomic_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder under a temporary name beside it, and rename it when it is whole.

    What the old folder holds beyond the new files is carried over. If the body fails, nothing is left behind and
    an old folder stays as it was. A folder in which this process works stays the same folder: its files are replaced
    one by one, the weights last.

    Args:
        folder: The folder to write; of a link, the folder that it points to.
        overwrite: Replace a folder that exists.

    Yields:
        The temporary folder to write into.

    Raises:
        OutputError: If the folder cannot be written.
    """
    check_output(folder, overwrite)
    real = folder.resolve()
    temporary: Path | None = None
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{real.name}.", dir=real.parent))
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        if Path.cwd().is_relative_to(real):
            _replace_files(real, temporary)
        else:
            _replace(real, temporary)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{folder} could not be written ({reason}). Free space or choose another place.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; an old one of that name is replaced.

    Raises:
        OutputError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path} could not be written ({reason}). Free space or choose another place.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _replace(folder: Path, new: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    for entry in folder.iterdir():
        if not (new / entry.name).exists():
            _copy(entry, new / entry.name)
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    try:
        folder.rename(old / folder.name)
        new.rename(folder)
    finally:
        # Whatever stopped it, Ctrl-C included: the old folder goes only while one stands in its place.
        if not folder.exists():
            (old / folder.name).rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def _replace_files(folder: Path, new: Path) -> None:
    # The weights come last: stopped halfway, the old weights still lie beside settings, and a run can be resumed.
    paths = sorted(new.iterdir(), key=lambda path: path.name == WEIGHTS)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.old.", dir=folder.parent) as kept:
        old = Path(kept)
        for path in paths[:-1]:
            if (folder / path.name).exists():
                _copy(folder / path.name, old / path.name)
        try:
            for path in paths:
                os.replace(path, folder / path.name)
        except BaseException:
            # Which files are replaced is read off the files: Ctrl-C may come between a move and a note of it.
            if paths[-1].exists():
                for name in (path.name for path in paths if not path.exists()):
                    if (old / name).exists():
                        os.replace(old / name, folder / name)
                    else:
                        (folder / name).unlink()
            raise


def _copy(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
