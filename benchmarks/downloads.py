"""What all that fetch real data share: downloading, and writing a folder whole or not at all."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something the user can put right; its text is one sentence."""


def run_command(command: list[str], folder: Path, purpose: str) -> None:
    """Run `command` in `folder`; on failure say what it was for, with the last line it printed."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"Cannot {purpose}: the command {command[0]} is not installed.") from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"Cannot {purpose}: {lines[-1].strip()}")


def download(command: list[str], pattern: str, folder: Path) -> Path:
    """Run `command`, which downloads one file to where it runs, and move that file into `folder`."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        run_command(command, Path(scratch), f"download {command[-1]}")
        file = next(Path(scratch).glob(pattern))
        return file.rename(folder / file.name)


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download one wheel from the package index into `folder`, without its dependencies."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    return download([*pip, requirement], "*.whl", folder)


def check_target(target: Path, overwrite: bool, marker: str) -> None:
    """Refuse a folder that must not be written, before any work is done.

    Only an empty folder, or one holding `marker`, which these scripts write, may be overwritten.
    """
    if not target.parent.is_dir():
        raise UserError(f"The folder {target.parent} does not exist.")
    if not target.exists():
        return
    if not overwrite:
        raise UserError(f"{target} already exists; pass --overwrite to replace it.")
    if not target.is_dir() or (any(target.iterdir()) and not (target / marker).exists()):
        raise UserError(f"{target} was not written by this script, so --overwrite does not replace it.")


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` if the block succeeds and vanishes if it fails."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
