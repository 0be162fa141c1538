"""From what a user names to a dense model: whatever is broken, foreign or misspelt is told in a sentence."""

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from torch import nn

from tests.sentences import fragments
from tosa_cli.api import convert
from tosa_cli.config import TosaConfig
from tosa_cli.errors import CheckpointError, HubError, InputError, SourceError, TosaError, UnsupportedModelError
from tosa_cli.hub.original import dense_model
from tosa_cli.hub.source import Source, load_source
from tosa_cli.hub.timm_models import resolve_name
from tosa_cli.workflow.save import render_card, save

from ..model.tiny_models import LAYERS, MODELS, make_images, make_tosa, make_vit
from .stub_hub import (
    StubHub,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """A model of five classes."""
    return make_vit(num_classes=5)


def write_folder(folder: Path, model: nn.Module) -> Path:
    """A folder in timm's own format, written by timm."""
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def source_error(source: str | Path, kind: type[TosaError], **args: Any) -> str:
    with pytest.raises(TosaError) as failure:
        load_source(str(source), **args)
    message = str(failure.value)
    assert type(failure.value) is kind, message
    assert "\n" not in message and message.endswith((".", "?"))
    return message


def assert_same(loaded: Source, model: nn.Module) -> None:
    assert not loaded.model.training
    assert torch.equal(loaded.model(make_images()), model(make_images()))


# ---------------------------------------------------------------------- names


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


# ---------------------------------------------------------------------- folders


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_written_by_timm_is_read(name: str, tmp_path: Path) -> None:
    model = make_vit(name, num_classes=5)
    loaded = load_source(str(write_folder(tmp_path / "dense", model)))
    assert_same(loaded, model)
    assert loaded.name == name and loaded.hub_id is None and loaded.revision is None


def split_weights(folder: Path, parts: int = 3) -> Path:
    """Split the weights of a folder into parts, with the index of the Hub's libraries."""
    state = load_file(folder / "model.safetensors")
    names = {key: f"model-{1 + i % parts:05d}-of-{parts:05d}.safetensors" for i, key in enumerate(state)}
    for name in set(names.values()):
        save_file({key: value for key, value in state.items() if names[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "model.safetensors").unlink()
    return folder


def test_a_source_is_loaded_in_inference_mode_too(tmp_path: Path, vit: nn.Module) -> None:
    folder = write_folder(tmp_path / "dense", vit)
    with torch.inference_mode():
        assert_same(load_source(str(folder)), vit)


def test_weights_that_are_split_are_read_by_their_index(tmp_path: Path, vit: nn.Module) -> None:
    folder = split_weights(write_folder(tmp_path / "dense", vit))
    assert_same(load_source(str(folder)), vit)
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = source_error(folder, CheckpointError)
    assert "model-00002-of-00003.safetensors" in message


def test_a_folder_may_be_named_as_timm_does(tmp_path: Path, vit: nn.Module) -> None:
    assert_same(load_source(f"local-dir:{write_folder(tmp_path / 'dense', vit)}"), vit)


def test_a_folder_here_wins_over_a_repository_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vit: nn.Module
) -> None:
    write_folder(tmp_path / "org" / "name", vit)
    monkeypatch.chdir(tmp_path)
    assert_same(load_source("org/name"), vit)


def test_a_folder_is_converted(tmp_path: Path, vit: nn.Module) -> None:
    folder = str(write_folder(tmp_path / "dense", vit))
    model = convert(folder, TosaConfig(layers=LAYERS, keep_rate=1.0))
    assert torch.allclose(model(make_images()), vit(make_images()), atol=1e-4)
    assert model.provenance.source == folder and model.provenance.base_model == "test_vit"


def test_a_path_is_a_folder_or_a_weights_file(tmp_path: Path, vit: nn.Module) -> None:
    folder, file = write_folder(tmp_path / "dense", vit), tmp_path / "test_vit.safetensors"
    save_file(vit.state_dict(), file)
    for path in (folder, file):
        model = convert(path, TosaConfig(layers=LAYERS, keep_rate=1.0))
        assert torch.allclose(model(make_images()), vit(make_images()), atol=1e-4)
        assert model.provenance.source == str(path)


def test_a_model_whose_weights_are_not_finite_is_refused_with_the_first_key() -> None:
    model = make_vit(num_classes=5)
    model.blocks[1].mlp.fc2.weight.data[3, 4] = float("inf")
    model.head.bias.data[0] = float("nan")
    with pytest.raises(CheckpointError, match=fragments.TEST_VIT_BLOCKS_1_MLP):
        convert(model, TosaConfig(layers=LAYERS))


def test_another_image_size_resamples_the_positions_of_a_folder(tmp_path: Path, vit: nn.Module) -> None:
    model = load_source(str(write_folder(tmp_path / "dense", vit)), img_size=(96, 128)).model
    assert model.patch_embed.img_size == (96, 128) and model.pos_embed.shape[1] == 1 + 6 * 8
    assert torch.equal(model.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)


def test_another_number_of_classes_makes_a_new_head_and_nothing_else(tmp_path: Path, vit: nn.Module) -> None:
    model = load_source(str(write_folder(tmp_path / "dense", vit)), num_classes=3).model
    assert model(make_images()).shape == (2, 3)
    assert torch.equal(model.forward_features(make_images()), vit.forward_features(make_images()))


def test_without_weights_a_folder_gives_the_architecture_alone(tmp_path: Path, vit: nn.Module) -> None:
    model = load_source(str(write_folder(tmp_path / "dense", vit)), pretrained=False).model
    assert model.num_classes == 5 and not torch.equal(model.pos_embed, vit.pos_embed)


@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda state: state.pop("blocks.3.attn.qkv.bias"), "'blocks.3.attn.qkv.bias'"),
        (lambda state: state.update(surplus=torch.ones(1)), "'surplus'"),
        (lambda state: state.update({"norm.weight": torch.ones(7)}), "norm.weight"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_weights_of_a_folder_must_fit_whether_or_not_the_head_is_replaced(
    tmp_path: Path, vit: nn.Module, change: Callable[[dict[str, Any]], Any], key: str, num_classes: int | None
) -> None:
    folder = write_folder(tmp_path / "dense", vit)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    message = source_error(folder, CheckpointError, num_classes=num_classes)
    assert key in message and str(folder) in message


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(num_classes=7),
        lambda values: values["model_args"].update(num_classes=7),
        lambda values: (values.update(num_classes=7), values["model_args"].update(num_classes=7)),
    ],
    ids=["top", "model_args", "both"],
)
def test_a_wrong_number_of_classes_in_the_configuration_never_gives_a_head_at_random(
    tmp_path: Path, vit: nn.Module, change: Callable[[dict[str, Any]], Any]
) -> None:
    folder = edit_config(write_folder(tmp_path / "dense", vit), change)
    assert "7" in source_error(folder, CheckpointError)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{", "config.json"),
        (b"", "config.json"),
        (b"\xff\xfe", "config.json"),
        (b"[1, 2]", "list"),
        (b'"test_vit"', "str"),
        (b"{}", "'architecture'"),
        (b'{"architecture": 5}', "'architecture'"),
        (b'{"architecture": "vit_of_mine"}', "'vit_of_mine'"),
        (b'{"architecture": "test_vit", "pretrained_cfg": 5}', "(AttributeError: "),
        (b'{"architecture": "test_vit", "pretrained_cfg": {"no": 1}}', "'no'"),
        (b'{"architecture": "test_vit", "pretrained_cfg": {}, "model_args": {"no": 1}}', "'no'"),
        (b'{"architecture": "test_vit", "pretrained_cfg": {}, "model_args": 5}', "(AttributeError: "),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(
    tmp_path: Path, vit: nn.Module, content: bytes, named: str
) -> None:
    folder = write_folder(tmp_path / "dense", vit)
    (folder / "config.json").write_bytes(content)
    message = source_error(folder, CheckpointError)
    assert named in message and str(folder) in message


def test_a_folder_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "dense", timm.create_model("test_resnet"))
    assert "ResNet" in source_error(folder, UnsupportedModelError)


def test_a_folder_without_a_configuration_or_weights_is_refused(tmp_path: Path, vit: nn.Module) -> None:
    folder = write_folder(tmp_path / "dense", vit)
    (folder / "model.safetensors").unlink()
    assert str(folder) in source_error(folder, CheckpointError)
    (folder / "config.json").unlink()
    assert "config.json" in source_error(folder, CheckpointError)


@pytest.mark.parametrize("share", [0.5, 0.001, 0])
def test_weights_of_a_folder_that_are_cut_short_are_refused(tmp_path: Path, vit: nn.Module, share: float) -> None:
    folder = write_folder(tmp_path / "dense", vit)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(share * weights.stat().st_size)])
    assert str(folder) in source_error(folder, CheckpointError)


def test_a_converted_folder_is_not_converted_twice(tmp_path: Path, vit: nn.Module) -> None:
    folder = save(make_tosa(vit), tmp_path / "converted")
    assert str(folder) in source_error(folder, SourceError)
    message = source_error(folder / "model.safetensors", CheckpointError, architecture="test_vit")
    assert "'selectors.2.conv1." in message


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "./nowhere", "../nowhere/file.pth", "nowhere.safetensors", "a/b/c"]
)
def test_a_path_to_nothing_is_not_taken_for_a_repository(path: str, stub_hub: StubHub) -> None:
    for source in (path, f"local-dir:{path}"):
        assert str(Path(path)) in source_error(source, SourceError)
    assert stub_hub.requests == []


# ---------------------------------------------------------------------- weights files


def write_weights(path: Path, content: Any) -> str:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("test_vit.safetensors", lambda state: state),
        ("test_vit.pth", lambda state: state),
        ("test_vit-mine.r160.pt", lambda state: state),
        ("test_vit.bin", lambda state: {"model": state, "epoch": 3}),
        ("test_vit.pth.tar", lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}}),
        ("test_vit.pth", lambda state: {"model": state, "args": argparse.Namespace(lr=1)}),
    ],
    ids=["safetensors", "pth", "pt", "model", "module", "args"],
)
def test_a_weights_file_is_read_and_its_name_tells_the_architecture(
    tmp_path: Path, vit: nn.Module, name: str, wrap: Callable[[Any], Any]
) -> None:
    loaded = load_source(write_weights(tmp_path / name, wrap(vit.state_dict())))
    assert_same(loaded, vit)
    assert loaded.name == "test_vit" and loaded.hub_id is None


def test_the_longest_architecture_in_the_name_of_a_file_counts(tmp_path: Path) -> None:
    model = make_vit("test_vit2", num_classes=5)
    assert_same(load_source(write_weights(tmp_path / "test_vit2_mine.safetensors", model.state_dict())), model)


def test_the_architecture_of_a_file_can_be_given(tmp_path: Path, vit: nn.Module) -> None:
    path = write_weights(tmp_path / "weights.safetensors", vit.state_dict())
    assert_same(load_source(path, architecture="test_vit"), vit)
    message = source_error(path, SourceError)
    assert str(path) in message and "--architecture" in message
    assert " test_vit " in source_error(path, SourceError, architecture="test_vitt")
    assert "resnet18" in source_error(path, UnsupportedModelError, architecture="resnet18")
    assert "'reg_token'" in source_error(path, CheckpointError, architecture="test_vit2")


def test_a_file_without_a_head_gives_a_model_without_one(tmp_path: Path) -> None:
    model = make_vit(num_classes=0)
    loaded = load_source(write_weights(tmp_path / "test_vit.safetensors", model.state_dict()))
    assert loaded.model.num_classes == 0
    assert_same(loaded, model)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_a_file_tells_the_number_of_channels(tmp_path: Path, in_chans: int) -> None:
    model = make_vit(num_classes=5, in_chans=in_chans)
    path = write_weights(tmp_path / "test_vit.safetensors", model.state_dict())
    loaded, images = load_source(path).model, make_images().mean(1, keepdim=True).expand(-1, in_chans, -1, -1)
    assert loaded.in_chans == in_chans and torch.equal(loaded(images), model(images))


def test_size_and_classes_can_be_changed_for_a_file_too(tmp_path: Path, vit: nn.Module) -> None:
    path = write_weights(tmp_path / "test_vit.safetensors", vit.state_dict())
    model = load_source(path, img_size=(96, 128), num_classes=3).model
    assert model(make_images(size=(96, 128))).shape == (2, 3)
    assert torch.equal(model.blocks[5].mlp.fc1.weight, vit.blocks[5].mlp.fc1.weight)
    assert_same(load_source(path, num_classes=5), vit)
    assert load_source(path, num_classes=0).model(make_images()).shape == (2, 64)


def test_weights_of_a_file_must_fit(tmp_path: Path, vit: nn.Module) -> None:
    state = vit.state_dict()
    del state["norm.weight"]
    for num_classes in (None, 3):
        path = write_weights(tmp_path / "test_vit.safetensors", state)
        assert "'norm.weight'" in source_error(path, CheckpointError, num_classes=num_classes)
    foreign = write_weights(tmp_path / "test_vit_foreign.safetensors", {"bert.embeddings": torch.ones(3, 3)})
    assert "'cls_token'" in source_error(foreign, CheckpointError)


class WritesMarker:
    """Writes a file when it is unpickled, as harmful code would."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("place", ["file", "folder"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, vit: nn.Module, place: str) -> None:
    marker = tmp_path / "marker"
    content = {**vit.state_dict(), "norm.weight": WritesMarker(marker)}
    if place == "file":
        source = pickled = tmp_path / "test_vit.pth"
    else:
        source = write_folder(tmp_path / "dense", vit)
        (source / "model.safetensors").unlink()
        pickled = source / "pytorch_model.bin"
    write_weights(pickled, content)
    with pytest.raises(AttributeError):
        pickle.loads(pickle.dumps(WritesMarker(marker))).read_marker()
    assert marker.exists()  # so it would have been written
    marker.unlink()
    message = source_error(source, CheckpointError)
    assert str(source) in message and ".safetensors" in message
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.5, 0])
def test_a_weights_file_that_is_cut_short_is_called_broken(
    tmp_path: Path, vit: nn.Module, suffix: str, share: float
) -> None:
    path = tmp_path / f"test_vit{suffix}"
    write_weights(path, vit.state_dict())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert str(path) in source_error(path, CheckpointError)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {1: torch.ones(3)}, "text"], ids=lambda c: type(c).__name__)
def test_a_file_that_holds_no_named_tensors_is_called_broken(tmp_path: Path, content: Any) -> None:
    assert "test_vit.pth" in source_error(write_weights(tmp_path / "test_vit.pth", content), CheckpointError)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid", b"<html>", b"hello, world"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "test_vit.pth"
    path.write_bytes(content)
    assert str(path) in source_error(path, CheckpointError)


@pytest.mark.parametrize("name", ["test_vit.txt", "test_vit.onnx", "test_vit"])
def test_a_file_with_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    message = source_error(tmp_path / name, SourceError)
    assert str(tmp_path / name) in message and ".safetensors" in message


# ---------------------------------------------------------------------- the Hub


def hub_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
