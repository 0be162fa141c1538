"""From a folder in timm's format to a dense model: whatever is broken or foreign is told in a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.sentences import fragments
from tosa_cli.api import convert
from tosa_cli.config import TosaConfig
from tosa_cli.errors import CheckpointError, SourceError, UnsupportedModelError
from tosa_cli.hub.source import load_source
from tosa_cli.workflow.save import save

from ..model.tiny_models import LAYERS, MODELS, make_images, make_tosa, make_vit
from .sources import (
    assert_same,
    edit_config,
    make_five_classes,  # noqa: F401 (the fixture `vit`)
    source_error,
    split_weights,
    write_folder,
)
from .stub_hub import (
    StubHub,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_written_by_timm_is_read(name: str, tmp_path: Path) -> None:
    model = make_vit(name, num_classes=5)
    loaded = load_source(str(write_folder(tmp_path / "dense", model)))
    assert_same(loaded, model)
    assert loaded.name == name and loaded.hub_id is None and loaded.revision is None


def test_a_source_is_loaded_in_inference_mode_too(tmp_path: Path, vit: nn.Module) -> None:
    folder = write_folder(tmp_path / "dense", vit)
    with torch.inference_mode():
        assert_same(load_source(str(folder)), vit)


def test_weights_that_are_split_are_read_by_their_index(tmp_path: Path, vit: nn.Module) -> None:
    folder = split_weights(write_folder(tmp_path / "dense", vit))
    assert_same(load_source(str(folder)), vit)
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = source_error(folder, CheckpointError)
    assert "model-00002-of-00003.safetensors" in message


def test_a_folder_may_be_named_as_timm_does(tmp_path: Path, vit: nn.Module) -> None:
    assert_same(load_source(f"local-dir:{write_folder(tmp_path / 'dense', vit)}"), vit)


def test_a_folder_here_wins_over_a_repository_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vit: nn.Module
) -> None:
    write_folder(tmp_path / "org" / "name", vit)
    monkeypatch.chdir(tmp_path)
    assert_same(load_source("org/name"), vit)


def test_a_folder_is_converted(tmp_path: Path, vit: nn.Module) -> None:
    folder = str(write_folder(tmp_path / "dense", vit))
    model = convert(folder, TosaConfig(layers=LAYERS, keep_rate=1.0))
    assert torch.allclose(model(make_images()), vit(make_images()), atol=1e-4)
    assert model.provenance.source == folder and model.provenance.base_model == "test_vit"


def test_a_path_is_a_folder_or_a_weights_file(tmp_path: Path, vit: nn.Module) -> None:
    folder, file = write_folder(tmp_path / "dense", vit), tmp_path / "test_vit.safetensors"
    save_file(vit.state_dict(), file)
    for path in (folder, file):
        model = convert(path, TosaConfig(layers=LAYERS, keep_rate=1.0))
        assert torch.allclose(model(make_images()), vit(make_images()), atol=1e-4)
        assert model.provenance.source == str(path)


def test_a_model_whose_weights_are_not_finite_is_refused_with_the_first_key() -> None:
    model = make_vit(num_classes=5)
    model.blocks[1].mlp.fc2.weight.data[3, 4] = float("inf")
    model.head.bias.data[0] = float("nan")
    with pytest.raises(CheckpointError, match=fragments.TEST_VIT_BLOCKS_1_MLP):
        convert(model, TosaConfig(layers=LAYERS))


def test_another_image_size_resamples_the_positions_of_a_folder(tmp_path: Path, vit: nn.Module) -> None:
    model = load_source(str(write_folder(tmp_path / "dense", vit)), img_size=(96, 128)).model
    assert model.patch_embed.img_size == (96, 128) and model.pos_embed.shape[1] == 1 + 6 * 8
    assert torch.equal(model.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)


def test_another_number_of_classes_makes_a_new_head_and_nothing_else(tmp_path: Path, vit: nn.Module) -> None:
    model = load_source(str(write_folder(tmp_path / "dense", vit)), num_classes=3).model
    assert model(make_images()).shape == (2, 3)
    assert torch.equal(model.forward_features(make_images()), vit.forward_features(make_images()))


def test_without_weights_a_folder_gives_the_architecture_alone(tmp_path: Path, vit: nn.Module) -> None:
    model = load_source(str(write_folder(tmp_path / "dense", vit)), pretrained=False).model
    assert model.num_classes == 5 and not torch.equal(model.pos_embed, vit.pos_embed)


@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda state: state.pop("blocks.3.attn.qkv.bias"), "'blocks.3.attn.qkv.bias'"),
        (lambda state: state.update(surplus=torch.ones(1)), "'surplus'"),
        (lambda state: state.update({"norm.weight": torch.ones(7)}), "norm.weight"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_weights_of_a_folder_must_fit_whether_or_not_the_head_is_replaced(
    tmp_path: Path, vit: nn.Module, change: Callable[[dict[str, Any]], Any], key: str, num_classes: int | None
) -> None:
    folder = write_folder(tmp_path / "dense", vit)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    message = source_error(folder, CheckpointError, num_classes=num_classes)
    assert key in message and str(folder) in message


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(num_classes=7),
        lambda values: values["model_args"].update(num_classes=7),
        lambda values: (values.update(num_classes=7), values["model_args"].update(num_classes=7)),
    ],
    ids=["top", "model_args", "both"],
)
def test_a_wrong_number_of_classes_in_the_configuration_never_gives_a_head_at_random(
    tmp_path: Path, vit: nn.Module, change: Callable[[dict[str, Any]], Any]
) -> None:
    folder = edit_config(write_folder(tmp_path / "dense", vit), change)
    assert "7" in source_error(folder, CheckpointError)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{", "config.json"),
        (b"", "config.json"),
        (b"\xff\xfe", "config.json"),
        (b"[1, 2]", "list"),
        (b'"test_vit"', "str"),
        (b"{}", "'architecture'"),
        (b'{"architecture": 5}', "'architecture'"),
        (b'{"architecture": "vit_of_mine"}', "'vit_of_mine'"),
        (b'{"architecture": "test_vit", "pretrained_cfg": 5}', "(AttributeError: "),
        (b'{"architecture": "test_vit", "pretrained_cfg": {"no": 1}}', "'no'"),
        (b'{"architecture": "test_vit", "pretrained_cfg": {}, "model_args": {"no": 1}}', "'no'"),
        (b'{"architecture": "test_vit", "pretrained_cfg": {}, "model_args": 5}', "(AttributeError: "),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(
    tmp_path: Path, vit: nn.Module, content: bytes, named: str
) -> None:
    folder = write_folder(tmp_path / "dense", vit)
    (folder / "config.json").write_bytes(content)
    message = source_error(folder, CheckpointError)
    assert named in message and str(folder) in message


def test_a_folder_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "dense", timm.create_model("test_resnet"))
    assert "ResNet" in source_error(folder, UnsupportedModelError)


def test_a_folder_without_a_configuration_or_weights_is_refused(tmp_path: Path, vit: nn.Module) -> None:
    folder = write_folder(tmp_path / "dense", vit)
    (folder / "model.safetensors").unlink()
    assert str(folder) in source_error(folder, CheckpointError)
    (folder / "config.json").unlink()
    assert "config.json" in source_error(folder, CheckpointError)


@pytest.mark.parametrize("share", [0.5, 0.001, 0])
def test_weights_of_a_folder_that_are_cut_short_are_refused(tmp_path: Path, vit: nn.Module, share: float) -> None:
    folder = write_folder(tmp_path / "dense", vit)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(share * weights.stat().st_size)])
    assert str(folder) in source_error(folder, CheckpointError)


def test_a_converted_folder_is_not_converted_twice(tmp_path: Path, vit: nn.Module) -> None:
    folder = save(make_tosa(vit), tmp_path / "converted")
    assert str(folder) in source_error(folder, SourceError)
    message = source_error(folder / "model.safetensors", CheckpointError, architecture="test_vit")
    assert "'selectors.2.conv1." in message


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "./nowhere", "../nowhere/file.pth", "nowhere.safetensors", "a/b/c"]
)
def test_a_path_to_nothing_is_not_taken_for_a_repository(path: str, stub_hub: StubHub) -> None:
    for source in (path, f"local-dir:{path}"):
        assert str(Path(path)) in source_error(source, SourceError)
    assert stub_hub.requests == []
