"""kill -9 at each change of the file system that a command makes: old or new is there, whole, and it works again.

A command runs once in a child, and what a kill would leave is copied before each change that Python's audit events
tell of, and looked at. Of those that leave the same names, the first is then made: the child is killed for good, and
the same command runs again. The exchange of two folders and the files that safetensors writes make no event, and are
announced.
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

from tests.cli.conftest import WARD, Tosa, write_whole
from tosa_cli import load
from tosa_cli.export import export as exports
from tosa_cli.export import whole as whole_exports
from tosa_cli.hub import checkpoint, writing
from tosa_cli.train import checkpoint as checkpoints
from tosa_cli.workflow.whole_folder import load_converted

LONG = os.environ.get("TOSA_PROPERTIES") == "long"
TRAIN = "-b 8 -j 0 --epochs 1 --device cpu --max-samples 9"
CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

Files = dict[str, bytes]


MATERIAL = ("dense", "photos", "digits", "whole")
"""What commands only read."""


class Changes:
    """Counts changes in a child; before each the directory is copied, or before the one whose turn it is all ends."""

    def __init__(self, folder: Path, copies: Path | None, turn: int) -> None:
        self.folder, self.copies, self.turn, self.count, self.is_copying = folder, copies, turn, 0, False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        path = arguments[0]
        is_path = isinstance(path, (str, bytes, os.PathLike)) and not self.is_copying
        if is_path and os.path.abspath(os.fsdecode(path)).startswith(str(self.folder)):
            self.change()

    def change(self) -> None:
        self.count += 1
        if self.count == self.turn:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.copies is not None:
            self.is_copying = True
            target = self.copies / f"{self.count:03d}"
            shutil.copytree(self.folder, target, symlinks=True, ignore=shutil.ignore_patterns(*MATERIAL))
            self.is_copying = False

    def announced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function before and after which there is a change."""

        def run(*arguments: Any, **named: Any) -> Any:
            self.change()
            result = function(*arguments, **named)
            self.change()
            return result

        return run


def run_in_child(tosa: Tosa, command: str, copies: Path | None = None, turn: int = 0) -> bool:
    """Run a command in a child, which may be killed at one of its changes; whether it was."""
    reading, told = os.pipe()
    child = os.fork()
    if child == 0:
        code = 3
        try:
            torch.manual_seed(0)
            changes = Changes(Path.cwd(), copies, turn)
            writing.exchange = changes.announced(writing.exchange)
            checkpoint.save_file = changes.announced(checkpoint.save_file)
            checkpoints.save_file = changes.announced(checkpoints.save_file)
            if modeling := sys.modules.get("transformers.modeling_utils"):
                modeling.safe_save_file = changes.announced(modeling.safe_save_file)  # type: ignore[attr-defined]
            sys.addaudithook(changes.audit)
            done = tosa(command)
            code = done.code
            os.write(told, done.err.encode())
        except BaseException:
            os.write(told, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(told)
    with os.fdopen(reading) as found:
        text = found.read()
    status = os.waitpid(child, 0)[1]
    was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert was_killed or status == 0, text
    return was_killed


def contents(path: Path) -> Files:
    """What a folder holds, or a file."""
    files = [path] if path.is_file() else path.iterdir() if path.exists() else []
    return {file.name: file.read_bytes() for file in files}


def certain(files: Files) -> Files:
    """The files of a model folder without those that tell speeds, which differ from run to run."""
    return {name: content for name, content in files.items() if name not in ("README.md", "config.json")}


def check_every_kill(tosa: Tosa, command: str, target: Path, whole: Callable[[Path], Any], again: str = "") -> int:
    """Look at what a kill at each change of a command would leave, and make those that leave different names.

    Args:
        tosa: Runs it.
        command: The command.
        target: What it writes.
        whole: Checks that this is whole.
        again: What the command needs to run once more where it had ended.

    Returns:
        How many changes it makes.
    """
    place, copies = Path.cwd(), Path.cwd().with_name("copies")
    shutil.copytree(place, place.with_name("start"), symlinks=True)
    before = contents(target)
    run_in_child(tosa, command, copies)
    new, names, seen = contents(target), set(os.listdir()), set()
    turns = sorted(copies.iterdir())
    for turn, left in enumerate(turns, start=1):
        here = contents(left / target)
        is_new = certain(here) == certain(new) and all(
            here[name] != before.get(name) for name in here.keys() - certain(here)
        )
        assert here == before or is_new, f"killed at change {turn} of {len(turns)}"
        kind = (here == before, frozenset(os.listdir(left)))
        if kind in seen:
            continue
        seen.add(kind)
        restore(place)
        assert run_in_child(tosa, command, turn=turn)
        assert frozenset(os.listdir()) - set(MATERIAL) == kind[1]
        if here:
            whole(target)
        done = tosa(command)
        if done.code and again:
            done = tosa(f"{command} {again}")
        assert done.code == 0, f"killed at change {turn} of {len(turns)}: {done.err}"
        whole(target)
        assert set(os.listdir()) == names, f"killed at change {turn} of {len(turns)}"
    return len(turns)


def restore(folder: Path) -> None:
    """Bring the directory back to the start, itself in its place."""
    for path in folder.iterdir():
        if path.name not in MATERIAL:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    start = folder.with_name("start")
    shutil.copytree(start, folder, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*MATERIAL))


@pytest.fixture
def place(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory below the test's with few images, a dense model and a converted one."""
    place = tmp_path / "place"
    place.mkdir()
    for name in (*MATERIAL[:3], "dense-tosa"):
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
        ("convert dense --layers 2 --overwrite", "dense-tosa", ""),
        ("convert dense --layers 2 -o new", "new", "--overwrite"),
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


@pytest.mark.parametrize(
    ("command", "target", "again"),
    [
        (f"convert whole --whole {WARD} -o new", "new", "--overwrite"),
        ("distill whole-tosa --data-dir photos --max-samples 2", "whole-tosa", ""),
        *(
            [
                ("distill whole-tosa --data-dir photos -b 4 -j 0 --epochs 1 --max-samples 6", "whole-tosa", ""),
                (f"convert whole --whole {WARD} --keep-rate 0.7 -o whole-tosa --overwrite", "whole-tosa", ""),
                (
                    "finetune whole-tosa --data-dir photos -b 4 --epochs 1 --objective features -o new",
                    "new",
                    "--overwrite",
                ),
                ("eval whole-tosa --data-dir photos --max-samples 2 --update-card", "whole-tosa", ""),
            ]
            if LONG
            else []
        ),
    ],
)
def test_a_whole_model_is_the_old_or_the_new_one(
    place: Path, tosa: Tosa, command: str, target: str, again: str
) -> None:
    write_whole()
    if "distill" in command:
        selector = "attention" if "--epochs" in command else "similarity"
        tosa(f"convert whole --whole --layers 2 --selector {selector} --bypass linear -o whole-tosa --overwrite")

    def whole(folder: Path) -> None:
        assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= set(os.listdir(folder))
        load_converted(str(folder))

    assert check_every_kill(tosa, command, Path(target), whole, again) > 10


def test_an_export_that_is_killed_leaves_the_old_file_or_the_new_one(
    place: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = tosa("export dense-tosa --format pt2 --json")
    assert exported.code == 0
    content, report = Path("dense-tosa.pt2").read_bytes(), exported.json
    check = exports.CheckReport(**report["check"])

    def write(job: Any, path: Path) -> tuple[Path, Any, None, None]:
        path.write_bytes(content + b"new")
        return path, check, None, None

    monkeypatch.setattr(exports, "_export_pt2", write)
    assert check_every_kill(tosa, "export dense-tosa --format pt2 --overwrite", Path("dense-tosa.pt2"), bool) > 4


def test_an_export_of_a_whole_model_that_is_killed_leaves_the_old_file_or_the_new_one(
    place: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole()
    Path("whole.onnx").write_bytes(b"old")

    def write(model: Any, path: Path, **_: Any) -> tuple[str, ...]:
        path.write_bytes(b"new")
        return ("logits",)

    monkeypatch.setattr(whole_exports, "write_whole", write)
    monkeypatch.setattr(whole_exports, "OnnxModule", lambda file: file.read_bytes())
    monkeypatch.setattr(whole_exports, "_difference", lambda *_: 0.0)

    def whole(file: Path) -> None:
        assert file.read_bytes() in (b"old", b"new")

    assert check_every_kill(tosa, "export whole-tosa -o whole.onnx --overwrite", Path("whole.onnx"), whole) > 4
