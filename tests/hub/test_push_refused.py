"""What the Hub, or pushing to it, refuses is told: names, tokens, networks, gates."""

import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, OfflineModeIsEnabled

from tests.sentences import fragments
from tosa_cli.errors import HubError, InputError, SourceError, TosaError
from tosa_cli.hub.errors import explain_hub_error

from .pushed import (
    download,
    push,
    write_files,  # noqa: F401 (the fixture `folder`)
)
from .stub_hub import (
    READ_TOKEN,
    StubHub,
    closed_port,
    point_client_at,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)


def push_error(folder: Path, repo_id: str = "me/model") -> TosaError:
    with pytest.raises(TosaError) as failure:
        push(folder, repo_id)
    message = str(failure.value)
    assert "\n" not in message and message.endswith(".")
    return failure.value


def download_error(repo_id: str, revision: str | None = None, name: str = "config.json") -> TosaError:
    with pytest.raises((HTTPError, EntryNotFoundError, HFValidationError, OfflineModeIsEnabled)) as failure:
        download(repo_id, name, revision)
    explained = explain_hub_error(failure.value, f"{repo_id} could not be loaded")
    assert "\n" not in str(explained) and str(explained).startswith(f"{repo_id} could not be loaded: ")
    return explained


@pytest.mark.parametrize("repo_id", ["", "a b", "me/my/model", "hf-hub:me/model", "me/model--x", "me/.model"])
def test_an_invalid_repository_id_is_bad_input(stub_hub: StubHub, folder: Path, repo_id: str) -> None:
    error = push_error(folder, repo_id)
    assert isinstance(error, InputError) and repr(repo_id) in str(error)
    assert stub_hub.requests == []


def test_without_a_token_the_way_to_log_in_is_named(
    stub_hub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    error = push_error(folder)
    assert isinstance(error, HubError) and fragments.HF_AUTH_LOGIN in str(error) and "HF_TOKEN" in str(error)
    assert stub_hub.requests == []


def test_a_refused_token_is_said_to_be_refused(
    stub_hub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    error = push_error(folder)
    assert isinstance(error, HubError) and "HF_TOKEN" in str(error)
    assert stub_hub.repos == {}


@pytest.mark.parametrize(("token", "repo_id"), [(READ_TOKEN, "me/model"), ("hf_write", "others/model")])
def test_a_token_without_the_right_to_write_is_told_so(
    stub_hub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str, repo_id: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    error = push_error(folder, repo_id)
    assert isinstance(error, HubError)
    assert f'"{repo_id.partition("/")[0]}"' in str(error) and "/settings/tokens" in str(error)


def test_a_message_of_the_hub_is_passed_on(stub_hub: StubHub, folder: Path) -> None:
    stub_hub.fail("/commit/", 412, "A commit has happened since. Please refresh and try again.")
    error = push_error(folder)
    assert isinstance(error, HubError) and "412: A commit" in str(error)


def test_a_hub_that_is_down_is_told_from_a_mistake(stub_hub: StubHub, folder: Path) -> None:
    stub_hub.fail("/repos/create", 503, "Service unavailable")
    error = push_error(folder)
    assert isinstance(error, HubError) and "503 (Service unavailable)" in str(error)


def test_a_failed_upload_of_the_weights_gives_its_cause(stub_hub: StubHub, folder: Path) -> None:
    stub_hub.fail("/storage/", 403, "The storage quota is used up")
    error = push_error(folder)
    assert isinstance(error.__cause__, RuntimeError) and fragments.STORAGE_QUOTA in str(error)
    assert stub_hub.commits("me/model") == []


def test_without_network_the_address_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    point_client_at(endpoint, monkeypatch, tmp_path)
    error = push_error(folder)
    assert isinstance(error, HubError) and f"{endpoint} " in str(error)


def test_offline_mode_is_named(stub_hub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = push_error(folder)
    assert isinstance(error, HubError) and "HF_HUB_OFFLINE" in str(error)


def test_loading_says_what_does_not_exist(stub_hub: StubHub) -> None:
    stub_hub.put("me/model", {"config.json": b"{}"})
    repository, revision = download_error("me/nothing"), download_error("me/model", "nowhere")
    file = download_error("me/model", name="model.safetensors")
    assert "me/nothing" in str(repository) and "me/model" in str(revision)
    assert "model.safetensors" in str(file)
    assert {type(error) for error in (repository, revision, file)} == {SourceError}


def test_a_private_repository_asks_strangers_to_log_in(stub_hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_hub.put("me/secret", {"config.json": b"{}"}, private=True)
    assert download("me/secret", "config.json") == b"{}"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-empty")
    assert fragments.HF_AUTH_LOGIN in str(download_error("me/secret"))


def test_a_gated_repository_asks_for_access(stub_hub: StubHub) -> None:
    stub_hub.put("org/gated", {"config.json": b"{}"}, gated=True)
    error = download_error("org/gated")
    assert isinstance(error, HubError) and fragments.HF_AUTH_LOGIN in str(error)


def test_loading_offline_names_offline_mode(stub_hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_hub.put("me/model", {"config.json": b"{}"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in str(download_error("me/model"))


def test_loading_without_network_names_the_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    point_client_at(endpoint, monkeypatch, tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client tries six times, with longer and longer waits
    assert f"{endpoint} " in str(download_error("me/model"))
