"""A model folder is replaced whole or not at all, and nothing of the user's is lost."""

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
from filelock import FileLock
from timm.models._hub import save_for_hf
from torch import nn

from tests.sentences import fragments
from tosa_cli.api import convert
from tosa_cli.config import TosaConfig
from tosa_cli.errors import OutputError
from tosa_cli.hub import writing
from tosa_cli.hub.checkpoint import load
from tosa_cli.hub.writing import write_file
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.workflow.save import save

from ..model.tiny_models import make_tosa, make_vit
from .conftest import FILES, assert_same, contents, room_for


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
