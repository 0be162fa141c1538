"""Folders in timm's format, and what is said of a source that is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from torch import nn

from tosa_cli.errors import TosaError
from tosa_cli.hub.source import Source, load_source

from ..model.tiny_models import make_images, make_vit


def write_folder(folder: Path, model: nn.Module) -> Path:
    """A folder in timm's own format, written by timm."""
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def source_error(source: str | Path, kind: type[TosaError], **args: Any) -> str:
    with pytest.raises(TosaError) as failure:
        load_source(str(source), **args)
    message = str(failure.value)
    assert type(failure.value) is kind, message
    assert "\n" not in message and message.endswith((".", "?"))
    return message


def assert_same(loaded: Source, model: nn.Module) -> None:
    assert not loaded.model.training
    assert torch.equal(loaded.model(make_images()), model(make_images()))


def split_weights(folder: Path, parts: int = 3) -> Path:
    """Split the weights of a folder into parts, with the index of the Hub's libraries."""
    state = load_file(folder / "model.safetensors")
    names = {key: f"model-{1 + i % parts:05d}-of-{parts:05d}.safetensors" for i, key in enumerate(state)}
    for name in set(names.values()):
        save_file({key: value for key, value in state.items() if names[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "model.safetensors").unlink()
    return folder


def write_weights(path: Path, content: Any) -> str:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


class WritesMarker:
    """Writes a file when it is unpickled, as harmful code would."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@pytest.fixture(name="vit", scope="module")
def make_five_classes() -> nn.Module:
    """A model of five classes."""
    return make_vit(num_classes=5)
