"""From a file of weights to a dense model: whatever is broken or foreign is told in a sentence."""

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tosa_cli.errors import CheckpointError, SourceError, UnsupportedModelError
from tosa_cli.hub.source import load_source

from ..model.tiny_models import make_images, make_vit
from .sources import (
    WritesMarker,
    assert_same,
    make_five_classes,  # noqa: F401 (the fixture `vit`)
    source_error,
    write_folder,
    write_weights,
)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("test_vit.safetensors", lambda state: state),
        ("test_vit.pth", lambda state: state),
        ("test_vit-mine.r160.pt", lambda state: state),
        ("test_vit.bin", lambda state: {"model": state, "epoch": 3}),
        ("test_vit.pth.tar", lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}}),
        ("test_vit.pth", lambda state: {"model": state, "args": argparse.Namespace(lr=1)}),
    ],
    ids=["safetensors", "pth", "pt", "model", "module", "args"],
)
def test_a_weights_file_is_read_and_its_name_tells_the_architecture(
    tmp_path: Path, vit: nn.Module, name: str, wrap: Callable[[Any], Any]
) -> None:
    loaded = load_source(write_weights(tmp_path / name, wrap(vit.state_dict())))
    assert_same(loaded, vit)
    assert loaded.name == "test_vit" and loaded.hub_id is None


def test_the_longest_architecture_in_the_name_of_a_file_counts(tmp_path: Path) -> None:
    model = make_vit("test_vit2", num_classes=5)
    assert_same(load_source(write_weights(tmp_path / "test_vit2_mine.safetensors", model.state_dict())), model)


def test_the_architecture_of_a_file_can_be_given(tmp_path: Path, vit: nn.Module) -> None:
    path = write_weights(tmp_path / "weights.safetensors", vit.state_dict())
    assert_same(load_source(path, architecture="test_vit"), vit)
    message = source_error(path, SourceError)
    assert str(path) in message and "--architecture" in message
    assert " test_vit " in source_error(path, SourceError, architecture="test_vitt")
    assert "resnet18" in source_error(path, UnsupportedModelError, architecture="resnet18")
    assert "'reg_token'" in source_error(path, CheckpointError, architecture="test_vit2")


def test_a_file_without_a_head_gives_a_model_without_one(tmp_path: Path) -> None:
    model = make_vit(num_classes=0)
    loaded = load_source(write_weights(tmp_path / "test_vit.safetensors", model.state_dict()))
    assert loaded.model.num_classes == 0
    assert_same(loaded, model)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_a_file_tells_the_number_of_channels(tmp_path: Path, in_chans: int) -> None:
    model = make_vit(num_classes=5, in_chans=in_chans)
    path = write_weights(tmp_path / "test_vit.safetensors", model.state_dict())
    loaded, images = load_source(path).model, make_images().mean(1, keepdim=True).expand(-1, in_chans, -1, -1)
    assert loaded.in_chans == in_chans and torch.equal(loaded(images), model(images))


def test_size_and_classes_can_be_changed_for_a_file_too(tmp_path: Path, vit: nn.Module) -> None:
    path = write_weights(tmp_path / "test_vit.safetensors", vit.state_dict())
    model = load_source(path, img_size=(96, 128), num_classes=3).model
    assert model(make_images(size=(96, 128))).shape == (2, 3)
    assert torch.equal(model.blocks[5].mlp.fc1.weight, vit.blocks[5].mlp.fc1.weight)
    assert_same(load_source(path, num_classes=5), vit)
    assert load_source(path, num_classes=0).model(make_images()).shape == (2, 64)


def test_weights_of_a_file_must_fit(tmp_path: Path, vit: nn.Module) -> None:
    state = vit.state_dict()
    del state["norm.weight"]
    for num_classes in (None, 3):
        path = write_weights(tmp_path / "test_vit.safetensors", state)
        assert "'norm.weight'" in source_error(path, CheckpointError, num_classes=num_classes)
    foreign = write_weights(tmp_path / "test_vit_foreign.safetensors", {"bert.embeddings": torch.ones(3, 3)})
    assert "'cls_token'" in source_error(foreign, CheckpointError)


@pytest.mark.parametrize("place", ["file", "folder"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, vit: nn.Module, place: str) -> None:
    marker = tmp_path / "marker"
    content = {**vit.state_dict(), "norm.weight": WritesMarker(marker)}
    if place == "file":
        source = pickled = tmp_path / "test_vit.pth"
    else:
        source = write_folder(tmp_path / "dense", vit)
        (source / "model.safetensors").unlink()
        pickled = source / "pytorch_model.bin"
    write_weights(pickled, content)
    with pytest.raises(AttributeError):
        pickle.loads(pickle.dumps(WritesMarker(marker))).read_marker()
    assert marker.exists()  # so it would have been written
    marker.unlink()
    message = source_error(source, CheckpointError)
    assert str(source) in message and ".safetensors" in message
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.5, 0])
def test_a_weights_file_that_is_cut_short_is_called_broken(
    tmp_path: Path, vit: nn.Module, suffix: str, share: float
) -> None:
    path = tmp_path / f"test_vit{suffix}"
    write_weights(path, vit.state_dict())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert str(path) in source_error(path, CheckpointError)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {1: torch.ones(3)}, "text"], ids=lambda c: type(c).__name__)
def test_a_file_that_holds_no_named_tensors_is_called_broken(tmp_path: Path, content: Any) -> None:
    assert "test_vit.pth" in source_error(write_weights(tmp_path / "test_vit.pth", content), CheckpointError)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid", b"<html>", b"hello, world"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "test_vit.pth"
    path.write_bytes(content)
    assert str(path) in source_error(path, CheckpointError)


@pytest.mark.parametrize("name", ["test_vit.txt", "test_vit.onnx", "test_vit"])
def test_a_file_with_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    message = source_error(tmp_path / name, SourceError)
    assert str(tmp_path / name) in message and ".safetensors" in message
