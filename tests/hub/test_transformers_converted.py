"""What is converted from transformers' format: folders that compute the same, and the names of classes."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tosa_cli
from tests.sentences import fragments
from tosa_cli.api import convert
from tosa_cli.config import TosaConfig
from tosa_cli.errors import CheckpointError
from tosa_cli.hub.source import load_source
from tosa_cli.model.class_names import class_names

from ..model.tiny_models import make_images, make_vit
from .transformers_folders import TOLERANCE
from .transformers_models import NAMES, make, make_pixels, output_of, published, save, tokens_of


def convert_all(folder: Path) -> tosa_cli.TosaViT:
    return convert(str(folder), TosaConfig(layers=(2,), keep_rate=1.0))


# ---------------------------------------------------------------------- the converted folder


@pytest.mark.parametrize("name", NAMES)
def test_a_converted_folder_loads_and_computes_what_transformers_did(name: str, tmp_path: Path) -> None:
    theirs = make(published(name))
    processor = published(name, "preprocessor_config.json")
    model = convert_all(save(theirs, tmp_path / "theirs", processor))
    tosa_cli.save(model, tmp_path / "ours")
    images = make_pixels(theirs)
    loaded = tosa_cli.load(tmp_path / "ours")
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    for ours in (loaded, by_timm):
        with torch.no_grad():
            assert (ours(images) - output_of(theirs, images)).abs().max() <= TOLERANCE
        data = timm.data.resolve_model_data_config(ours)
        assert list(data["mean"]) == processor["image_mean"] and list(data["std"]) == processor["image_std"]
        assert tuple(data["input_size"]) == (3, *images.shape[2:])


@pytest.mark.parametrize("front", ["", "module.", "model."])
def test_weights_of_a_type_that_is_no_float_are_refused_before_they_are_joined(tmp_path: Path, front: str) -> None:
    folder = save(make(published("google/vit-base-patch16-224"), "ViTModel"), tmp_path / "theirs")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    query = next(key for key in state if key.endswith("query.weight"))
    torch.save({front + key: value.to(torch.int8) if key == query else value for key, value in state.items()},
               folder / "pytorch_model.bin")  # fmt: skip
    with pytest.raises(CheckpointError, match=f"'{front}{query}' is of type int8"):
        load_source(str(folder))


@pytest.mark.parametrize("wrap", [
    lambda state: {f"module.{key}": value for key, value in state.items()},
    lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3},
    lambda state: {"module": {f"_orig_mod.{key}": value for key, value in state.items()}},
    lambda state: {key.replace("query.", "query.base_layer."): value for key, value in state.items()},
])  # fmt: skip
@pytest.mark.parametrize("name", ["google/vit-base-patch16-224", "facebook/dinov2-small"])
def test_what_training_put_around_weights_is_taken_off(tmp_path: Path, name: str, wrap: Any) -> None:
    folder = save(make(published(name)), tmp_path / "theirs")
    expected = load_source(str(folder)).model.state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(wrap(state), folder / "pytorch_model.bin")
    found = load_source(str(folder)).model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_tiny_epsilon_is_kept_in_the_folder(tmp_path: Path) -> None:
    # Tokens so small that timm's own 1e-6 would be most of their variance.
    theirs = make(published("google/vit-base-patch16-224"), "ViTModel")
    with torch.no_grad():
        theirs.embeddings.patch_embeddings.projection.weight *= 1e-4
        theirs.embeddings.patch_embeddings.projection.bias *= 1e-4
        theirs.embeddings.position_embeddings *= 1e-4
    tosa_cli.save(convert_all(save(theirs, tmp_path / "theirs")), tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_args"]["norm_eps"] == 1e-12
    images = make_pixels(theirs)
    loaded = tosa_cli.load(tmp_path / "ours")
    with torch.no_grad():
        expected = tokens_of(theirs, images)
        assert (loaded.forward_features(images) - expected).abs().max() <= TOLERANCE
        for module in loaded.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6
        assert (loaded.forward_features(images) - expected).abs().max() > 0.01


def test_class_names_go_into_the_folder_and_its_card(tmp_path: Path) -> None:
    labels = {0: "owl", 1: "cat", 2: "dog"}
    theirs = make(published("google/vit-base-patch16-224"), id2label=labels)
    folder = tosa_cli.save(convert_all(save(theirs, tmp_path / "theirs")), tmp_path / "ours")
    assert json.loads((folder / "config.json").read_text())["label_names"] == ["owl", "cat", "dog"]
    assert fragments.OWL_CAT_DOG in (folder / "README.md").read_text()
    for model in (tosa_cli.load(folder), timm.create_model(f"local-dir:{folder}", pretrained=True)):
        assert list(model.pretrained_cfg["label_names"]) == ["owl", "cat", "dog"]
    resaved = tosa_cli.save(tosa_cli.load(folder), tmp_path / "again")
    assert (resaved / "config.json").read_text() == (folder / "config.json").read_text()


def test_a_new_head_has_no_names_of_the_old_one(tmp_path: Path) -> None:
    theirs = make(published("google/vit-base-patch16-224"), id2label={0: "owl", 1: "cat", 2: "dog"})
    source = load_source(str(save(theirs, tmp_path / "theirs")), num_classes=5)
    assert source.model.num_classes == 5
    expected = tokens_of(theirs.vit, make_pixels(theirs))
    assert (source.model.forward_features(make_pixels(theirs)) - expected).abs().max() <= TOLERANCE
    folder = tosa_cli.save(tosa_cli.convert(source.model, TosaConfig(layers=(2,))), tmp_path / "ours")
    assert "label_names" not in (folder / "config.json").read_text() and "owl" not in (folder / "README.md").read_text()


def test_numbers_are_no_names(tmp_path: Path) -> None:
    theirs = make(published("google/vit-base-patch16-224"), id2label={0: "LABEL_0", 1: "LABEL_1"})
    model = load_source(str(save(theirs, tmp_path))).model
    assert model.num_classes == 2 and not model.pretrained_cfg.get("label_names")


# ---------------------------------------------------------------------- timm's models in transformers' wrapper


def write_wrapped(folder: Path, model: nn.Module, kind: str, front: str = "", **config: Any) -> str:
    """A folder as `TimmWrapper...save_pretrained` writes it."""
    folder.mkdir()
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_size": [3, 160, 160], "license": "mit"}
    values = {"architecture": "test_vit", "architectures": [kind], "model_type": "timm_wrapper", "model_args": None}
    (folder / "config.json").write_text(json.dumps({**values, "pretrained_cfg": cfg, **config}))
    save_file({front + key: value for key, value in model.state_dict().items()}, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("front", ["", "timm_model."])
def test_a_timm_model_that_transformers_finetuned_keeps_its_classes_and_images(tmp_path: Path, front: str) -> None:
    model, names = make_vit("test_vit", num_classes=3), ["cat", "dog", "fox"]
    folder = write_wrapped(
        tmp_path / "own", model, "TimmWrapperForImageClassification", front, num_classes=3, label_names=names
    )
    loaded = load_source(folder)
    images = make_images()
    assert torch.equal(loaded.model(images), model(images))
    assert class_names(loaded.model) == names and tuple(loaded.model.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    assert loaded.provenance(folder).license == "mit" and not loaded.notes
    assert load_source(folder, num_classes=5).has_new_head


def test_a_timm_model_that_transformers_saved_without_a_head_has_none(tmp_path: Path) -> None:
    model = make_vit("test_vit", num_classes=0)
    folder = write_wrapped(tmp_path / "own", model, "TimmWrapperModel", num_classes=1000, label_names=["a"] * 1000)
    loaded = load_source(folder).model
    assert loaded.num_classes == 0 and torch.equal(loaded(make_images()), model(make_images()))


def test_a_size_that_transformers_was_given_is_kept(tmp_path: Path) -> None:
    model = make_vit("test_vit", num_classes=3, img_size=64)
    arguments = {"num_classes": 3, "model_args": {"img_size": 64}}
    loaded = load_source(write_wrapped(tmp_path / "own", model, "TimmWrapperForImageClassification", **arguments))
    assert torch.equal(loaded.model(make_images(size=64)), model(make_images(size=64)))
