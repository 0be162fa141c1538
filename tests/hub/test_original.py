"""The dense model that a converted one is set beside."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.hub.sources import write_folder, write_weights
from tests.model.tiny_models import make_images, make_vit
from tosa_cli import TosaConfig, convert
from tosa_cli.errors import InputError
from tosa_cli.hub.names import from_anywhere
from tosa_cli.hub.original import dense_model
from tosa_cli.hub.source import load_source
from tosa_cli.model.tosa_vit import TosaViT


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return make_vit(num_classes=5)


@pytest.fixture
def converted(tmp_path: Path, vit: nn.Module) -> TosaViT:
    return convert(str(write_folder(tmp_path / "dense", vit)), TosaConfig(layers=(2, 4)))


def same_weights(dense: nn.Module, converted: TosaViT) -> bool:
    """Whether a dense model's weights are the very ones of a converted model."""
    ours, theirs = dict(converted.named_parameters()), dict(dense.named_parameters())
    return all(ours[name] is parameter for name, parameter in theirs.items())


def test_until_it_is_finetuned_a_models_backbone_is_its_source(converted: TosaViT) -> None:
    converted.provenance = converted.provenance.after("distilled", {})
    dense = dense_model(converted)
    assert same_weights(dense.model, converted) and dense.weights == "source"


@pytest.mark.parametrize("last", [(), ("distilled",)], ids=["finetuned", "distilled"])
def test_once_it_is_finetuned_the_source_is_loaded_again(
    converted: TosaViT, vit: nn.Module, last: tuple[str, ...]
) -> None:
    converted.provenance = converted.provenance.after("finetuned", {})
    for stage in last:
        converted.provenance = converted.provenance.after(stage, {})  # type: ignore[arg-type]
    with torch.no_grad():
        converted.backbone.norm.bias.add_(1)  # type: ignore[operator, union-attr]
    dense = dense_model(converted, head=True)
    assert dense.weights == "source" and torch.equal(dense.model(make_images()), vit(make_images()))


def test_a_head_that_the_source_never_had_is_missed_only_where_it_is_needed(converted: TosaViT, vit: nn.Module) -> None:
    converted.reset_classifier(3)
    converted.provenance = converted.provenance.after("finetuned", {})
    dense = dense_model(converted, head=True)
    assert same_weights(dense.model, converted) and dense.lost == "The source has no head of 3 classes."
    features = dense_model(converted)
    assert features.weights == "source"
    assert torch.equal(features.model.forward_features(make_images()), vit.forward_features(make_images()))  # type: ignore[operator]


def test_a_model_that_was_no_file_is_set_beside_its_own_weights(vit: nn.Module) -> None:
    model = convert(make_vit(num_classes=5), TosaConfig(layers=(2, 4)))
    model.provenance = model.provenance.after("finetuned", {})
    dense = dense_model(model)
    assert same_weights(dense.model, model) and dense.weights == "own"


def test_a_source_that_is_gone_is_told_of(converted: TosaViT, tmp_path: Path) -> None:
    converted.provenance = converted.provenance.after("finetuned", {})
    (tmp_path / "dense").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f" {tmp_path / 'dense'} "):
        dense_model(converted)


@pytest.mark.parametrize("named", ["dense", "./dense", "local-dir:dense", "elsewhere/../dense", "test_vit.safetensors"])
def test_a_local_source_is_known_by_its_whole_path(
    tmp_path: Path, vit: nn.Module, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    write_folder(tmp_path / "dense", vit)
    (tmp_path / "blob").write_bytes(
        Path(write_weights(tmp_path / "weights.safetensors", vit.state_dict())).read_bytes()
    )
    (tmp_path / "test_vit.safetensors").symlink_to("blob")  # as in the Hub's cache
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    kept = from_anywhere(named)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(load_source(kept).model(make_images()), vit(make_images()))


@pytest.mark.parametrize("named", ["", "deit_tiny", "org/name@main", "hf-hub:org/name"])
def test_any_other_source_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_anywhere(named) == named


@pytest.mark.parametrize(("num_classes", "new"), [(None, False), (0, False), (5, False), (3, True)])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_source_tells_whether_its_head_is_new(
    tmp_path: Path, vit: nn.Module, form: str, num_classes: int | None, new: bool
) -> None:
    write = {
        "folder": lambda: write_folder(tmp_path / "dense", vit),
        "file": lambda: write_weights(tmp_path / "test_vit.safetensors", vit.state_dict()),
    }[form]
    assert load_source(str(write()), num_classes=num_classes).has_new_head == new
