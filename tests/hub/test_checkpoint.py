"""A model folder: written whole or not at all, read strictly, and loaded by timm as well as by tosa."""

import copy
import errno
import json
import os
import pickle
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from filelock import FileLock
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import tosa_cli
from tests.processes import run_program
from tests.sentences import fragments
from tosa_cli.api import convert
from tosa_cli.config import TosaConfig
from tosa_cli.errors import CheckpointError, OutputError, SourceError, TosaError
from tosa_cli.hub import writing
from tosa_cli.hub.checkpoint import describe, is_model_folder, load, with_results
from tosa_cli.hub.source import load_source
from tosa_cli.hub.writing import write_file
from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import COMMANDS, FORMAT_VERSION, Provenance
from tosa_cli.recipe import load_recipe
from tosa_cli.train.config import DistillConfig, FinetuneConfig
from tosa_cli.workflow.convert import convert_source
from tosa_cli.workflow.save import save

from ..model.test_backbone import SHRUNK
from ..model.tiny_models import LAYERS, MODELS, make_images, make_tosa, make_vit
from .stub_hub import (
    StubHub,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)

FILES = {"model.safetensors", "config.json", "README.md", "recipe.yaml"}


@pytest.fixture
def model() -> TosaViT:
    """A converted model of five classes."""
    return make_tosa(make_vit(num_classes=5), keep_rate=(0.3, 0.5, 0.7))


@pytest.fixture
def folder(model: TosaViT, tmp_path: Path) -> Path:
    """Its folder, alone in an empty one."""
    return save(model, tmp_path / "model")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(loaded: nn.Module, model: nn.Module, size: int | tuple[int, int] = 160) -> None:
    assert torch.equal(loaded(make_images(size=size)), model(make_images(size=size)))


def load_error(folder: Path | str, kind: type[TosaError] = CheckpointError) -> str:
    with pytest.raises(TosaError) as failure:
        load(folder)
    message = str(failure.value)
    assert type(failure.value) is kind, message
    assert "\n" not in message and message.endswith(".") and str(folder) in message
    return message


# ---------------------------------------------------------------------- there and back


@pytest.mark.parametrize(
    "settings", [{}, {"selection": "per-head", "query_rows": "all"}, {"selector_kernel": 3}], ids=str
)
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_with_bit_equal_outputs(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = make_tosa(name, **settings)
    loaded = load(save(model, tmp_path / "model"))
    assert_same(loaded, model)
    assert loaded.config == model.config and not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_timm_loads_it_with_bit_equal_outputs_too(name: str, tmp_path: Path) -> None:
    model = make_tosa(name)
    loaded = timm.create_model(f"local-dir:{save(model, tmp_path / 'model')}", pretrained=True).eval()
    assert isinstance(loaded, TosaViT)
    assert_same(loaded, model)


def test_a_new_process_that_imports_tosa_and_timm_alone_loads_it(folder: Path, model: TosaViT, tmp_path: Path) -> None:
    save_file({"images": make_images()}, tmp_path / "images")
    code = (
        "import tosa_cli, timm; from safetensors.torch import load_file, save_file;"
        f"folder, work = {str(folder)!r}, {str(tmp_path)!r}; images = load_file(work + '/images')['images'];"
        "one = timm.create_model('local-dir:' + folder, pretrained=True).eval(); other = tosa_cli.load(folder);"
        "save_file({'timm': one(images), 'tosa': other(images)}, work + '/outputs')"
    )
    run_program(code)
    outputs = load_file(tmp_path / "outputs")
    assert torch.equal(outputs["timm"], model(make_images()))
    assert torch.equal(outputs["tosa"], model(make_images()))


@pytest.mark.parametrize(
    "args",
    [
        {"reg_tokens": 2},
        {"qk_norm": True},
        {"global_pool": "avg"},
        {"in_chans": 1},
        {"init_values": 0.1},
    ],
    ids=str,
)
def test_what_timm_was_told_when_the_source_was_built_is_kept(args: dict[str, Any], tmp_path: Path) -> None:
    model = make_tosa(make_vit(num_classes=5, **args))
    loaded = load(save(model, tmp_path / "model"))
    images = make_images()[:, : model.in_chans]
    assert torch.equal(loaded(images), model(images))


def test_dynamic_image_size_is_kept(tmp_path: Path) -> None:
    model = make_tosa(make_vit(num_classes=5, dynamic_img_size=True))
    assert_same(load(save(model, tmp_path / "model")), model, size=(64, 128))


@pytest.mark.parametrize(
    ("change", "size"),
    [
        (lambda model: model.reset_classifier(3), 160),
        (lambda model: model.reset_classifier(0), 160),
        (lambda model: model.reset_classifier(3, "avg"), 160),
        (lambda model: model.set_input_size(img_size=(96, 128)), (96, 128)),
    ],
    ids=["classes", "no-head", "pool", "size"],
)
def test_what_was_changed_after_conversion_is_kept(
    model: TosaViT, tmp_path: Path, change: Callable[[TosaViT], None], size: Any
) -> None:
    change(model)
    assert_same(load(save(model, tmp_path / "model")), model, size)


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_rpn_224", "vit_base_patch16_xp_224", "deit_tiny_distilled_patch16_224"]
)
def test_other_architectures_survive_too(name: str, tmp_path: Path) -> None:
    model = make_tosa(make_vit(name, **SHRUNK))
    assert_same(load(save(model, tmp_path / "model")), model, 64)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(96, 96), (96, 208)], ids=str)
def test_a_model_loads_at_another_image_size(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    model = make_tosa(name)
    folder = save(model, tmp_path / "model")
    loaded = load(folder, img_size=size)
    assert loaded.patch_embed.img_size == size
    model.set_input_size(img_size=size)
    assert torch.allclose(loaded(make_images(size=size)), model(make_images(size=size)), atol=1e-4)
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size).eval()
    assert_same(by_timm, loaded, size)


def test_positions_saved_for_a_tall_image_are_read_as_such(tmp_path: Path) -> None:
    # 72 positions fit 6 x 12 and 9 x 8 patches: which of them, the folder has to say.
    model = make_tosa(make_vit(num_classes=5, img_size=(96, 192)))
    folder = save(model, tmp_path / "model")
    model.set_input_size(img_size=(144, 128))
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=(144, 128)).eval()
    for loaded in (load(folder, img_size=(144, 128)), by_timm):
        outputs = loaded(make_images(size=(144, 128)))
        assert torch.allclose(outputs, model(make_images(size=(144, 128))), atol=1e-4)


@pytest.mark.parametrize("args", [{}, {"dynamic_img_size": False}, {"in_chans": 1}], ids=str)
def test_timm_resolves_transforms_for_the_size_that_a_model_has(args: dict[str, Any], tmp_path: Path) -> None:
    def check(found: Any, *size: int) -> None:
        resolved = timm.data.resolve_model_data_config(found)
        assert found.patch_embed.img_size == size and resolved["input_size"] == (found.in_chans, *size)
        assert resolved["crop_pct"] == 0.95 and resolved["interpolation"] == "bicubic"
        assert not found.pretrained_cfg.get("test_input_size")

    backbone = make_vit(num_classes=5, img_size=96, **args)
    backbone.pretrained_cfg["test_input_size"] = (3, 192, 192)
    model = convert(backbone, TosaConfig(layers=LAYERS))
    check(model, 96, 96)
    folder = save(model, tmp_path / "model")
    channels = model.in_chans
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"] == [channels, 96, 96]
    check(load(folder), 96, 96)
    check(timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=(64, 128)), 64, 128)
    resized = load(folder, img_size=(128, 64))
    check(resized, 128, 64)
    save(resized, folder, overwrite=True)
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"] == [channels, 128, 64]
    check(load(folder), 128, 64)


def test_a_size_to_test_at_is_kept_with_the_size_it_was_meant_for(tmp_path: Path) -> None:
    backbone = make_vit(num_classes=5)
    backbone.pretrained_cfg["test_input_size"] = (3, 192, 192)
    loaded = load(save(convert(backbone, TosaConfig(layers=LAYERS)), tmp_path / "model"))
    assert timm.data.resolve_model_data_config(loaded, use_test_size=True)["input_size"] == (3, 192, 192)


def test_one_number_is_a_square(folder: Path) -> None:
    assert load(folder, img_size=64).patch_embed.img_size == (64, 64)


def test_timm_replaces_the_head_when_asked_for_another_number_of_classes(folder: Path, model: TosaViT) -> None:
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).eval()
    assert loaded(make_images()).shape == (2, 3)
    assert torch.equal(loaded.forward_features(make_images()), model.forward_features(make_images()))


def test_provenance_is_kept(tmp_path: Path, model: TosaViT) -> None:
    model.provenance = Provenance(source="test_vit", base_model="test_vit.r160_in1k", license="mit").after(
        "distilled", DistillConfig().to_dict(), {"distill": {"samples": 4, "layers": []}}
    )
    assert load(save(model, tmp_path / "model")).provenance == model.provenance


def test_a_saved_model_is_saved_again_without_loss(folder: Path, model: TosaViT) -> None:
    before = contents(folder)
    save(load(folder), folder, overwrite=True)
    assert contents(folder) == before


def test_a_repository_on_the_hub_loads(stub_hub: StubHub, folder: Path, model: TosaViT) -> None:
    commit = stub_hub.put("me/model", contents(folder))
    stub_hub.put("me/model", {"config.json": b"{}"})
    assert_same(load(f"me/model@{commit.oid}"), model)
    assert_same(load("hf-hub:me/model", revision=commit.oid), model)
    assert_same(timm.create_model(f"hf-hub:me/model@{commit.oid}", pretrained=True).eval(), model)
    with pytest.raises(CheckpointError):
        load("me/model")


# ---------------------------------------------------------------------- what is written


def test_a_folder_holds_weights_configuration_card_and_recipe(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES


def test_no_file_is_a_pickle(folder: Path) -> None:
    for path in folder.iterdir():
        with pytest.raises((pickle.UnpicklingError, EOFError, KeyError, ValueError, IndexError)):
            pickle.loads(path.read_bytes())
        assert path.suffix not in (".bin", ".pth", ".pt", ".pkl")


def test_the_weights_have_timms_own_key_names_and_those_of_the_selectors(folder: Path) -> None:
    keys = set(load_file(folder / "model.safetensors"))
    assert {key for key in keys if not key.startswith("selectors.")} == set(make_vit(num_classes=5).state_dict())
    assert {key.split(".")[1] for key in keys if key.startswith("selectors.")} == {"2", "4", "6"}


def test_the_configuration_has_timms_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "tosa_vit"  # so timm without tosa refuses it, where it would load it as dense
    assert config["num_classes"] == 5 and config["num_features"] == 64 and "num_classes" not in config["model_args"]
    args = config["model_args"]
    assert args["base_architecture"] == "test_vit" and args["img_size"] == [160, 160]
    assert {name: args[name] for name in TosaConfig.field_names()} == make_tosa(
        keep_rate=(0.3, 0.5, 0.7)
    ).config.to_dict()
    assert config["tosa"]["format_version"] == FORMAT_VERSION
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5] and "architecture" not in config["pretrained_cfg"]


def test_describing_a_model_does_not_change_it(model: TosaViT) -> None:
    before = describe(model)
    assert describe(model) == before == json.loads(json.dumps(before))


def test_everybody_who_may_read_files_here_may_read_these(model: TosaViT, tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        folder = save(model, tmp_path / "model")
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


def test_the_recipe_is_what_made_the_model(model: TosaViT, tmp_path: Path) -> None:
    model = convert(make_vit(num_classes=5), model.config)
    provenance = model.provenance.after("distilled", DistillConfig(data_dir="photos", lr=0.02).to_dict())
    model.provenance = provenance.after("finetuned", FinetuneConfig(data_dir="photos").to_dict())
    folder = save(model, tmp_path / "model")
    sections = load_recipe(str(folder / "recipe.yaml")).sections
    assert sections["convert"]["layers"] == [2, 4, 6] and sections["convert"]["keep_rate"] == [0.3, 0.5, 0.7]
    assert DistillConfig.from_dict(sections["distill"]) == DistillConfig(data_dir="photos", lr=0.02)
    assert FinetuneConfig.from_dict(sections["finetune"]) == FinetuneConfig(data_dir="photos")
    versions = yaml.safe_load((folder / "recipe.yaml").read_text())["versions"]
    assert versions["tosa-cli"] == tosa_cli.__version__ and versions["torch"] == str(torch.__version__)


# ---------------------------------------------------------------------- nothing is lost


def test_a_folder_is_not_overwritten_unless_asked(folder: Path, model: TosaViT) -> None:
    before = contents(folder)
    with pytest.raises(OutputError, match=f"{folder} .*--overwrite"):
        save(model, folder)
    assert contents(folder) == before


def test_an_empty_folder_and_missing_parents_are_fine(model: TosaViT, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_same(load(save(model, tmp_path / "empty")), model)
    assert_same(load(save(model, tmp_path / "not" / "yet" / "there")), model)


def test_files_of_the_user_survive_an_overwrite(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "runs" / "first").mkdir(parents=True)
    (folder / "runs" / "first" / "curve.csv").write_text("1,2")
    (folder / "link").symlink_to("notes.txt")
    other = make_tosa(make_vit(seed=5, num_classes=5))
    save(other, folder, overwrite=True)
    assert_same(load(folder), other)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "runs" / "first" / "curve.csv").read_text() == "1,2"
    assert (folder / "link").is_symlink() and (folder / "link").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_no_model_is_never_overwritten(model: TosaViT, tmp_path: Path) -> None:
    for name, content in {"notes.txt": "mine", "config.json": '{"name": "my-app"}'}.items():
        precious = tmp_path / name
        precious.mkdir()
        (precious / name).write_text(content)
        with pytest.raises(OutputError, match=f"{precious} "):
            save(model, precious, overwrite=True)
        assert contents(precious) == {name: content.encode()}


def test_the_folder_of_a_dense_model_is_not_overwritten_by_its_converted_one(model: TosaViT, tmp_path: Path) -> None:
    source = tmp_path / "dense"
    save_for_hf(make_vit(num_classes=5), str(source), safe_serialization=True)
    before = contents(source)
    with pytest.raises(OutputError):
        save(model, source, overwrite=True)
    assert contents(source) == before


def test_a_file_is_not_overwritten(model: TosaViT, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=f"{tmp_path / 'file'} "):
        save(model, tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match=f"{tmp_path / 'file'} "):
        save(model, tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == "mine"


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """No file may grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size_bytes", [0, 1000, 100_000])
def test_a_full_disk_leaves_the_old_folder_as_it_was(folder: Path, tmp_path: Path, size_bytes: int) -> None:
    before = contents(folder)
    model = make_tosa(make_vit(seed=5, num_classes=5))
    for target in (folder, tmp_path / "new"):
        with pytest.raises(OutputError) as failure, room_for(size_bytes):
            save(model, target, overwrite=True)
        assert str(target) in str(failure.value)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), RuntimeError("x")]
)
@pytest.mark.parametrize("step", ["hub.checkpoint.save_file", "workflow.save.render_card"])
def test_whatever_goes_wrong_while_saving_leaves_the_old_folder_as_it_was(
    folder: Path, model: TosaViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    before = contents(folder)
    monkeypatch.setattr(f"tosa_cli.{step}", fail)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
            save(model, target, overwrite=True)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("when", ["instead of the exchange", "after it"])
def test_a_replacement_that_is_stopped_leaves_one_whole_folder(
    folder: Path, model: TosaViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    before, exchange = contents(folder), writing.exchange

    def stop(one: Path, other: Path) -> bool:
        if when == "after it":
            exchange(one, other)
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "exchange", stop)
    other = make_tosa(make_vit(seed=5, num_classes=5))
    with pytest.raises(KeyboardInterrupt):
        save(other, folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    if when == "after it":
        assert_same(load(folder), other)
    else:
        assert contents(folder) == before


def test_where_folders_cannot_be_exchanged_files_are_replaced_one_by_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "notes.txt").write_text("mine")
    monkeypatch.setattr(writing, "exchange", lambda *_: False)
    other, before = make_tosa(make_vit(seed=5, num_classes=5)), folder.stat()
    save(other, folder, overwrite=True)
    assert os.path.samestat(before, folder.stat()) and sorted(contents(folder)) == sorted([*FILES, "runs/notes.txt"])
    assert_same(load(folder), other)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_on_which_a_volume_is_mounted_stays_the_same(
    model: TosaViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, replace, rename = tmp_path / "model", os.replace, Path.rename

    def within(move: Any) -> Any:
        def check(source: Path, target: Path) -> Any:
            if Path(source).is_relative_to(folder) != Path(target).is_relative_to(folder) or target == folder:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return move(source, target)

        return check

    folder.mkdir()
    before = folder.stat()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    monkeypatch.setattr(os, "replace", within(replace))
    monkeypatch.setattr(Path, "rename", within(rename))
    for seed in (0, 5):
        other = make_tosa(make_vit(seed=seed, num_classes=5))
        save(other, folder, overwrite=seed > 0)
        assert_same(load(folder), other)
        assert os.path.samestat(before, folder.stat()) and sorted(contents(folder)) == sorted(FILES)


def test_what_a_killed_run_left_is_swept_by_the_next_run_of_the_same_folder(
    folder: Path, model: TosaViT, tmp_path: Path
) -> None:
    for left in (tmp_path / ".model.writing", folder / ".writing"):
        left.mkdir()
        (left / "model.safetensors").write_bytes(b"half of the weights")
    (tmp_path / ".model.lock").touch()
    save(model, folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and sorted(contents(folder)) == sorted(FILES)


def test_a_folder_that_another_process_writes_is_not_written(folder: Path, model: TosaViT, tmp_path: Path) -> None:
    before = contents(folder)
    with FileLock(tmp_path / ".model.lock"):
        with pytest.raises(OutputError, match=fragments.ANOTHER_RUN_IS_WRITING_MODEL):
            save(model, folder, overwrite=True)
        assert contents(folder) == before
    save(model, folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_of_a_link_the_folder_that_it_points_to_is_written(folder: Path, tmp_path: Path) -> None:
    other, link = make_tosa(make_vit(seed=5, num_classes=5)), tmp_path / "link"
    link.symlink_to("model")
    save(other, link, overwrite=True)
    assert link.is_symlink() and sorted(path.name for path in tmp_path.iterdir()) == ["link", "model"]
    assert_same(load(folder), other)
    assert (folder / "README.md").read_text().count("# model\n") == 1


@pytest.mark.parametrize("inside", [".", "runs"])
def test_the_directory_in_which_one_works_stays_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    (folder / "runs").mkdir()
    (folder / "notes.txt").write_text("mine")
    monkeypatch.chdir(folder / inside)
    other, before = make_tosa(make_vit(seed=5, num_classes=5)), os.stat(".")
    save(other, Path("." if inside == "." else ".."), overwrite=True)
    assert os.path.samestat(before, os.stat(".")) and Path.cwd() == folder / inside
    assert_same(load(folder), other)
    assert (folder / "notes.txt").read_text() == "mine" and "# model\n" in (folder / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["instead of the move", "after it"])
@pytest.mark.parametrize("stopped_at", sorted(FILES))
def test_the_directory_in_which_one_works_is_left_whole_if_a_replacement_is_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, when: str, stopped_at: str
) -> None:
    (folder / "recipe.yaml").unlink()
    before, replace = contents(folder), os.replace

    def refuse(source: Path, target: Path) -> None:
        if (Path(target).name, Path(source).parent.name) != (stopped_at, ".writing"):
            return replace(source, target)
        if when == "after it":
            replace(source, target)
        raise error

    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "replace", refuse)
    other = make_tosa(make_vit(seed=5, num_classes=5))
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        save(other, Path(), overwrite=True)
    # The weights come last: with them in place the new folder is whole.
    if (stopped_at, when) == ("model.safetensors", "after it"):
        assert_same(load(folder), other)
    else:
        assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_file_that_is_not_written_leaves_the_old_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*args: Any) -> None:
        raise error

    (tmp_path / "picture.png").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        write_file(tmp_path / "picture.png", b"new")
    assert contents(tmp_path) == {"picture.png": b"old"}


def test_a_model_built_from_a_function_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = timm.create_model("test_vit", img_size=32, patch_size=8, norm_layer=partial(nn.LayerNorm, eps=1e-5))
    model = convert(source, TosaConfig(layers=(2,)))
    with pytest.raises(OutputError, match="norm_layer"):
        save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda state: state.pop("norm.weight"), "'norm.weight'"),
        (lambda state: state.pop("selectors.4.conv2.bias"), "'selectors.4.conv2.bias'"),
        (lambda state: state.update(surplus=torch.ones(1)), "'surplus'"),
        (lambda state: state.update(mask_token=torch.ones(1, 64)), "'mask_token'"),
        (lambda state: state.update({"pre_logits.fc.weight": torch.ones(1)}), "'pre_logits.fc.weight'"),
        (lambda state: state.update({"selectors.3.conv1.bias": torch.ones(1)}), "'selectors.3.conv1.bias'"),
        (lambda state: state.update({"head.weight": torch.ones(7, 64)}), "head.weight"),
        (lambda state: state.update({"selectors.2.conv1.bias": torch.ones(7)}), "selectors.2.conv1.bias"),
        (lambda state: state.update(pos_embed=torch.ones(1, 50, 64)), "pos_embed"),
    ],
)
def test_weights_that_do_not_fit_are_told_by_key(
    folder: Path, change: Callable[[dict[str, Any]], Any], key: str
) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    assert key in load_error(folder)


@pytest.mark.parametrize("share", [0.9, 0.01, 0])
def test_weights_that_are_cut_short_are_called_broken(folder: Path, share: float) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(share * weights.stat().st_size)])
    load_error(folder)


def set_value(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return change


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        del config[keys[-1]]

    return change


ARGS = "model_args"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (set_value("tosa", "format_version", value=FORMAT_VERSION + 1), "pip install -U tosa-cli"),
        (set_value("tosa", "format_version", value="1"), "format_version"),
        (drop("tosa", "format_version"), "format_version"),
        (set_value("tosa", "sorce", value="x"), "'sorce'"),
        (drop("tosa"), "'tosa'"),
        (set_value("tosa", value=[]), "'tosa'"),
        (drop(ARGS), "'model_args'"),
        (set_value(ARGS, value=3), "'model_args'"),
        (set_value("pretrained_cfg", value=None), "'pretrained_cfg'"),
        (set_value("pretrained_cfg", "no", value=1), "'no'"),
        (drop(ARGS, "base_architecture"), "'base_architecture'"),
        (set_value(ARGS, "base_architecture", value="vit_of_mine"), "vit_of_mine"),
        (set_value(ARGS, "base_architecture", value=5), "config.json"),
        (set_value(ARGS, "base_architecture", value="test_resnet"), "config.json"),
        (set_value(ARGS, "base_architecture", value="tosa_vit"), "config.json"),
        (drop(ARGS, "layers"), "'layers'"),
        (set_value(ARGS, "layers", value="2,4,6"), "layers"),
        (set_value(ARGS, "layers", value=[2, 4, 9]), "Layer 9"),
        (set_value(ARGS, "layers", value=[2, 3, 6]), "2 and 3"),
        (set_value(ARGS, "keep_rate", value=3), "layer 2"),
        (set_value(ARGS, "keep_rat", value=0.5), "'keep_rat'"),
        (set_value(ARGS, "selector", value="oracle"), "'oracle'"),
        (set_value(ARGS, "img_size", value="big"), "config.json"),
        (set_value(ARGS, "selector_kernel", value=3), "selectors.2.conv1.weight"),
        (set_value(ARGS, "selector", value="random"), "'selectors.2.conv1."),
        (set_value("num_classes", value=7), "7"),
        (set_value(ARGS, "num_classes", value=7), "7"),
        (set_value("architecture", value="test_vit"), "`tosa convert"),
        (drop("architecture"), "`tosa convert"),
    ],
)
def test_a_configuration_of_the_wrong_shape_is_told(
    folder: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    assert named in load_error(folder)


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff"])
def test_a_configuration_that_is_no_object_is_told(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in load_error(folder)
    assert not is_model_folder(folder)


def test_a_folder_that_lacks_a_file_is_told(folder: Path) -> None:
    assert is_model_folder(folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in load_error(folder)
    (folder / "config.json").unlink()
    assert "config.json" in load_error(folder)
    assert not is_model_folder(folder)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/no/where", "a/b/c"])
def test_a_folder_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(SourceError, match=rf"{Path(name)}\b.*`tosa convert`"):
        load(name)


# ---------------------------------------------------------------------- the card


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n")
    metadata, _, body = text.removeprefix("---\n").partition("\n---\n")
    return yaml.safe_load(metadata), body


EVAL = {
    "task": "classification",
    "samples": 100,
    "dataset": "digits",
    "top1": 71.25,
    "top5": 95.5,
    "gmacs": 0.03,
    "dense_gmacs": 0.04,
    "reduction": 0.25,
    "images_per_second": 812.0,
    "device": "a processor",
    "batch_size": 8,
    "dtype": "float32",
    "dense": {"top1": 72.5, "top5": 96.0, "images_per_second": 700.0},
}


def test_the_card_has_the_metadata_that_the_hub_reads(tmp_path: Path, model: TosaViT) -> None:
    model.provenance = Provenance(base_model="org/base", base_hub_id="org/base", license="apache-2.0")
    folder = save(model, tmp_path / "model")
    metadata, _ = read_card(folder)
    assert metadata["library_name"] == "tosa" and metadata["pipeline_tag"] == "image-classification"
    assert metadata["base_model"] == "org/base" and metadata["base_model_relation"] == "finetune"
    assert metadata["license"] == "apache-2.0" and "tosa" in metadata["tags"]
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "tosa" and card.data.base_model == "org/base"


@pytest.mark.parametrize("source", ["test_vit", "org/name"])
def test_a_model_of_random_weights_does_not_claim_those_of_its_source(
    tmp_path: Path, stub_hub: StubHub, source: str
) -> None:
    backbone = make_vit(num_classes=5)
    backbone.pretrained_cfg["license"] = "mit"
    save_for_hf(backbone, str(tmp_path / "dense"), safe_serialization=True)
    stub_hub.put("org/name", contents(tmp_path / "dense"))
    model = convert_source(load_source(source, pretrained=False), TosaConfig(layers=LAYERS), source)
    folder = save(model, tmp_path / "model")
    metadata, body = read_card(folder)
    assert not {"base_model", "base_model_relation", "license"} & set(metadata)
    assert "made from the architecture `test_vit` with random weights." in body and "r160_in1k" not in body
    block = json.loads((folder / "config.json").read_text())["tosa"]
    assert (block["source"], block["base_model"]) == (source, "test_vit")
    assert block["base_hub_id"] is block["base_revision"] is block["license"] is None
    assert load_recipe(str(folder / "recipe.yaml")).sections["convert"]["pretrained"] is False


def test_the_card_claims_nothing_that_is_not_known(folder: Path) -> None:
    metadata, body = read_card(folder)
    assert not {"model-index", "base_model", "base_model_relation", "license"} & set(metadata)
    assert "## Measured" not in body


def test_a_model_without_a_head_is_for_features(tmp_path: Path) -> None:
    metadata, _ = read_card(save(make_tosa(make_vit(num_classes=0)), tmp_path / "model"))
    assert metadata["pipeline_tag"] == "image-feature-extraction"


def test_results_stand_in_the_card_once_measured_with_their_conditions(folder: Path, model: TosaViT) -> None:
    with_results(model, "eval", EVAL)
    save(model, folder, overwrite=True)
    metadata, body = read_card(folder)
    (entry,) = metadata["model-index"]
    assert entry["name"] == "model"
    metrics = [metric for result in entry["results"] for metric in result["metrics"]]
    assert {metric["name"]: metric["value"] for metric in metrics} == {"top-1": 71.25, "top-5": 95.5}
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert results is not None and {result.dataset_name for result in results} == {"digits"}
    assert "100 images of digits, a processor, batch size 8, float32." in body
    assert "| source | 72.50 | 96.00 | 0.040 | 700.0 |" in body
    assert "| this model | 71.25 | 95.50 | 0.030 | 812.0 |" in body
    assert load(folder).provenance.results == {"eval": EVAL}


def test_results_on_features_have_no_accuracy_and_still_stand_in_the_card(folder: Path, model: TosaViT) -> None:
    features = {key: value for key, value in EVAL.items() if key not in ("top1", "top5", "dense")}
    with_results(model, "eval", {**features, "task": "features", "patch_cosine": 0.9512, "class_cosine": None})
    save(model, folder, overwrite=True)
    metadata, body = read_card(folder)
    assert "model-index" not in metadata and "0.9512" in body


def test_results_of_distillation_stand_in_the_card(folder: Path, model: TosaViT) -> None:
    layer = {"layer": 2, "kl_before": 1.5, "kl_after": 0.25, "found": 0.9, "found_previous": 0.8, "found_random": 0.3}
    with_results(model, "distill", {"samples": 16, "layers": [layer]})
    save(model, folder, overwrite=True)
    metadata, body = read_card(folder)
    assert "model-index" not in metadata
    assert "Selectors on 16 held-out images" in body and "| 2 | 1.500 | 0.250 | 90.0% | 80.0% | 30.0% |" in body


@pytest.mark.parametrize(("stage", "says"), [("distilled", "is trained or fitted"), ("finetuned", "was finetuned")])
def test_the_card_says_what_was_done(folder: Path, model: TosaViT, stage: Any, says: str) -> None:
    _, body = read_card(folder)
    assert "Nothing of it is trained or fitted yet." in body and "was not finetuned" in body
    model.provenance = model.provenance.after(stage, {"data_dir": "/home/me/photos", "lr": 0.02, "seed": 0})
    save(model, folder, overwrite=True)
    _, body = read_card(folder)
    assert says in body and f"$ tosa {COMMANDS[stage]} --data-dir photos --lr 0.02\n" in body and "/home" not in body
    assert ("The backbone was not finetuned" in body) == (stage != "finetuned")


@pytest.mark.parametrize(
    ("settings", "stages", "says"),
    [
        ({}, ("distilled",), "The selectors are trained, and the bypass is as it was before `tosa distill`, whose fit"),
        ({"selector": "probe"}, ("distilled",), "What selects and bypasses is as it was before `tosa distill`"),
        ({"selector": "similarity"}, ("finetuned", "distilled"), "was not kept; the backbone was finetuned before."),
    ],
    ids=str,
)
def test_the_card_says_that_a_fit_was_not_kept(
    tmp_path: Path, settings: dict[str, Any], stages: tuple[Any, ...], says: str
) -> None:
    model = make_tosa(make_vit(num_classes=5), bypass="nearest+affine", **settings)
    for stage in stages:
        model.provenance = model.provenance.after(stage, {}, {COMMANDS[stage]: {"samples": 3, "fit_kept": False}})
    _, body = read_card(save(model, tmp_path / "model"))
    assert says in body and "or fitted" not in body


@pytest.mark.parametrize(
    ("stages", "whose"),
    [
        (("distilled",), "the source model's"),
        (("distilled", "finetuned"), "the source model's"),
        (("finetuned", "distilled"), "those of the same weights with every token computed"),
    ],
    ids=str,
)
def test_the_card_says_whose_final_tokens_were_compared(
    folder: Path, model: TosaViT, stages: tuple[Any, ...], whose: str
) -> None:
    results = {"samples": 3, "patch_cosine_before": 0.5, "patch_cosine_after": 0.75}
    for stage in stages:
        model.provenance = model.provenance.after(stage, {}, {COMMANDS[stage]: results})
    save(model, folder, overwrite=True)
    _, body = read_card(folder)
    assert f"Cosine of the final tokens to {whose} on 3 held-out images" in body


def test_the_card_shows_the_accuracy_on_held_out_images(folder: Path, model: TosaViT) -> None:
    figures = {"top1_before": 50.0, "top5_before": 75.0, "top1_after": 62.5, "top5_after": 87.25}
    results = {"samples": 8, **figures, "measurements": 3, "best_step": 4}
    model.provenance = model.provenance.after("finetuned", {}, {"finetune": results})
    save(model, folder, overwrite=True)
    _, body = read_card(folder)
    assert "Accuracy in percent on 8 held-out images" in body and "The weights are the best of 3 measurements" in body
    assert "| before | 50.00 | 75.00 |" in body and "| after | 62.50 | 87.25 |" in body


def test_the_card_gives_the_macs_of_the_model_and_how_to_load_it(folder: Path, model: TosaViT) -> None:
    _, body = read_card(folder)
    report = count_flops(model)
    assert f"{report.gmacs:.3f} GMACs for an image of 160x160 pixels" in body and f"{report.reduction:.1%} less" in body
    assert body.count("| feeding |") == 3 and body.count("| tosa |") == 3
    assert "| keep_rate | 0.3, 0.5, 0.7 |" in body
    assert 'tosa_cli.load("model")' in body and 'timm.create_model("local-dir:model", pretrained=True)' in body


@pytest.mark.parametrize("name", ["model: of mine", "modèle", "it's #1", "{a}"])
def test_a_strange_name_of_a_folder_does_not_break_the_card(model: TosaViT, tmp_path: Path, name: str) -> None:
    with_results(model, "eval", EVAL)
    folder = save(model, tmp_path / name)
    metadata, body = read_card(folder)
    assert metadata["model-index"][0]["name"] == name and f"# {name}\n" in body
    assert_same(load(folder), model)


def test_a_pruned_model_is_not_saved(model: TosaViT, tmp_path: Path) -> None:
    pruned = copy.deepcopy(model)
    pruned.prune_intermediate_layers([1])
    with pytest.raises(OutputError, match="pruned"):
        save(pruned, tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_a_model_that_was_built_by_its_class_is_not_saved_and_the_way_out_is_told(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
    model = convert(VisionTransformer(**sizes).eval(), TosaConfig(layers=(2, 4)))
    with pytest.raises(OutputError, match=fragments.VISIONTRANSFORMER_TIMM_CREATE_MODEL):
        save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    save(convert(timm.create_model("vit_tiny_patch16_224", **sizes).eval(), model.config), tmp_path / "model")


def test_timm_loads_from_the_hub_a_card_without_its_tag(stub_hub: StubHub, tmp_path: Path, model: TosaViT) -> None:
    folder = save(model, tmp_path / "model")
    assert "timm" not in ModelCard.load(folder / "README.md").data.tags
    stub_hub.put("me/model", {path.name: path.read_bytes() for path in folder.iterdir()})
    loaded = timm.create_model("hf-hub:me/model", pretrained=True).eval()
    images = make_images(size=tuple(model.patch_embed.img_size))  # type: ignore[arg-type]
    assert torch.equal(loaded(images), model(images))


def test_the_card_of_a_model_with_nothing_to_fit_does_not_say_that_something_is_missing(tmp_path: Path) -> None:
    model = make_tosa(selector="ward", bypass="mean")
    tosa_cli.save(model, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert fragments.NEEDS_TO_BE_TRAINED_OR in card and fragments.FITTED_YET not in card
