"""What is said where the Hub refuses; a long table."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import tosa_cli
from tests.hub.conftest import contents
from tests.hub.pushed import FILES, push
from tests.hub.stub_hub import READ_TOKEN, StubHub, closed_port, point_client_at
from tests.hub.transformers_models import published
from tosa_cli.hub.push import plan_push, push_folder
from tosa_cli.hub.source import load_source

from .folders import cut, without, written
from .rows import Row, check, table


def to_push() -> Path:
    """The files of a model, for the Hub."""
    for name, content in FILES.items():
        written(f"pushed/{name}", content)
    return Path("pushed")


def put(stub_hub: StubHub, files: dict[str, bytes] | None = None, **kind: Any) -> str:
    """A repository on the Hub, without files or with these."""
    stub_hub.put("me/model", files or {}, **kind)
    return "me/model"


def down(stub_hub: StubHub, files: dict[str, bytes]) -> str:
    """A repository on a Hub that is down."""
    stub_hub.fail("/resolve/", 503, "Service unavailable")
    return put(stub_hub, files)


def fail(stub_hub: StubHub, place: str, status: int, message: str) -> None:
    """Push to a Hub that fails at a place."""
    stub_hub.fail(place, status, message)
    push(to_push())


@pytest.fixture
def signed_out(stub_hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no access token."""
    monkeypatch.delenv("HF_TOKEN")


@pytest.fixture
def refused_token(stub_hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The access token is none that the Hub knows."""
    monkeypatch.setenv("HF_TOKEN", "hf_expired")


@pytest.fixture
def read_token(stub_hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The access token may read and not write."""
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)


@pytest.fixture
def offline(stub_hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client is in offline mode."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Nobody answers where the Hub should be."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    point_client_at(f"http://127.0.0.1:{closed_port()}", monkeypatch, place / "home")


HUB: list[Row] = [
    (
        "a revision that is not there",
        lambda stub_hub: tosa_cli.load(put(stub_hub) + "@nowhere"),
        "me/model@nowhere: the repository has no such branch, tag or commit; check the revision.",
    ),
    (
        "a revision that is named twice",
        lambda stub_hub: tosa_cli.load("me/model@main", revision="other"),
        "me/model@main names another revision than the one given, other: leave one of them out.",
    ),
    (
        "a private repository",
        lambda signed_out, stub_hub: tosa_cli.load(put(stub_hub, private=True)),
        "me/model: there is no such repository, or it is private; check the name, and log in with `hf auth "
        "login` or set HF_TOKEN if it is private.",
    ),
    (
        "a token that is refused",
        lambda stub_hub: tosa_cli.load(put(stub_hub, private=True), token="hf_expired"),
        "me/model: the access token was refused; log in again with `hf auth login` or set HF_TOKEN to a "
        "valid token (HF_TOKEN wins over the login).",
    ),
    (
        "a gated repository",
        lambda stub_hub: tosa_cli.load(put(stub_hub, gated=True)),
        "me/model: access to the repository is restricted; ask for it on the repository's page, then log in "
        "with `hf auth login` or set HF_TOKEN.",
    ),
    (
        "no network for a model",
        lambda unreachable: tosa_cli.load("me/model"),
        "me/model: http://127.0.0.1:… cannot be reached (…); check the network, the proxy settings and "
        "HF_ENDPOINT, and try again.",
    ),
    (
        "no network for a source",
        lambda unreachable: load_source("me/model"),
        "me/model: http://127.0.0.1:… cannot be reached (…); check the network, the proxy settings and "
        "HF_ENDPOINT, and try again.",
    ),
    (
        "no network for weights of timm",
        lambda unreachable: load_source("test_vit"),
        "test_vit: http://127.0.0.1:… cannot be reached (…); check the network, the proxy settings and "
        "HF_ENDPOINT, and try again.",
    ),
    (
        "offline mode for a model",
        lambda offline: tosa_cli.load("me/model"),
        "me/model: offline mode is on; unset HF_HUB_OFFLINE and try again.",
    ),
    (
        "offline mode for a source",
        lambda offline: load_source("org/name"),
        "org/name: offline mode is on; unset HF_HUB_OFFLINE and try again.",
    ),
    (
        "offline mode for weights of timm",
        lambda offline: load_source("test_vit"),
        "test_vit: offline mode is on; unset HF_HUB_OFFLINE and try again.",
    ),
    (
        "a Hub that is down",
        lambda stub_hub, model: tosa_cli.load(down(stub_hub, contents(model))),
        "me/model: the Hub answered 503 (Service unavailable); wait a while and try again.",
    ),
    (
        "a dense repository",
        lambda stub_hub, dense: tosa_cli.load(put(stub_hub, contents(dense))),
        "me/model holds test_vit, which is not converted yet: run `tosa convert me/model --layers 2,4,6,8,10` first.",
    ),
    (
        "a repository without weights",
        lambda stub_hub, model: tosa_cli.load(put(stub_hub, {"config.json": contents(model)["config.json"]})),
        "me/model: the repository has no file model.safetensors.",
    ),
    (
        "a repository without files",
        lambda stub_hub: tosa_cli.load(put(stub_hub)),
        "me/model: the repository has no file config.json.",
    ),
    (
        "an id of a model that is none",
        lambda stub_hub: tosa_cli.load("a b/c"),
        "a b/c: the repository id is not valid; give namespace/name of letters, digits, '-', '_' and '.', as "
        "in me/deit_tiny-tosa.",
    ),
    (
        "a source that is not there",
        lambda stub_hub: load_source("org/none"),
        "org/none: there is no such repository, or it is private; check the name, and log in with `hf auth "
        "login` or set HF_TOKEN if it is private.",
    ),
    (
        "a revision of a source that is not there",
        lambda stub_hub, dense: load_source(put(stub_hub, contents(dense)) + "@nowhere"),
        "me/model@nowhere: the repository has no such branch, tag or commit; check the revision.",
    ),
    (
        "a source without files",
        lambda stub_hub: load_source(put(stub_hub)),
        "me/model: the repository has no file config.json.",
    ),
    (
        "a foreign source",
        lambda stub_hub, dense: load_source(put(stub_hub, {**contents(dense), "config.json": b'{"model": "bert"}'})),
        "In me/model, config.json has no 'architecture', so it is not in timm's format: name a folder that timm or "
        "transformers wrote.",
    ),
    (
        "a source that is a list",
        lambda stub_hub, dense: load_source(put(stub_hub, {**contents(dense), "config.json": b"[1]"})),
        "config.json of me/model should hold a JSON object, but holds a list.",
    ),
    (
        "a source that is no JSON",
        lambda stub_hub, dense: load_source(put(stub_hub, {**contents(dense), "config.json": b"{"})),
        "config.json of me/model cannot be read as JSON (…): copy or download it again.",
    ),
    (
        "a source on the Hub that is cut short",
        lambda stub_hub, dense: load_source(put(stub_hub, contents(cut(dense / "model.safetensors").parent))),
        "The weights of me/model are broken or cut short (…). Download or copy them again.",
    ),
    (
        "a source on the Hub that is converted",
        lambda stub_hub, model: load_source(put(stub_hub, contents(model))),
        "me/model is already a converted model. Convert its source instead, or run `tosa flops me/model`.",
    ),
    (
        "a repository of theirs without weights",
        lambda stub_hub: load_source(
            put(stub_hub, {"config.json": json.dumps(published("facebook/dino-vits16")).encode()})
        ),
        "me/model has no weights: expected model.safetensors or pytorch_model.bin.",
    ),
    (
        "nothing to push for lack of model.safetensors",
        lambda: plan_push(Path(without(to_push(), "model.safetensors"))),
        "pushed is not a converted model, as it has no model.safetensors: give a folder that `tosa convert` wrote.",
    ),
    (
        "nothing to push for lack of config.json",
        lambda: plan_push(Path(without(to_push(), "config.json"))),
        "pushed is not a converted model, as it has no config.json: give a folder that `tosa convert` wrote.",
    ),
    (
        "nothing to push for lack of README.md",
        lambda: plan_push(Path(without(to_push(), "README.md"))),
        "pushed is not a converted model, as it has no README.md: give a folder that `tosa convert` wrote.",
    ),
    (
        "nothing to push",
        lambda: plan_push(Path("nowhere")),
        "There is no folder nowhere: give one that `tosa convert` wrote.",
    ),
    (
        "a private push to a public repository",
        lambda stub_hub: push_folder(plan_push(to_push()), put(stub_hub), private=True),
        "me/model already exists and is public, but --private was given: change it on "
        "http://127.0.0.1:…/me/model/settings, or leave out --private.",
    ),
    (
        "a pull request on another branch",
        lambda stub_hub: push(to_push(), revision="half", create_pr=True),
        "A pull request can only be opened on the main branch, but the revision half was given: leave out "
        "--revision or --create-pr.",
    ),
    (
        "a push to ''",
        lambda stub_hub: push(to_push(), ""),
        "'' could not be pushed: the repository id is not valid; give namespace/name of letters, digits, "
        "'-', '_' and '.', as in me/deit_tiny-tosa.",
    ),
    (
        "a push to 'a b'",
        lambda stub_hub: push(to_push(), "a b"),
        "'a b' could not be pushed: the repository id is not valid; give namespace/name of letters, digits, "
        "'-', '_' and '.', as in me/deit_tiny-tosa.",
    ),
    (
        "a push to 'me/my/model'",
        lambda stub_hub: push(to_push(), "me/my/model"),
        "'me/my/model' could not be pushed: the repository id is not valid; give namespace/name of letters, "
        "digits, '-', '_' and '.', as in me/deit_tiny-tosa.",
    ),
    (
        "a push to 'hf-hub:me/model'",
        lambda stub_hub: push(to_push(), "hf-hub:me/model"),
        "'hf-hub:me/model' could not be pushed: the repository id is not valid; give namespace/name of "
        "letters, digits, '-', '_' and '.', as in me/deit_tiny-tosa.",
    ),
    (
        "a push to 'me/model--x'",
        lambda stub_hub: push(to_push(), "me/model--x"),
        "'me/model--x' could not be pushed: the repository id is not valid; give namespace/name of letters, "
        "digits, '-', '_' and '.', as in me/deit_tiny-tosa.",
    ),
    (
        "a push to 'me/.model'",
        lambda stub_hub: push(to_push(), "me/.model"),
        "'me/.model' could not be pushed: the repository id is not valid; give namespace/name of letters, "
        "digits, '-', '_' and '.', as in me/deit_tiny-tosa.",
    ),
    (
        "a push without a token",
        lambda signed_out: push(to_push()),
        "'me/model' could not be pushed: there is no access token; log in with `hf auth login` or set "
        "HF_TOKEN to a token with write access.",
    ),
    (
        "a push with a token that is refused",
        lambda refused_token: push(to_push()),
        "'me/model' could not be pushed: the access token was refused; log in again with `hf auth login` or "
        "set HF_TOKEN to a valid token (HF_TOKEN wins over the login).",
    ),
    (
        "a push with a token to read",
        lambda read_token: push(to_push()),
        "'me/model' could not be pushed: the Hub does not allow it (You don't have the rights to create a "
        'model under the namespace "me"); check the namespace, or use a token that has the right, from '
        "http://127.0.0.1:…/settings/tokens.",
    ),
    (
        "a push to the namespace of others",
        lambda stub_hub: push(to_push(), "others/model"),
        "'others/model' could not be pushed: the Hub does not allow it (You don't have the rights to create "
        'a model under the namespace "others"); check the namespace, or use a token that has the right, from '
        "http://127.0.0.1:…/settings/tokens.",
    ),
    (
        "a commit in between",
        lambda stub_hub: fail(stub_hub, "/commit/", 412, "A commit has happened since. Please refresh and try again."),
        "'me/model' could not be pushed: the Hub answered 412: A commit has happened since. Please refresh "
        "and try again.",
    ),
    (
        "a push to a Hub that is down",
        lambda stub_hub: fail(stub_hub, "/repos/create", 503, "Service unavailable"),
        "'me/model' could not be pushed: the Hub answered 503 (Service unavailable); wait a while and try again.",
    ),
    (
        "an upload that fails",
        lambda stub_hub: fail(stub_hub, "/storage/", 403, "The storage quota is used up"),
        "'me/model' could not be pushed: the Hub does not allow it (The storage quota is used up); check the "
        "namespace, or use a token that has the right, from http://127.0.0.1:…/settings/tokens.",
    ),
    (
        "a push without network",
        lambda unreachable: push(to_push()),
        "'me/model' could not be pushed: http://127.0.0.1:… cannot be reached (…); check the network, the "
        "proxy settings and HF_ENDPOINT, and try again.",
    ),
    (
        "a push in offline mode",
        lambda offline: push(to_push()),
        "'me/model' could not be pushed: offline mode is on; unset HF_HUB_OFFLINE and try again.",
    ),
]
"""What is read from the Hub and pushed to it."""


@table(HUB)
def test_what_is_said(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    check(request, fails, sentence)
