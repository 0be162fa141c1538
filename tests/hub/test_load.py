"""Loading from the Hub in one line: what the client's users expect of revisions, tokens and offline mode."""

import json
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from timm.data import resolve_input_data_config, resolve_model_data_config

import tosa_cli
from tests.processes import run_program
from tests.sentences import fragments
from tosa_cli.errors import CheckpointError, HubError, InputError, SourceError, TosaError
from tosa_cli.model.tosa_vit import TosaViT

from ..model.tiny_models import make_images
from .loaded import (
    is_same,
    load_error,
    make_models,  # noqa: F401 (the fixture `models`)
    read_files,  # noqa: F401 (the fixture `files`)
)
from .stub_hub import (
    WRITE_TOKEN,
    Reply,
    Request,
    StubHub,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)

# ---------------------------------------------------------------------- one line


@pytest.mark.parametrize("form", ["me/model", "hf-hub:me/model"])
def test_tosa_and_timm_load_a_repository_in_one_line(
    stub_hub: StubHub, files: list[dict[str, bytes]], models: list[TosaViT], form: str
) -> None:
    stub_hub.put("me/model", files[0])
    assert is_same(tosa_cli.load(form), models[0])
    assert is_same(timm.create_model("hf-hub:me/model", pretrained=True), models[0])


def test_what_timm_makes_of_it_has_features_intermediates_and_transforms(
    stub_hub: StubHub, files: list[dict[str, bytes]], models: list[TosaViT]
) -> None:
    stub_hub.put("me/model", files[0])
    images = make_images(size=64)
    expected = models[0].forward_intermediates(images, indices=[1, 3], intermediates_only=True)
    extractor = timm.create_model("hf-hub:me/model", pretrained=True, features_only=True, out_indices=[1, 3]).eval()
    assert all(torch.equal(a, b) for a, b in zip(extractor(images), expected, strict=True))
    loaded = timm.create_model("hf-hub:me/model", pretrained=True).eval()
    final, maps = loaded.forward_intermediates(images, indices=[1, 3])
    assert torch.equal(final, models[0].forward_features(images))
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    expected_config = {**resolve_model_data_config(models[0].backbone), "input_size": (3, 64, 64)}
    for model in (loaded, tosa_cli.load("me/model")):
        for resolve in (resolve_model_data_config, resolve_input_data_config):
            config = resolve(model)
            assert {**config, "mean": tuple(config["mean"]), "std": tuple(config["std"])} == expected_config
    by_tosa = tosa_cli.load("me/model", img_size=96)
    assert resolve_input_data_config(by_tosa)["input_size"] == (3, 96, 96)


def test_a_new_process_loads_by_its_environment_alone(
    stub_hub: StubHub, files: list[dict[str, bytes]], tmp_path: Path
) -> None:
    commit = stub_hub.put("me/model", files[0], private=True)
    code = "import tosa_cli; print(tosa_cli.load('me/model').num_classes)"
    by_timm = (
        "import tosa_cli, timm; print(timm.create_model('hf-hub:me/model', pretrained=True).num_classes);"
        f"print(tosa_cli.load('me/model@{commit.oid}').num_classes)"
    )
    environment = stub_hub.environment(tmp_path / "home")
    assert run_program(code, environment).stdout == "5\n"
    assert (tmp_path / "home" / "hub" / "models--me--model").is_dir()
    asked = len(stub_hub.requests)
    assert run_program(f"{code}; {by_timm}", environment | {"HF_HUB_OFFLINE": "1"}).stdout == "5\n5\n5\n"
    assert len(stub_hub.requests) == asked


# ---------------------------------------------------------------------- revisions


def test_a_revision_is_a_branch_a_pull_request_or_a_commit(
    stub_hub: StubHub, files: list[dict[str, bytes]], models: list[TosaViT]
) -> None:
    first = stub_hub.put("me/model", files[0])
    stub_hub.put("me/model", files[1])
    stub_hub.repos["me/model"].heads |= {"old/one": first, "refs/pr/1": first}
    assert is_same(tosa_cli.load("me/model"), models[1])
    for revision in (first.oid, "old/one", "refs/pr/1"):
        assert is_same(tosa_cli.load("me/model", revision=revision), models[0])
        assert is_same(tosa_cli.load(f"me/model@{revision}"), models[0])
    assert is_same(tosa_cli.load("me/model@main", revision="main"), models[1])
    assert is_same(timm.create_model(f"hf-hub:me/model@{first.oid}", pretrained=True), models[0])


def test_a_revision_that_is_not_there_or_named_twice_is_told(stub_hub: StubHub, files: list[dict[str, bytes]]) -> None:
    stub_hub.put("me/model", files[0])
    load_error("me/model@nowhere", SourceError)
    assert "other" in load_error("me/model@main", SourceError, revision="other")


def test_configuration_and_weights_are_of_one_commit_even_if_the_branch_moves_on(
    stub_hub: StubHub, files: list[dict[str, bytes]], models: list[TosaViT], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_hub.put("me/model", files[0])
    answer = stub_hub.answer

    def push_in_between(request: Request) -> Reply:
        reply = answer(request)
        if request.method == "GET" and request.path.endswith("config.json"):
            stub_hub.put("me/model", files[1])
        return reply

    monkeypatch.setattr(stub_hub, "answer", push_in_between)
    assert is_same(tosa_cli.load("me/model"), models[0])
    assert is_same(tosa_cli.load("me/model"), models[1])


# ---------------------------------------------------------------------- tokens


def test_a_private_repository_takes_the_token_of_the_environment_or_the_one_given(
    stub_hub: StubHub, files: list[dict[str, bytes]], models: list[TosaViT], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_hub.put("me/secret", files[0], private=True)
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN" in load_error("me/secret", SourceError)
    assert "HF_TOKEN" in load_error("me/secret", HubError, token="hf_expired")
    assert is_same(tosa_cli.load("me/secret", token=WRITE_TOKEN), models[0])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-empty")
    Path(constants.HF_TOKEN_PATH).write_text(WRITE_TOKEN)
    assert is_same(tosa_cli.load("me/secret"), models[0])


@pytest.mark.parametrize("token", [None, WRITE_TOKEN])
def test_a_gated_repository_asks_for_access(
    stub_hub: StubHub, files: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    stub_hub.put("org/gated", files[0], gated=True)
    monkeypatch.delenv("HF_TOKEN")
    options = {"token": token} if token else {}
    assert "`hf auth login`" in load_error("org/gated", HubError, **options)


# ---------------------------------------------------------------------- what is no converted model


def test_a_dense_repository_is_refused_before_its_weights_are_fetched(stub_hub: StubHub) -> None:
    stub_hub.put("me/dense", {"config.json": json.dumps({"architecture": "test_vit"}).encode()})
    message = load_error("me/dense", CheckpointError)
    assert "test_vit" in message and fragments.TOSA_CONVERT_ME_DENSE in message
    assert not any("model.safetensors" in request for request in stub_hub.requests)


def test_a_repository_without_weights_or_configuration_is_told(
    stub_hub: StubHub, files: list[dict[str, bytes]]
) -> None:
    stub_hub.put("me/half", {"config.json": files[0]["config.json"]})
    stub_hub.put("me/empty", {})
    assert "model.safetensors" in load_error("me/half", SourceError)
    assert "config.json" in load_error("me/empty", SourceError)


def test_ids_that_are_none_are_told() -> None:
    load_error("a b/c", InputError)
    with pytest.raises(SourceError, match="me/model"):
        tosa_cli.load("local-dir:me/model")


def test_an_image_size_that_is_no_whole_patches_is_refused(models: list[TosaViT], tmp_path: Path) -> None:
    folder = tosa_cli.save(models[0], tmp_path / "model")
    with pytest.raises(TosaError, match=r"65x65 .* 16x16"):
        tosa_cli.load(folder, img_size=65)
    assert tosa_cli.load(folder, img_size=96).patch_embed.img_size == (96, 96)  # type: ignore[union-attr]
