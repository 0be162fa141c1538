"""A model folder is read strictly: what is broken in it is told by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tosa_cli.errors import SourceError
from tosa_cli.hub.checkpoint import is_model_folder, load
from tosa_cli.provenance import FORMAT_VERSION

from .conftest import ARGS, drop, load_error, set_value


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda state: state.pop("norm.weight"), "'norm.weight'"),
        (lambda state: state.pop("selectors.4.conv2.bias"), "'selectors.4.conv2.bias'"),
        (lambda state: state.update(surplus=torch.ones(1)), "'surplus'"),
        (lambda state: state.update(mask_token=torch.ones(1, 64)), "'mask_token'"),
        (lambda state: state.update({"pre_logits.fc.weight": torch.ones(1)}), "'pre_logits.fc.weight'"),
        (lambda state: state.update({"selectors.3.conv1.bias": torch.ones(1)}), "'selectors.3.conv1.bias'"),
        (lambda state: state.update({"head.weight": torch.ones(7, 64)}), "head.weight"),
        (lambda state: state.update({"selectors.2.conv1.bias": torch.ones(7)}), "selectors.2.conv1.bias"),
        (lambda state: state.update(pos_embed=torch.ones(1, 50, 64)), "pos_embed"),
    ],
)
def test_weights_that_do_not_fit_are_told_by_key(
    folder: Path, change: Callable[[dict[str, Any]], Any], key: str
) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    assert key in load_error(folder)


@pytest.mark.parametrize("share", [0.9, 0.01, 0])
def test_weights_that_are_cut_short_are_called_broken(folder: Path, share: float) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(share * weights.stat().st_size)])
    load_error(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (set_value("tosa", "format_version", value=FORMAT_VERSION + 1), "pip install -U tosa-cli"),
        (set_value("tosa", "format_version", value="1"), "format_version"),
        (drop("tosa", "format_version"), "format_version"),
        (set_value("tosa", "sorce", value="x"), "'sorce'"),
        (drop("tosa"), "'tosa'"),
        (set_value("tosa", value=[]), "'tosa'"),
        (drop(ARGS), "'model_args'"),
        (set_value(ARGS, value=3), "'model_args'"),
        (set_value("pretrained_cfg", value=None), "'pretrained_cfg'"),
        (set_value("pretrained_cfg", "no", value=1), "'no'"),
        (drop(ARGS, "base_architecture"), "'base_architecture'"),
        (set_value(ARGS, "base_architecture", value="vit_of_mine"), "vit_of_mine"),
        (set_value(ARGS, "base_architecture", value=5), "config.json"),
        (set_value(ARGS, "base_architecture", value="test_resnet"), "config.json"),
        (set_value(ARGS, "base_architecture", value="tosa_vit"), "config.json"),
        (drop(ARGS, "layers"), "'layers'"),
        (set_value(ARGS, "layers", value="2,4,6"), "layers"),
        (set_value(ARGS, "layers", value=[2, 4, 9]), "Layer 9"),
        (set_value(ARGS, "layers", value=[2, 3, 6]), "2 and 3"),
        (set_value(ARGS, "keep_rate", value=3), "layer 2"),
        (set_value(ARGS, "keep_rat", value=0.5), "'keep_rat'"),
        (set_value(ARGS, "selector", value="oracle"), "'oracle'"),
        (set_value(ARGS, "img_size", value="big"), "config.json"),
        (set_value(ARGS, "selector_kernel", value=3), "selectors.2.conv1.weight"),
        (set_value(ARGS, "selector", value="random"), "'selectors.2.conv1."),
        (set_value("num_classes", value=7), "7"),
        (set_value(ARGS, "num_classes", value=7), "7"),
        (set_value("architecture", value="test_vit"), "`tosa convert"),
        (drop("architecture"), "`tosa convert"),
    ],
)
def test_a_configuration_of_the_wrong_shape_is_told(
    folder: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    assert named in load_error(folder)


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff"])
def test_a_configuration_that_is_no_object_is_told(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in load_error(folder)
    assert not is_model_folder(folder)


def test_a_folder_that_lacks_a_file_is_told(folder: Path) -> None:
    assert is_model_folder(folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in load_error(folder)
    (folder / "config.json").unlink()
    assert "config.json" in load_error(folder)
    assert not is_model_folder(folder)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/no/where", "a/b/c"])
def test_a_folder_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(SourceError, match=rf"{Path(name)}\b.*`tosa convert`"):
        load(name)
