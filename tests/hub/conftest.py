"""A converted model and its folder, and what the tests of folders share."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tosa_cli.errors import CheckpointError, TosaError
from tosa_cli.hub.checkpoint import load
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.workflow.save import save

from ..model.tiny_models import make_images, make_tosa, make_vit

FILES = {"model.safetensors", "config.json", "README.md", "recipe.yaml"}


@pytest.fixture
def model() -> TosaViT:
    """A converted model of five classes."""
    return make_tosa(make_vit(num_classes=5), keep_rate=(0.3, 0.5, 0.7))


@pytest.fixture
def folder(model: TosaViT, tmp_path: Path) -> Path:
    """Its folder, alone in an empty one."""
    return save(model, tmp_path / "model")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(loaded: nn.Module, model: nn.Module, size: int | tuple[int, int] = 160) -> None:
    assert torch.equal(loaded(make_images(size=size)), model(make_images(size=size)))


def load_error(folder: Path | str, kind: type[TosaError] = CheckpointError) -> str:
    with pytest.raises(TosaError) as failure:
        load(folder)
    message = str(failure.value)
    assert type(failure.value) is kind, message
    assert "\n" not in message and message.endswith(".") and str(folder) in message
    return message


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """No file may grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


ARGS = "model_args"


def set_value(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return change


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        del config[keys[-1]]

    return change
