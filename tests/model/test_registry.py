"""timm finds converted models, in whatever order the two packages are imported."""

import subprocess
import sys

import pytest
import timm
import torch

import tosa_cli
from tests.processes import run_program
from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.model.tosa_vit import TosaViT

BUILD = (
    "model = timm.create_model('tosa_vit', base_architecture='test_vit', layers=[2, 4], num_classes=3);"
    "print(type(model).__name__, model.num_classes, list(model.keep_rates))"
)


def test_importing_tosa_alone_brings_neither_torch_nor_timm() -> None:
    code = "import sys, tosa_cli; print(sorted({'torch', 'timm', 'torchvision', 'huggingface_hub'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout == "[]\n"


def test_timm_builds_a_converted_model_whatever_is_imported_first() -> None:
    first = ["model.tosa_vit", "tasks.registry", "hub.checkpoint", "model.flops", "api"]
    imports = ["import tosa_cli, timm.layers, timm", "import timm, tosa_cli"]
    imports += [f"import tosa_cli.{module}; import timm" for module in first]
    for each in imports:
        assert run_program(f"{each}; {BUILD}").stdout == "TosaViT 3 [2, 4]\n"


def test_timm_lists_each_entry_point_once() -> None:
    assert timm.list_models("tosa*") == ["tosa_dense", "tosa_vit"]


def test_timm_builds_a_model_from_its_settings_and_passes_the_rest_on() -> None:
    model = timm.create_model(
        "tosa_vit", base_architecture="test_vit2", layers=[2], keep_rate=[0.3], img_size=64, drop_path_rate=0.1
    )
    assert isinstance(model, TosaViT)
    assert model.config == tosa_cli.TosaConfig(layers=(2,), keep_rate=(0.3,))
    assert model.patch_embed.img_size == (64, 64) and model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


def test_wrong_settings_are_refused_with_a_sentence() -> None:
    with pytest.raises(ConfigError, match="layers"):
        timm.create_model("tosa_vit", base_architecture="test_vit", layers="2,4")
    with pytest.raises(ConfigError, match="'layers'"):
        timm.create_model("tosa_vit", base_architecture="test_vit")
    with pytest.raises(UnsupportedModelError, match="ResNet"):
        timm.create_model("tosa_vit", base_architecture="test_resnet", layers=[2])


def test_what_is_imported_lazily_is_there_and_nothing_else() -> None:
    assert tosa_cli.TosaViT is TosaViT
    assert callable(tosa_cli.convert) and callable(tosa_cli.load) and callable(tosa_cli.save)
    with pytest.raises(AttributeError, match="'nonsense'"):
        _ = tosa_cli.nonsense
