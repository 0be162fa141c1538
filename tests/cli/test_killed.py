"""kill -9 at each change of the file system that a command makes: old or new is there, whole, and it works again.

Each run is a child of this process, which Python's audit events stop right before the change whose turn it is, and once
more right after the last. Only changes below the directory of the test count. The exchange of two folders and the files
that safetensors writes make no event, and are announced by hand.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Tosa
from tosa_cli import load
from tosa_cli.export import export as exports
from tosa_cli.hub import checkpoint, writing
from tosa_cli.train import checkpoint as checkpoints

TRAIN = "-b 8 -j 0 --epochs 1 --device cpu --max-samples 9"
CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

Files = dict[str, bytes]


class Changes:
    """Counts changes in a child, and kills it before the one whose turn it is."""

    def __init__(self, folder: Path, turn: int) -> None:
        self.folder, self.turn, self.count = str(folder), turn, 0

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            path = arguments[0]
            if isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(
                self.folder
            ):
                self.change()

    def change(self) -> None:
        self.count += 1
        if self.count == self.turn:
            os.kill(os.getpid(), signal.SIGKILL)

    def announced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function before and after which there is a change."""

        def run(*arguments: Any, **named: Any) -> Any:
            self.change()
            result = function(*arguments, **named)
            self.change()
            return result

        return run


def run_killed(tosa: Tosa, command: str, turn: int) -> int | None:
    """Run a command in a child that is killed at one of its changes; how many it made, if it came to its end."""
    reading, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 3
        try:
            changes = Changes(Path.cwd(), turn)
            writing.exchange = changes.announced(writing.exchange)
            checkpoint.save_file = changes.announced(checkpoint.save_file)
            checkpoints.save_file = changes.announced(checkpoints.save_file)
            sys.addaudithook(changes.audit)
            done = tosa(command)
            code = done.code
            os.write(told, str(changes.count).encode() if code == 0 else done.err.encode())
        except BaseException:
            os.write(told, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(told)
    with os.fdopen(reading) as found:
        text = found.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.WEXITSTATUS(status) == 0, text
    return int(text)


def contents(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def without_times(files: Files) -> Files:
    """The files of a model folder without what differs from run to run: speeds, in card and configuration."""
    return {name: content for name, content in files.items() if name not in ("README.md", "config.json")}


def check_every_kill(tosa: Tosa, command: str, target: Path, whole: Callable[[Path], Any], again: str = "") -> int:
    """Kill a command at each change in turn, and look at what it leaves; returns how many changes it makes."""
    start = Path.cwd()
    shutil.copytree(start, start.with_name("start"), symlinks=True)
    before = contents(target) if target.is_dir() else {target.name: target.read_bytes()} if target.exists() else {}
    total = run_killed(tosa, command, 0)
    assert total
    after = contents(target) if target.is_dir() else {target.name: target.read_bytes()}
    new, names = without_times(after), set(os.listdir())
    for turn in range(1, total + 1):
        restore(start)
        assert run_killed(tosa, command, turn) is None
        here = contents(target) if target.is_dir() else {target.name: target.read_bytes()} if target.exists() else {}
        is_new = without_times(here) == new and all(here[name] != before.get(name) for name in here.keys() - new.keys())
        assert here == before or is_new, f"killed at change {turn} of {total}"
        if here:
            whole(target)
        done = tosa(command)
        if done.code and again:
            done = tosa(f"{command} {again}")
        assert done.code == 0, f"killed at change {turn} of {total}: {done.err}"
        whole(target)
        assert set(os.listdir()) == names, f"killed at change {turn} of {total}"
    return total


def restore(folder: Path) -> None:
    """Bring the directory back to the start, itself in its place."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(folder.with_name("start"), folder, symlinks=True, dirs_exist_ok=True)


@pytest.fixture
def place(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory below the test's with few images, a dense model and a converted one."""
    place = tmp_path / "place"
    place.mkdir()
    for name in ("dense", "photos", "digits", "dense-tosa"):
        shutil.move(tmp_path / name, place / name)
    for number, path in enumerate(sorted((place / "photos").iterdir())):
        if number > 9:
            path.unlink()
    (place / "dense-tosa" / "notes.txt").write_text("mine")
    monkeypatch.chdir(place)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    yield place


@pytest.mark.parametrize(
    ("command", "target", "again"),
    [
        ("convert dense --layers 2,4 --overwrite", "dense-tosa", ""),
        ("convert dense --layers 2,4 -o new", "new", "--overwrite"),
        (f"distill dense-tosa --data-dir photos {TRAIN}", "dense-tosa", ""),
        (f"distill dense-tosa --data-dir photos {TRAIN} -o new", "new", "--overwrite"),
        (f"finetune dense-tosa --data-dir digits {TRAIN}", "dense-tosa", ""),
        ("eval dense-tosa --data-dir digits -j 0 --max-samples 8 --update-card", "dense-tosa", ""),
    ],
)
def test_a_command_that_is_killed_leaves_the_old_folder_or_the_new_one(
    place: Path, tosa: Tosa, command: str, target: str, again: str
) -> None:
    def whole(folder: Path) -> None:
        assert {"README.md", "config.json", "model.safetensors", "recipe.yaml"} <= set(os.listdir(folder))
        load(folder)
        json.loads((folder / "config.json").read_text())

    assert check_every_kill(tosa, command, Path(target), whole, again) > 10


def test_an_export_that_is_killed_leaves_the_old_file_or_the_new_one(
    place: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = tosa("export dense-tosa --format pt2 --json")
    assert exported.code == 0
    content, report = Path("dense-tosa.pt2").read_bytes(), exported.json
    check = exports.CheckReport(**report["check"])

    def write(job: Any, path: Path) -> tuple[Path, Any, None]:
        path.write_bytes(content + b"new")
        return path, check, None

    monkeypatch.setattr(exports, "_export_pt2", write)
    assert check_every_kill(tosa, "export dense-tosa --format pt2 --overwrite", Path("dense-tosa.pt2"), bool) > 4
