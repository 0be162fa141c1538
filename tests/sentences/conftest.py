"""Where the rows of the tables run: an empty directory, with a model of each kind for those that ask for one."""

import shutil
from pathlib import Path

import pytest

from tests.hub.sources import write_folder
from tests.hub.stub_hub import start_stub_hub  # noqa: F401 (the fixture `stub_hub`)
from tests.model.tiny_models import make_tosa, make_vit
from tosa_cli.workflow.save import save


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which a row runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dense`, a timm model of five classes, and `model`, which is converted from such a one."""
    folder = tmp_path_factory.mktemp("models")
    write_folder(folder / "dense", make_vit(num_classes=5))
    save(make_tosa(make_vit(num_classes=5)), folder / "model")
    return folder


@pytest.fixture
def dense(models: Path, place: Path) -> Path:
    """A timm model of five classes, in the folder `dense`."""
    return Path(shutil.copytree(models / "dense", place / "dense")).relative_to(place)


@pytest.fixture
def model(models: Path, place: Path) -> Path:
    """A converted model of five classes, in the folder `model`."""
    return Path(shutil.copytree(models / "model", place / "model")).relative_to(place)
