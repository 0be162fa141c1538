"""From a repository on the Hub to a dense model."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tosa_cli.api import convert
from tosa_cli.config import TosaConfig
from tosa_cli.errors import CheckpointError, HubError, InputError, SourceError
from tosa_cli.hub.original import dense_model
from tosa_cli.hub.source import load_source
from tosa_cli.workflow.save import render_card, save

from ..model.tiny_models import LAYERS, make_images, make_tosa, make_vit
from .sources import (
    assert_same,
    make_five_classes,  # noqa: F401 (the fixture `vit`)
    source_error,
    write_folder,
)
from .stub_hub import (
    StubHub,
    hub_files,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)


@pytest.mark.parametrize("form", ["org/name", "hf-hub:org/name"])
def test_a_repository_is_read(stub_hub: StubHub, tmp_path: Path, vit: nn.Module, form: str) -> None:
    commit = stub_hub.put("org/name", hub_files(write_folder(tmp_path / "dense", vit)))
    loaded = load_source(form)
    assert_same(loaded, vit)
    assert (loaded.name, loaded.hub_id, loaded.revision) == ("org/name", "org/name", commit.oid)


def test_a_revision_of_a_repository_is_read(stub_hub: StubHub, tmp_path: Path, vit: nn.Module) -> None:
    old = stub_hub.put("org/name", hub_files(write_folder(tmp_path / "old", vit)))
    new = make_vit(seed=5, num_classes=5)
    stub_hub.put("org/name", hub_files(write_folder(tmp_path / "new", new)))
    assert_same(load_source("org/name"), new)
    loaded = load_source(f"org/name@{old.oid}")
    assert_same(loaded, vit)
    assert (loaded.hub_id, loaded.revision) == ("org/name", old.oid)


def test_a_conversion_from_the_hub_remembers_repository_revision_and_license(
    stub_hub: StubHub, tmp_path: Path, vit: nn.Module
) -> None:
    commit = stub_hub.put("org/name", hub_files(write_folder(tmp_path / "dense", vit)))
    for named in (f"org/name@{commit.oid}", "org/name@main", "org/name"):
        model = convert(named, TosaConfig(layers=LAYERS))
        provenance = model.provenance
        assert provenance.base_hub_id == provenance.base_model == "org/name"
        assert provenance.base_revision == commit.oid and provenance.license == "apache-2.0"
        assert provenance.source == provenance.steps["convert"]["source"] == named
        assert f"https://huggingface.co/org/name/tree/{commit.oid}" in render_card(model, "name-tosa")


@pytest.mark.parametrize("named", ["org/name", "hf-hub:org/name@main"])
def test_a_branch_that_moved_on_leaves_the_source_of_a_finetuned_model_as_it_was(
    stub_hub: StubHub, tmp_path: Path, vit: nn.Module, named: str
) -> None:
    stub_hub.put("org/name", hub_files(write_folder(tmp_path / "dense", vit)))
    converted = convert(named, TosaConfig(layers=LAYERS))
    stub_hub.put("org/name", hub_files(write_folder(tmp_path / "new", make_vit(seed=5, num_classes=5))))
    converted.provenance = converted.provenance.after("finetuned", {})
    dense = dense_model(converted, head=True)
    assert torch.equal(dense.model(make_images()), vit(make_images()))


def test_a_timm_name_takes_its_weights_from_the_hub(stub_hub: StubHub, tmp_path: Path) -> None:
    model = make_vit()
    files = hub_files(write_folder(tmp_path / "dense", model))
    commit = stub_hub.put("timm/test_vit.r160_in1k", files)
    loaded = load_source("test_vit")
    assert_same(loaded, model)
    assert (loaded.name, loaded.hub_id) == ("test_vit.r160_in1k", "timm/test_vit.r160_in1k")
    assert loaded.revision == commit.oid and load_source("test_vit", pretrained=False).revision is None
    few = load_source("test_vit", num_classes=3).model
    assert few(make_images()).shape == (2, 3)
    assert torch.equal(few.forward_features(make_images()), model.forward_features(make_images()))


def test_a_repository_that_is_not_there_is_told(stub_hub: StubHub, tmp_path: Path, vit: nn.Module) -> None:
    assert "org/none" in source_error("org/none", SourceError)
    stub_hub.put("org/name", hub_files(write_folder(tmp_path / "dense", vit)))
    assert "org/name@nowhere" in source_error("org/name@nowhere", SourceError)
    stub_hub.put("org/empty", {"README.md": b"# Nothing"})
    assert "config.json" in source_error("org/empty", SourceError)


def test_a_repository_with_a_wrong_configuration_is_told(stub_hub: StubHub, tmp_path: Path, vit: nn.Module) -> None:
    files = hub_files(write_folder(tmp_path / "dense", vit))
    stub_hub.put("org/foreign", {**files, "config.json": b'{"model": "bert"}'})
    stub_hub.put("org/list", {**files, "config.json": b"[1]"})
    stub_hub.put("org/broken", {**files, "config.json": b"{"})
    stub_hub.put("org/cut", {**files, "model.safetensors": files["model.safetensors"][:9000]})
    for name in ("foreign", "list", "broken", "cut"):
        assert f"org/{name}" in source_error(f"org/{name}", CheckpointError)


def test_a_converted_repository_is_not_converted_twice(stub_hub: StubHub, tmp_path: Path, vit: nn.Module) -> None:
    stub_hub.put("me/converted", hub_files(save(make_tosa(vit), tmp_path / "converted")))
    assert "me/converted" in source_error("me/converted", SourceError)


def test_an_id_that_is_none_is_told() -> None:
    assert "with space/name" in source_error("hf-hub:with space/name", InputError)
    for empty in ("hf-hub:", "hf-hub:@main"):
        with pytest.raises(InputError):
            load_source(empty)


@pytest.mark.parametrize("source", ["org/name", "test_vit"])
def test_being_offline_is_told(source: str) -> None:
    assert "HF_HUB_OFFLINE" in source_error(source, HubError)
