"""What a user names: short names, misspelt ones, names without weights."""

from pathlib import Path

import pytest
from torch import nn

from tosa_cli.errors import SourceError, UnsupportedModelError
from tosa_cli.hub.source import load_source
from tosa_cli.hub.timm_models import resolve_name

from .sources import (
    make_five_classes,  # noqa: F401 (the fixture `vit`)
    source_error,
    write_folder,
)
from .stub_hub import (
    StubHub,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("deit_tiny", "deit_tiny_patch16_224"),
        ("vit_small", "vit_small_patch16_224"),
        ("dinov2_small", "vit_small_patch14_dinov2"),
        ("test_vit", "test_vit"),
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224"),
        ("deit_tiny_patch16_224.fb_in1k", "deit_tiny_patch16_224.fb_in1k"),
    ],
)
def test_short_names_are_completed_and_full_names_left_alone(name: str, full: str) -> None:
    assert resolve_name(name) == full


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("test_vitt", "test_vit"),
        ("vit_tiny_patch16_242", "vit_tiny_patch16_224"),
        ("deit_tinny", "deit_tiny"),
        ("vit_smal", "vit_small"),
        ("xyzzy", "deit_tiny_patch16_224"),
    ],
)
def test_a_misspelt_name_is_answered_with_what_may_be_meant(typo: str, meant: str) -> None:
    message = source_error(typo, SourceError)
    assert repr(typo) in message and meant in message.partition(repr(typo))[2]


def test_what_is_proposed_can_be_converted() -> None:
    with pytest.raises(SourceError) as failure:
        resolve_name("deit_tinny")
    for name in str(failure.value).partition("Did you mean ")[2].rstrip("?").split(" or "):
        load_source(name, pretrained=False)


def test_a_name_alone_builds_the_model_without_weights_when_asked_to() -> None:
    loaded = load_source("test_vit", pretrained=False)
    assert loaded.name.startswith("test_vit") and loaded.model.num_classes == 1000
    assert not loaded.model.training


def test_image_size_and_number_of_classes_are_set() -> None:
    model = load_source("test_vit", pretrained=False, img_size=96, num_classes=3).model
    assert model.patch_embed.img_size == (96, 96) and model.num_classes == 3
    model = load_source("test_vit", pretrained=False, img_size=(64, 128), num_classes=0).model
    assert model.patch_embed.img_size == (64, 128) and model.num_classes == 0


def test_a_model_that_cannot_be_converted_is_refused_before_its_weights_are_fetched(stub_hub: StubHub) -> None:
    for name in ("resnet18", "test_convnext"):
        assert name in source_error(name, UnsupportedModelError)
    assert stub_hub.requests == []


def test_a_name_without_weights_says_so() -> None:
    message = source_error("vit_base_patch16_xp_224", SourceError)
    assert "vit_base_patch16_xp_224" in message and "--no-pretrained" in message


def test_a_name_whose_tag_timm_does_not_know_is_not_called_a_broken_checkpoint() -> None:
    assert "nope" in source_error("deit_tiny_patch16_224.nope", SourceError, pretrained=False)


def test_an_empty_name_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vit: nn.Module) -> None:
    monkeypatch.chdir(write_folder(tmp_path / "here", vit))
    source_error("", SourceError)
