"""Loading from the Hub's cache: what was fetched is not fetched again, with a network and without."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from timm.models import save_for_hf

import tosa_cli
from tosa_cli.errors import HubError
from tosa_cli.hub.source import load_source
from tosa_cli.model.tosa_vit import TosaViT

from ..model.tiny_models import make_vit
from .loaded import (
    is_same,
    load_error,
    make_models,  # noqa: F401 (the fixture `models`)
    read_files,  # noqa: F401 (the fixture `files`)
)
from .stub_hub import (
    StubHub,
    closed_port,
    point_client_at,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client pauses before it tries again; whoever waits for that fails."""

    def refuse(seconds: float) -> None:
        raise AssertionError(f"waited for {seconds} s")

    monkeypatch.setattr(time, "sleep", refuse)


def go_offline(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """From now on nobody answers; the cache stays."""
    point_client_at(f"http://127.0.0.1:{closed_port()}", monkeypatch, home)


def test_what_is_in_the_cache_is_not_fetched_again(
    stub_hub: StubHub, files: list[dict[str, bytes]], models: list[TosaViT], tmp_path: Path
) -> None:
    commit = stub_hub.put("me/model", files[0])
    tosa_cli.load("me/model", cache_dir=tmp_path / "cache")
    assert (tmp_path / "cache" / "models--me--model").is_dir() and not Path(constants.HF_HUB_CACHE).exists()
    asked = len(stub_hub.requests)
    assert is_same(tosa_cli.load("me/model", cache_dir=tmp_path / "cache"), models[0])
    assert {request.partition(" ")[0] for request in stub_hub.requests[asked:]} == {"HEAD"}
    asked = len(stub_hub.requests)
    assert is_same(tosa_cli.load(f"me/model@{commit.oid}", cache_dir=tmp_path / "cache"), models[0])
    assert len(stub_hub.requests) == asked


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("how", ["offline", "unreachable", "down", "logged-out"])
def test_a_model_in_the_cache_loads_when_the_hub_does_not_answer(
    stub_hub: StubHub,
    files: list[dict[str, bytes]],
    models: list[TosaViT],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    how: str,
) -> None:
    stub_hub.put("me/model", files[0], private=True)
    tosa_cli.load("me/model")
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "unreachable":
        go_offline(monkeypatch, tmp_path / "hf_home")
    elif how == "down":
        stub_hub.fail("/resolve/", 503, "Service unavailable")
    else:
        monkeypatch.delenv("HF_TOKEN")
    assert is_same(tosa_cli.load("me/model"), models[0])


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("load", "name"),
    [
        (tosa_cli.load, "me/model"),
        (load_source, "me/model"),
        (load_source, "hf-hub:me/model"),
        (load_source, "test_vit"),
    ],
)
def test_without_a_network_and_a_cache_that_is_told_at_once(
    load: Callable[[str], object], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go_offline(monkeypatch, tmp_path / "hf_home")
    with pytest.raises(HubError, match=r"127\.0\.0\.1:\d+ .*HF_ENDPOINT") as failure:
        load(name)
    assert str(failure.value).startswith(f"{name}: ") and str(failure.value).count("\n") == 0


@pytest.mark.usefixtures("no_waiting")
def test_offline_mode_without_a_cache_is_told_without_asking(
    stub_hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in load_error("me/model", HubError)
    assert stub_hub.requests == []


@pytest.mark.usefixtures("no_waiting")
def test_a_hub_that_is_down_is_told_at_once(stub_hub: StubHub, files: list[dict[str, bytes]]) -> None:
    stub_hub.put("me/model", files[0])
    stub_hub.fail("/resolve/", 503, "Service unavailable")
    assert "503 (Service unavailable)" in load_error("me/model", HubError)


@pytest.mark.usefixtures("no_waiting")
def test_dense_weights_in_the_cache_are_converted_without_a_network(
    stub_hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "dense"
    save_for_hf(make_vit(num_classes=5, img_size=64), str(folder), safe_serialization=True)
    stub_hub.put("me/dense", {path.name: path.read_bytes() for path in folder.iterdir()})
    expected = load_source("me/dense").model.state_dict()
    go_offline(monkeypatch, tmp_path / "hf_home")
    loaded = load_source("me/dense").model.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in expected.items())
