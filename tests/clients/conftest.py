"""A converted folder, and what `tosa_cli.load` makes of it: each client is compared with that."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tosa_cli
from tests.model.tiny_models import make_images, make_tosa, make_vit
from tosa_cli.model.tosa_vit import TosaViT

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CLASSES = 7
SETTINGS: dict[str, dict[str, object]] = {
    "paper": {"layers": (2, 4), "keep_rate": 0.5},
    "matched": {
        "layers": (2, 3, 4, 5),
        "keep_rate": 0.5,
        "selector": "similarity",
        "bypass": "nearest+affine",
        "span": 2,
    },
}
"""Two of the presets, as far as six layers allow."""


@pytest.fixture(scope="session")
def source() -> nn.Module:
    return make_vit("test_vit", num_classes=CLASSES)


@pytest.fixture(scope="session", params=list(SETTINGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, source: nn.Module) -> Path:
    model = make_tosa(source, **SETTINGS[request.param])
    return tosa_cli.save(model, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture
def model(folder: Path) -> TosaViT:
    return tosa_cli.load(folder)


@pytest.fixture(scope="session")
def images() -> Tensor:
    return make_images()


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)
