"""Which kind of model a name stands for is answered in one place, for folders and repositories alike."""

import json
from pathlib import Path

import pytest

from tosa_cli.hub.kind import find_config, find_kind

from .stub_hub import (
    StubHub,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)

KINDS = {"tosa_vit": "converted", "tosa_dense": "predictor", "vit_tiny_patch16_224": None, "": None}


@pytest.mark.parametrize("architecture", KINDS)
def test_a_folder_and_a_repository_tell_what_they_hold(stub_hub: StubHub, tmp_path: Path, architecture: str) -> None:
    content = json.dumps({"architecture": architecture}).encode()
    (tmp_path / "config.json").write_bytes(content)
    stub_hub.put("org/name", {"config.json": content})
    for name in (str(tmp_path), f"local-dir:{tmp_path}", "org/name", "hf-hub:org/name@main"):
        assert find_kind(name) == KINDS[architecture]


def test_what_cannot_be_read_is_of_no_kind(stub_hub: StubHub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    for name in (str(tmp_path), str(tmp_path / "config.json"), "deit_tiny", "./nowhere", "org/none", "local-dir:org/x"):
        assert find_config(name) == {} and find_kind(name) is None
