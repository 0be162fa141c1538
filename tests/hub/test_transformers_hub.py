"""Checkpoints in transformers' format on the Hub: revisions, several files, offline, halfway gone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import nn

from tests.sentences import fragments
from tosa_cli.api import convert
from tosa_cli.config import TosaConfig
from tosa_cli.errors import CheckpointError, HubError, SourceError
from tosa_cli.hub.download import fetch_file
from tosa_cli.hub.source import load_source

from .stub_hub import (
    StubHub,
    hub_files,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)
from .transformers_folders import (
    TOLERANCE,
    make_their_vit,  # noqa: F401 (the fixture `vit`)
)
from .transformers_models import make, make_pixels, output_of, published, save

CARD = b"---\nlicense: mit\n---\n# A model\n"


def test_a_repository_is_read_at_its_revision(stub_hub: StubHub, tmp_path: Path) -> None:
    config, processor = (
        published("facebook/dinov2-small"),
        published("facebook/dinov2-small", "preprocessor_config.json"),
    )
    old, new = make(config, seed=1), make(config, seed=2)
    commit = stub_hub.put("org/name", {**hub_files(save(old, tmp_path / "old", processor)), "README.md": CARD})
    latest = stub_hub.put("org/name", hub_files(save(new, tmp_path / "new")))
    images = make_pixels(old)
    for named, theirs, revision in (("org/name", new, latest.oid), (f"hf-hub:org/name@{commit.oid}", old, commit.oid)):
        source = load_source(named)
        assert (source.name, source.hub_id, source.revision) == ("org/name", "org/name", revision)
        assert torch.allclose(source.model(images), output_of(theirs, images), atol=TOLERANCE)
    provenance = convert(f"org/name@{commit.oid}", TosaConfig(layers=(2,))).provenance
    assert (provenance.base_hub_id, provenance.base_revision, provenance.license) == ("org/name", commit.oid, "mit")


def test_a_repository_in_several_files_is_read_and_then_read_again_offline(
    stub_hub: StubHub, tmp_path: Path, vit: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_hub.put("org/name", hub_files(save(vit, tmp_path / "vit", max_shard_size="100KB")))
    images = make_pixels(vit)
    first = load_source("org/name").model(images)
    assert torch.allclose(first, output_of(vit, images), atol=TOLERANCE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for known_to_be_missing in Path(constants.HF_HUB_CACHE).rglob("README.md"):
        known_to_be_missing.unlink()
    assert torch.equal(load_source("org/name").model(images), first)


def test_a_branch_that_moves_on_between_two_files_gives_no_mix(
    stub_hub: StubHub, tmp_path: Path, vit: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = published("facebook/dinov2-small")
    old, new = make(config, seed=1), make(config, seed=2)
    stub_hub.put("org/name", hub_files(save(old, tmp_path / "old")))
    answer = stub_hub.answer

    def move_on(request: Any) -> Any:
        reply = answer(request)
        if request.method == "GET" and request.path.endswith("/config.json"):
            stub_hub.put("org/name", hub_files(save(new, tmp_path / "new")))
        return reply

    monkeypatch.setattr(stub_hub, "answer", move_on)
    images = make_pixels(old)
    assert torch.allclose(load_source("org/name").model(images), output_of(old, images), atol=TOLERANCE)


def test_where_the_hub_is_gone_halfway_it_is_asked_once(stub_hub: StubHub, tmp_path: Path, vit: nn.Module) -> None:
    stub_hub.put("org/name", hub_files(save(vit, tmp_path / "vit")))
    fetch_file("org/name", "config.json")
    stub_hub.fail("model.safetensors", 503, "Service Unavailable")
    asked = len(stub_hub.requests)
    with pytest.raises(HubError, match="503"):
        load_source("org/name")
    assert sum("model.safetensors" in request for request in stub_hub.requests[asked:]) == 1


def test_a_repository_that_lacks_its_weights_is_told(stub_hub: StubHub) -> None:
    stub_hub.put("org/name", {"config.json": json.dumps(published("facebook/dino-vits16")).encode()})
    with pytest.raises(CheckpointError, match=fragments.ORG_NAME_MODEL_SAFETENSORS_PYTORCH):
        load_source("org/name")
    with pytest.raises(SourceError, match="org/name@nowhere"):
        load_source("org/name@nowhere")
