"""A saved model is loaded again, by tosa and by timm, and computes the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.processes import run_program
from tosa_cli.api import convert
from tosa_cli.config import TosaConfig
from tosa_cli.errors import CheckpointError
from tosa_cli.hub.checkpoint import load
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import Provenance
from tosa_cli.train.config import DistillConfig
from tosa_cli.workflow.save import save

from ..model.test_backbone import SHRUNK
from ..model.tiny_models import LAYERS, MODELS, make_images, make_tosa, make_vit
from .conftest import assert_same, contents
from .stub_hub import (
    StubHub,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)


@pytest.mark.parametrize(
    "settings", [{}, {"selection": "per-head", "query_rows": "all"}, {"selector_kernel": 3}], ids=str
)
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_with_bit_equal_outputs(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = make_tosa(name, **settings)
    loaded = load(save(model, tmp_path / "model"))
    assert_same(loaded, model)
    assert loaded.config == model.config and not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_timm_loads_it_with_bit_equal_outputs_too(name: str, tmp_path: Path) -> None:
    model = make_tosa(name)
    loaded = timm.create_model(f"local-dir:{save(model, tmp_path / 'model')}", pretrained=True).eval()
    assert isinstance(loaded, TosaViT)
    assert_same(loaded, model)


def test_a_new_process_that_imports_tosa_and_timm_alone_loads_it(folder: Path, model: TosaViT, tmp_path: Path) -> None:
    save_file({"images": make_images()}, tmp_path / "images")
    code = (
        "import tosa_cli, timm; from safetensors.torch import load_file, save_file;"
        f"folder, work = {str(folder)!r}, {str(tmp_path)!r}; images = load_file(work + '/images')['images'];"
        "one = timm.create_model('local-dir:' + folder, pretrained=True).eval(); other = tosa_cli.load(folder);"
        "save_file({'timm': one(images), 'tosa': other(images)}, work + '/outputs')"
    )
    run_program(code)
    outputs = load_file(tmp_path / "outputs")
    assert torch.equal(outputs["timm"], model(make_images()))
    assert torch.equal(outputs["tosa"], model(make_images()))


@pytest.mark.parametrize(
    "args",
    [
        {"reg_tokens": 2},
        {"qk_norm": True},
        {"global_pool": "avg"},
        {"in_chans": 1},
        {"init_values": 0.1},
    ],
    ids=str,
)
def test_what_timm_was_told_when_the_source_was_built_is_kept(args: dict[str, Any], tmp_path: Path) -> None:
    model = make_tosa(make_vit(num_classes=5, **args))
    loaded = load(save(model, tmp_path / "model"))
    images = make_images()[:, : model.in_chans]
    assert torch.equal(loaded(images), model(images))


def test_dynamic_image_size_is_kept(tmp_path: Path) -> None:
    model = make_tosa(make_vit(num_classes=5, dynamic_img_size=True))
    assert_same(load(save(model, tmp_path / "model")), model, size=(64, 128))


@pytest.mark.parametrize(
    ("change", "size"),
    [
        (lambda model: model.reset_classifier(3), 160),
        (lambda model: model.reset_classifier(0), 160),
        (lambda model: model.reset_classifier(3, "avg"), 160),
        (lambda model: model.set_input_size(img_size=(96, 128)), (96, 128)),
    ],
    ids=["classes", "no-head", "pool", "size"],
)
def test_what_was_changed_after_conversion_is_kept(
    model: TosaViT, tmp_path: Path, change: Callable[[TosaViT], None], size: Any
) -> None:
    change(model)
    assert_same(load(save(model, tmp_path / "model")), model, size)


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_rpn_224", "vit_base_patch16_xp_224", "deit_tiny_distilled_patch16_224"]
)
def test_other_architectures_survive_too(name: str, tmp_path: Path) -> None:
    model = make_tosa(make_vit(name, **SHRUNK))
    assert_same(load(save(model, tmp_path / "model")), model, 64)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(96, 96), (96, 208)], ids=str)
def test_a_model_loads_at_another_image_size(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    model = make_tosa(name)
    folder = save(model, tmp_path / "model")
    loaded = load(folder, img_size=size)
    assert loaded.patch_embed.img_size == size
    model.set_input_size(img_size=size)
    assert torch.allclose(loaded(make_images(size=size)), model(make_images(size=size)), atol=1e-4)
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size).eval()
    assert_same(by_timm, loaded, size)


def test_positions_saved_for_a_tall_image_are_read_as_such(tmp_path: Path) -> None:
    # 72 positions fit 6 x 12 and 9 x 8 patches: which of them, the folder has to say.
    model = make_tosa(make_vit(num_classes=5, img_size=(96, 192)))
    folder = save(model, tmp_path / "model")
    model.set_input_size(img_size=(144, 128))
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=(144, 128)).eval()
    for loaded in (load(folder, img_size=(144, 128)), by_timm):
        outputs = loaded(make_images(size=(144, 128)))
        assert torch.allclose(outputs, model(make_images(size=(144, 128))), atol=1e-4)


@pytest.mark.parametrize("args", [{}, {"dynamic_img_size": False}, {"in_chans": 1}], ids=str)
def test_timm_resolves_transforms_for_the_size_that_a_model_has(args: dict[str, Any], tmp_path: Path) -> None:
    def check(found: Any, *size: int) -> None:
        resolved = timm.data.resolve_model_data_config(found)
        assert found.patch_embed.img_size == size and resolved["input_size"] == (found.in_chans, *size)
        assert resolved["crop_pct"] == 0.95 and resolved["interpolation"] == "bicubic"
        assert not found.pretrained_cfg.get("test_input_size")

    backbone = make_vit(num_classes=5, img_size=96, **args)
    backbone.pretrained_cfg["test_input_size"] = (3, 192, 192)
    model = convert(backbone, TosaConfig(layers=LAYERS))
    check(model, 96, 96)
    folder = save(model, tmp_path / "model")
    channels = model.in_chans
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"] == [channels, 96, 96]
    check(load(folder), 96, 96)
    check(timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=(64, 128)), 64, 128)
    resized = load(folder, img_size=(128, 64))
    check(resized, 128, 64)
    save(resized, folder, overwrite=True)
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"] == [channels, 128, 64]
    check(load(folder), 128, 64)


def test_a_size_to_test_at_is_kept_with_the_size_it_was_meant_for(tmp_path: Path) -> None:
    backbone = make_vit(num_classes=5)
    backbone.pretrained_cfg["test_input_size"] = (3, 192, 192)
    loaded = load(save(convert(backbone, TosaConfig(layers=LAYERS)), tmp_path / "model"))
    assert timm.data.resolve_model_data_config(loaded, use_test_size=True)["input_size"] == (3, 192, 192)


def test_one_number_is_a_square(folder: Path) -> None:
    assert load(folder, img_size=64).patch_embed.img_size == (64, 64)


def test_timm_replaces_the_head_when_asked_for_another_number_of_classes(folder: Path, model: TosaViT) -> None:
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).eval()
    assert loaded(make_images()).shape == (2, 3)
    assert torch.equal(loaded.forward_features(make_images()), model.forward_features(make_images()))


def test_provenance_is_kept(tmp_path: Path, model: TosaViT) -> None:
    model.provenance = Provenance(source="test_vit", base_model="test_vit.r160_in1k", license="mit").after(
        "distilled", DistillConfig().to_dict(), {"distill": {"samples": 4, "layers": []}}
    )
    assert load(save(model, tmp_path / "model")).provenance == model.provenance


def test_a_saved_model_is_saved_again_without_loss(folder: Path, model: TosaViT) -> None:
    before = contents(folder)
    save(load(folder), folder, overwrite=True)
    assert contents(folder) == before


def test_a_repository_on_the_hub_loads(stub_hub: StubHub, folder: Path, model: TosaViT) -> None:
    commit = stub_hub.put("me/model", contents(folder))
    stub_hub.put("me/model", {"config.json": b"{}"})
    assert_same(load(f"me/model@{commit.oid}"), model)
    assert_same(load("hf-hub:me/model", revision=commit.oid), model)
    assert_same(timm.create_model(f"hf-hub:me/model@{commit.oid}", pretrained=True).eval(), model)
    with pytest.raises(CheckpointError):
        load("me/model")
