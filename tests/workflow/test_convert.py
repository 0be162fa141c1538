"""What `tosa convert` and `tosa inspect` do is there for Python too, from one object of settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import save_for_hf

import tosa_cli
from tests.model.tiny_models import make_vit
from tests.train.tiny_runs import write_photos
from tosa_cli.config import Method
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.errors import ConfigError
from tosa_cli.hub.checkpoint import load
from tosa_cli.model.flops import count_flops
from tosa_cli.progress import Nobody
from tosa_cli.workflow.convert import convert
from tosa_cli.workflow.inspect import inspect
from tosa_cli.workflow.save import save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dense`, a model of 10 classes, and `photos`."""
    folder = tmp_path_factory.mktemp("verbs")
    model = make_vit("test_vit", img_size=32, patch_size=8, num_classes=10)
    save_for_hf(model, str(folder / "dense"), safe_serialization=True)
    write_photos(folder / "photos")
    return folder


def test_layers_are_chosen_by_measurement_and_the_model_remembers_how_it_was_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    listener = Nobody()
    monkeypatch.setattr(listener, "say", said.append)
    config = ConvertConfig(
        source=str(folder / "dense"),
        layers="auto",
        target_reduction=0.2,
        selector="similarity",
        bypass="nearest",
        data_dir=str(folder / "photos"),
        max_samples=4,
        img_size=(64, 48),
        num_classes=3,
    )
    report = convert(config, name="mine", listener=listener)
    assert 0.2 <= report.flops.reduction < 0.25 and report.flops.model == "mine"
    assert [curve.layers for curve in report.measured.curves] == [(layer,) for layer in range(1, 7)]
    assert said == [f"Measuring what each layer can spare, on 4 images of {folder / 'photos'} ..."]
    step = load(save(report.model, folder / "model")).provenance.steps["convert"]
    assert (step["img_size"], step["num_classes"], step["selector"]) == ([64, 48], 3, "similarity")
    assert tuple(step["layers"]) == report.model.config.layers


@pytest.mark.parametrize("drawn", [{}, {"num_classes": 3}, {"pretrained": False}], ids=str)
def test_what_is_drawn_depends_on_the_seed_alone(folder: Path, drawn: dict[str, Any]) -> None:
    def run(seed: int, state: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(state)
        config = ConvertConfig(source=str(folder / "dense"), layers=(2, 4), seed=seed, **drawn)
        weights = convert(config).model.state_dict()
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(state)))
        return weights

    first, second, other = run(0, 1), run(0, 2), run(1, 1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    differing = {name for name in first if not torch.equal(first[name], other[name])}
    assert "selectors.2.conv1.weight" in differing
    assert ("head.weight" in differing) == bool(drawn) and ("cls_token" in differing) == ("pretrained" in drawn)


def test_a_target_is_met_in_the_layers_that_are_named(folder: Path) -> None:
    config = ConvertConfig(source=str(folder / "dense"), layers=(2, 4, 6), target_reduction=0.15)
    report = convert(config)
    assert 0.15 <= report.flops.reduction < 0.2 and not report.measured.curves


def test_a_model_at_hand_is_converted_as_its_folder_is(folder: Path) -> None:
    config = ConvertConfig(source=str(folder / "dense"), layers=(2, 4), keep_rate=0.5)
    model = make_vit("test_vit", img_size=32, patch_size=8, num_classes=10)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(convert(config, model).model(images), convert(config).model(images), rtol=0, atol=0)


def test_what_can_be_spared_is_told_before_anything_is_converted(folder: Path) -> None:
    method = Method(selector="similarity", bypass="nearest")
    report = inspect(str(folder / "dense"), method, data_dir=str(folder / "photos"), max_samples=2)
    assert report.facts["depth"] == 6 and len(report.measured.curves) == 6
    assert list(report.allocations)[:2] == [0.1, 0.2]
    with pytest.raises(ConfigError, match="'attention'"):
        inspect(str(folder / "dense"), Method(), data_dir=str(folder / "photos"))


def test_python_chooses_layers_by_measurement_and_loads_sources_as_the_command_does(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 8)
    dense = make_vit("test_vit", img_size=32, patch_size=8, num_classes=10)
    method = {"selector": "similarity", "bypass": "nearest+affine", "layers": "auto", "target_reduction": 0.1}
    model = tosa_cli.convert(dense, tosa_cli.ConvertConfig(**method), photos)
    assert count_flops(model).reduction >= 0.1 and model.blocks is dense.blocks
    sized = tosa_cli.convert("test_vit", tosa_cli.ConvertConfig(layers=(2, 4), img_size=64, pretrained=False))
    assert sized.patch_embed.img_size == (64, 64) and sized.config.layers == (2, 4)
    with pytest.raises(ConfigError, match="--data-dir"):
        tosa_cli.convert(dense, tosa_cli.ConvertConfig(**method))
    with pytest.raises(ConfigError, match="ConvertConfig"):
        tosa_cli.convert(dense, tosa_cli.TosaConfig(layers=(2,)), photos)
