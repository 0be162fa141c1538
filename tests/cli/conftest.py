"""Runs `tosa` in this process as a user would, in a directory of its own with a tiny model and real images."""

import contextlib
import functools
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import pytest
import torch
import typer
from timm.models import save_for_hf

from tests.model.tiny_models import make_vit
from tests.train.tiny_runs import write_digits, write_photos
from tosa_cli.cli import app as command_line

TRAIN = "-b 8 -j 0 --epochs 1 --device cpu"
"""Options of a run of training on little."""


@dataclass
class Done:
    """What a command did: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def row_of(label: str, table: str) -> list[str]:
    """The cells of the row of a printed table that begins with a label."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table.splitlines()]
    (row,) = [row for row in rows if row[0] == label]
    return row


class Tosa(Protocol):
    def __call__(self, command: str, *more: str) -> Done: ...


@functools.cache
def commands() -> Any:
    """The commands as typer makes them of their functions, which takes it longer than many a command: made once."""
    return typer.main.get_command(command_line.app)


def run_tosa(command: str, *more: str) -> Done:
    """Run a command; words are split at spaces, further arguments are taken as they are."""
    code = 0
    with (
        patch.object(command_line, "app", commands()),
        patch.object(sys, "argv", ["tosa", *command.split(), *more]),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            command_line.main()
        except SystemExit as exit:
            code = int(exit.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture
def tosa() -> Tosa:
    """Runs commands in this process."""
    return run_tosa


def write_dense(folder: Path, **settings: Any) -> None:
    """Write a timm model of 10 classes, of 4 layers unless settings say otherwise."""
    model = make_vit("test_vit", **{"img_size": 32, "patch_size": 8, "num_classes": 10, "depth": 4, **settings})
    save_for_hf(model, str(folder), safe_serialization=True)


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`dense` (a timm model of 10 classes), `photos` and `digits` (`train` and `validation`)."""
    folder = tmp_path_factory.mktemp("material")
    write_dense(folder / "dense")
    write_photos(folder / "photos")
    write_digits(folder / "digits" / "train", 40)
    write_digits(folder / "digits" / "validation", 33)
    images = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".jpg", ".png")}
    yield folder
    assert all(path.read_bytes() == content for path, content in images.items()), "call `rewrite` to change an image"


def rewrite(image: Path, content: bytes) -> None:
    """Change one of a test's own images, whose content it shares with the material until then."""
    image.unlink()
    image.write_bytes(content)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, material: Path) -> Path:
    """The current directory, with a copy of the material; images are the same files under other names."""
    shutil.copytree(material / "dense", tmp_path / "dense")
    for images in ("photos", "digits"):
        shutil.copytree(material / images, tmp_path / images, copy_function=os.link)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def converted_once(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which `dense` was converted, without the material."""
    folder = tmp_path_factory.mktemp("converted")
    shutil.copytree(material / "dense", folder / "dense")
    with contextlib.chdir(folder):
        assert run_tosa("convert dense --layers 2,4 --keep-rate 0.5").code == 0
    shutil.rmtree(folder / "dense")
    return folder


@pytest.fixture
def converted(work: Path, converted_once: Path) -> Path:
    """The model folder `dense-tosa`, as `tosa convert` wrote it here."""
    return copy_made(converted_once, work)


@pytest.fixture(scope="session")
def short_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `dense` of two layers, and `dense-tosa`, which was converted from it."""
    folder = tmp_path_factory.mktemp("short")
    write_dense(folder / "dense", depth=2)
    with contextlib.chdir(folder):
        assert run_tosa("convert dense --layers 2 --keep-rate 0.5").code == 0
    return folder


@pytest.fixture
def short(work: Path, short_once: Path) -> Path:
    """As `converted`, but of two layers: for what does not depend on their number, as commands take long for each."""
    return copy_made(short_once, work)


def copy_made(made: Path, work: Path) -> Path:
    """Copy what was made in another directory, as if it had been made in this one."""
    shutil.copytree(made, work, dirs_exist_ok=True)
    for name in ("config.json", "recipe.yaml"):
        path = work / "dense-tosa" / name
        path.write_text(path.read_text().replace(str(made), str(work)))
    return work / "dense-tosa"


WARD = "--layers 2 --selector ward --bypass mean"


def write_whole() -> Path:
    """Write `whole`, a classifier of transformers with its processor, and `whole-tosa`, made of it; of two layers."""
    import transformers

    from tests.model.whole_models import BACKBONE

    torch.manual_seed(0)
    model = transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**{**BACKBONE, "num_hidden_layers": 2}))
    model.save_pretrained("whole")
    transformers.BitImageProcessor(size={"height": 56, "width": 56}, do_center_crop=False).save_pretrained("whole")
    assert run_tosa(f"convert whole --whole {WARD} -o whole-tosa").code == 0
    return Path("whole-tosa")
