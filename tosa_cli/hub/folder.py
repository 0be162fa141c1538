"""Folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tosa_cli.errors import OutputError


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
        if not (folder / "config.json").is_file():
            raise OutputError(
                f"{folder} is not a model folder and will not be overwritten. Choose another name with -o."
            )
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} cannot be written to: choose another place with -o.")


@contextmanager
def atomic_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder under a temporary name beside it, and rename it when it is whole.

    What the old folder holds beyond the new files is carried over. If the body fails, nothing is left behind and
    an old folder stays as it was.

    Args:
        folder: The folder to write.
        overwrite: Replace a folder that exists.

    Yields:
        The temporary folder to write into.

    Raises:
        OutputError: If the folder cannot be written.
    """
    folder = folder.absolute()
    check_output(folder, overwrite)
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        _replace(folder, temporary)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{folder} could not be written ({reason}). Free space or choose another place.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace(folder: Path, new: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    for entry in folder.iterdir():
        if not (new / entry.name).exists():
            _copy(entry, new / entry.name)
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(old / folder.name)
    try:
        new.rename(folder)
    except OSError:
        (old / folder.name).rename(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
