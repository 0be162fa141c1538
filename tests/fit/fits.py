"""Models, photos and processes to fit on."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny_runs import distill_config, read, write_photos
from tosa_cli.fit.calibrate import CalibrationReport, calibrate
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.processes import make_accelerator

FITTED = ["linear", "nearest+affine", "nearest+linear"]

SELECTORS = ["similarity", "probe", "attention", "previous", "random"]


class Count:
    """Progress that remembers how far it came."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def advance(self, num_images: int, text: str) -> None:
        self.done += 1


def fit(model: TosaViT, folder: Path, strict: bool = False, progress: Any = None, **values: Any) -> CalibrationReport:
    config = distill_config(**values)
    images = read(model, folder, config, None)
    return calibrate(make_accelerator(config), model, images, strict=strict, progress=progress)


@pytest.fixture(name="photos")
def make_photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


@pytest.fixture(name="scratch")
def make_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder
