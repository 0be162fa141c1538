"""Writing folders and files whole or not at all, by one run at a time. Imports no torch.

A folder is written under a name that the next run of it knows, so that what a killed run left behind is swept. It takes
its place in one step: no kill leaves none.
"""

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from tosa_cli.errors import OutputError
from tosa_cli.hub.folder import STAGING, WEIGHTS, check_output

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other runs from writing a folder or file; within one process this may be nested.

    What a killed run of it left behind is swept.

    Args:
        path: The folder or file; of a link, what it points to.

    Raises:
        OutputError: If another run writes it, or its parent cannot be written to.
    """
    real = path.resolve()
    file = real.with_name(f".{real.name}.lock")
    lock = FileLock(file, is_singleton=True)
    made = [parent for parent in file.parents if not parent.exists()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        if not file.exists():  # where no file can be made, the library waits for one
            raise cannot_write(path, OSError(errno.ENOENT, os.strerror(errno.ENOENT))) from None
        raise OutputError(f"Another run is writing {path}: wait until it has ended.") from None
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        if lock.lock_counter == 1:
            for left in (staging(real), real / STAGING):
                _sweep(left)
        yield
    finally:
        if lock.lock_counter == 1:
            file.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # nothing was written there
            for parent in made:
                parent.rmdir()


@contextmanager
def atomic_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder under another name, and put it into its place when it is whole.

    What the old folder holds beyond the new files is carried over. If the body fails, nothing is left behind and an old
    folder stays as it was. Where the system cannot exchange two folders, and where the folder has to stay the very same
    one, as this process works in it or a volume is mounted there, its files are replaced one by one, the weights last.

    Args:
        folder: The folder to write; of a link, the folder that it points to.
        overwrite: Replace a folder that exists.

    Yields:
        The folder to write into.

    Raises:
        OutputError: If the folder cannot be written, or another run writes it.
    """
    check_output(folder, overwrite)
    real = folder.resolve()
    stays = real.is_dir() and (os.path.ismount(real) or Path.cwd().is_relative_to(real))
    beside, inside = staging(real), real / STAGING
    new = inside if stays else beside
    try:
        with alone(folder):
            try:
                for left in (beside, inside):
                    _sweep(left)
                new.mkdir()
                yield new
                _put(new, real)
            finally:
                for left in (beside, inside):
                    _sweep(left)
    except (OSError, SafetensorError) as error:
        raise cannot_write(folder, error) from error


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """A folder beside a file to be written, empty at first and gone afterwards, for one run at a time.

    Raises:
        OutputError: If another run writes the file, or something cannot be written.
    """
    folder = staging(path.absolute())
    try:
        with alone(path):
            try:
                _sweep(folder)
                folder.mkdir()
                yield folder
            finally:
                _sweep(folder)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; an old one of that name is replaced.

    Raises:
        OutputError: If it cannot be written, or another run writes it.
    """
    write_parts(path, [content])


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file whole or not at all, a part at a time; an old one of that name is replaced.

    Raises:
        OutputError: If it cannot be written, or another run writes it.
    """
    with staging_folder(path) as folder:
        with (folder / path.name).open("wb") as file:
            file.writelines(parts)
        os.replace(folder / path.name, path)


def staging(path: Path) -> Path:
    """Where a folder or file is written before it takes its place."""
    return path.with_name(f".{path.name}{STAGING}")


def cannot_write(path: Path, error: Exception) -> OutputError:
    """Say that something could not be written, and why."""
    reason = getattr(error, "strerror", None) or error
    return OutputError(f"{path} could not be written ({reason}). Free space or choose another place.")


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, so that at no moment there is none under either name.

    Returns:
        Whether they were exchanged: not every system and file system can.
    """
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _put(new: Path, folder: Path) -> None:
    """Put a folder that is whole into the place of another, or where there is none yet."""
    if not folder.exists():
        new.rename(folder)
        return
    names = sorted((path.name for path in new.iterdir()), key=lambda name: name == WEIGHTS)
    if new.parent != folder:
        for entry in folder.iterdir():
            if entry.name not in names:
                _copy(entry, new / entry.name)
        if exchange(new, folder):
            return
        # A rename does not lead into a volume that is mounted there.
        new = Path(shutil.move(new, folder / STAGING))
    _replace_files(new, folder, names)


def _replace_files(new: Path, folder: Path, names: list[str]) -> None:
    # The weights come last: stopped halfway, the old weights still lie beside settings, and a run can be resumed.
    old = new / ".old"
    old.mkdir()
    for name in names[:-1]:
        if (folder / name).exists():
            _copy(folder / name, old / name)
    try:
        for name in names:
            os.replace(new / name, folder / name)
    except BaseException:
        # Which files are replaced is read off the files: Ctrl-C may come between a move and a note of it.
        if (new / names[-1]).exists():
            for name in names:
                if not (new / name).exists():
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


def _sweep(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
