"""What is written into a model folder, and which models are not written at all."""

import copy
import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

import tosa_cli
from tests.sentences import fragments
from tosa_cli.api import convert
from tosa_cli.config import TosaConfig
from tosa_cli.errors import OutputError
from tosa_cli.hub.checkpoint import describe
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import FORMAT_VERSION
from tosa_cli.recipe import load_recipe
from tosa_cli.train.config import DistillConfig, FinetuneConfig
from tosa_cli.workflow.save import save

from ..model.tiny_models import make_tosa, make_vit
from .conftest import FILES


def test_a_folder_holds_weights_configuration_card_and_recipe(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES


def test_no_file_is_a_pickle(folder: Path) -> None:
    for path in folder.iterdir():
        with pytest.raises((pickle.UnpicklingError, EOFError, KeyError, ValueError, IndexError)):
            pickle.loads(path.read_bytes())
        assert path.suffix not in (".bin", ".pth", ".pt", ".pkl")


def test_the_weights_have_timms_own_key_names_and_those_of_the_selectors(folder: Path) -> None:
    keys = set(load_file(folder / "model.safetensors"))
    assert {key for key in keys if not key.startswith("selectors.")} == set(make_vit(num_classes=5).state_dict())
    assert {key.split(".")[1] for key in keys if key.startswith("selectors.")} == {"2", "4", "6"}


def test_the_configuration_has_timms_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "tosa_vit"  # so timm without tosa refuses it, where it would load it as dense
    assert config["num_classes"] == 5 and config["num_features"] == 64 and "num_classes" not in config["model_args"]
    args = config["model_args"]
    assert args["base_architecture"] == "test_vit" and args["img_size"] == [160, 160]
    assert {name: args[name] for name in TosaConfig.field_names()} == make_tosa(
        keep_rate=(0.3, 0.5, 0.7)
    ).config.to_dict()
    assert config["tosa"]["format_version"] == FORMAT_VERSION
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5] and "architecture" not in config["pretrained_cfg"]


def test_describing_a_model_does_not_change_it(model: TosaViT) -> None:
    before = describe(model)
    assert describe(model) == before == json.loads(json.dumps(before))


def test_everybody_who_may_read_files_here_may_read_these(model: TosaViT, tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        folder = save(model, tmp_path / "model")
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


def test_the_recipe_is_what_made_the_model(model: TosaViT, tmp_path: Path) -> None:
    model = convert(make_vit(num_classes=5), model.config)
    provenance = model.provenance.after("distilled", DistillConfig(data_dir="photos", lr=0.02).to_dict())
    model.provenance = provenance.after("finetuned", FinetuneConfig(data_dir="photos").to_dict())
    folder = save(model, tmp_path / "model")
    sections = load_recipe(str(folder / "recipe.yaml")).sections
    assert sections["convert"]["layers"] == [2, 4, 6] and sections["convert"]["keep_rate"] == [0.3, 0.5, 0.7]
    assert DistillConfig.from_dict(sections["distill"]) == DistillConfig(data_dir="photos", lr=0.02)
    assert FinetuneConfig.from_dict(sections["finetune"]) == FinetuneConfig(data_dir="photos")
    versions = yaml.safe_load((folder / "recipe.yaml").read_text())["versions"]
    assert versions["tosa-cli"] == tosa_cli.__version__ and versions["torch"] == str(torch.__version__)


def test_a_pruned_model_is_not_saved(model: TosaViT, tmp_path: Path) -> None:
    pruned = copy.deepcopy(model)
    pruned.prune_intermediate_layers([1])
    with pytest.raises(OutputError, match="pruned"):
        save(pruned, tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_a_model_that_was_built_by_its_class_is_not_saved_and_the_way_out_is_told(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
    model = convert(VisionTransformer(**sizes).eval(), TosaConfig(layers=(2, 4)))
    with pytest.raises(OutputError, match=fragments.VISIONTRANSFORMER_TIMM_CREATE_MODEL):
        save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    save(convert(timm.create_model("vit_tiny_patch16_224", **sizes).eval(), model.config), tmp_path / "model")
