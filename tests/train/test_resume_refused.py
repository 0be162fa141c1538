"""What a run is not resumed from: other settings, images, models, files; and what a checkpoint outlives."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.sentences import fragments
from tests.train.tiny_runs import (
    StopAt,
    run_distill,
    same,
    short_tosa,
    tiny_tosa,
    weights,
    write_photos,
)
from tosa_cli.errors import CheckpointError, OutputError, TrainingError
from tosa_cli.train import checkpoint as checkpoints


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("images") / "photos")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 4}, "batch_size 8, .* 4\\."),
        ({"seed": 1}, "seed 0, .* 1\\."),
        ({"epochs": 3}, "epochs 2, .* 3\\."),
        ({"opt": "sgd"}, "opt adamw, .* sgd\\."),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    photos: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    run_distill(short_tosa(), photos, tmp_path / "run")
    with pytest.raises(CheckpointError, match=named):
        run_distill(short_tosa(), photos, tmp_path / "run", resume=True, **change)


def test_a_run_is_not_resumed_on_another_number_of_images(photos: Path, tmp_path: Path) -> None:
    fewer = Path(shutil.copytree(photos, tmp_path / "photos"))
    run_distill(short_tosa(), fewer, tmp_path / "run")
    (fewer / "000.jpg").unlink()
    with pytest.raises(CheckpointError, match=fragments.NUM_IMAGES_24_23_B):
        run_distill(short_tosa(), fewer, tmp_path / "run", resume=True)


def test_another_spelling_of_the_same_folder_resumes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    run_distill(short_tosa(), photos, tmp_path / "run", data_dir="photos", val_dir="")
    for spelling in ("photos/", "./photos", str(photos)):
        assert run_distill(short_tosa(), photos, tmp_path / "run", resume=True, data_dir=spelling).images == 0
    with pytest.raises(CheckpointError, match=fragments.DATA_DIR_S_PHOTOS_S):
        run_distill(short_tosa(), photos, tmp_path / "run", resume=True, data_dir="others")


@pytest.mark.parametrize("other", [{"keep_rate": 0.8}, {"layers": (2, 4)}, {"selector_kernel": 3}])
def test_a_run_is_not_resumed_on_another_model(photos: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    run_distill(tiny_tosa(), photos, tmp_path / "run")
    with pytest.raises(CheckpointError, match=fragments.RUN_RESUME):
        run_distill(tiny_tosa(**other), photos, tmp_path / "run", resume=True)


@pytest.mark.parametrize("schedule", ["cosine", "none"])
def test_a_resumed_run_takes_the_learning_rate_that_is_given(photos: Path, tmp_path: Path, schedule: str) -> None:
    settings = {"checkpoint_every": 1, "sched": schedule}
    for lr in (1e-2, 1e-30):
        with pytest.raises(TrainingError):
            run_distill(short_tosa(), photos, tmp_path / "run", progress=StopAt(3), **settings)
        stopped = checkpoints.read_checkpoint(tmp_path / "run")
        model = short_tosa()
        run_distill(model, photos, tmp_path / "run", resume=True, lr=lr, **settings)
        saved = {name.removeprefix("weights.model.selectors."): value for name, value in stopped.tensors.items()}
        assert all(saved[name].equal(value) for name, value in weights(model, "selectors").items()) == (lr == 1e-30)


def test_a_checkpoint_with_one_bit_changed_is_not_whole(photos: Path, tmp_path: Path) -> None:
    run_distill(short_tosa(), photos, tmp_path / "run")
    whole = bytearray((tmp_path / "run").read_bytes())
    for place in (-1, -1000, whole.index(b"history") + 11):
        changed = whole.copy()
        changed[place] ^= 0x04
        (tmp_path / "run").write_bytes(changed)
        with pytest.raises(CheckpointError, match=fragments.RUN_IS_NOT_WHOLE_A):
            run_distill(short_tosa(), photos, tmp_path / "run", resume=True)


def test_the_result_is_noted_in_the_checkpoint_and_changes_nothing_else(photos: Path, tmp_path: Path) -> None:
    run_distill(tiny_tosa(), photos, tmp_path / "run")
    before = checkpoints.read_checkpoint(tmp_path / "run")
    assert checkpoints.read_result(tmp_path / "run") is None
    checkpoints.note_result(tmp_path / "run", checkpoints.fingerprint(tiny_tosa()))
    assert checkpoints.read_result(tmp_path / "run") == checkpoints.fingerprint(tiny_tosa())
    after = checkpoints.read_checkpoint(tmp_path / "run")
    assert same(before.tensors, after.tensors) and before.settings == after.settings


@pytest.mark.parametrize(
    "change",
    [lambda header: header.pop("epoch"), lambda header: header.update(update="5"), lambda header: header.update(new=1)],
)
def test_a_checkpoint_whose_header_is_of_another_shape_is_told(photos: Path, tmp_path: Path, change: Any) -> None:
    run_distill(tiny_tosa(), photos, tmp_path / "run")
    with safe_open(tmp_path / "run", framework="pt") as file:
        header = json.loads(file.metadata()["tosa"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header)
    checkpoints.save_file(tensors, tmp_path / "run", metadata={"tosa": json.dumps(header)})
    with pytest.raises(CheckpointError, match=fragments.IS_NOT_A_CHECKPOINT_OF):
        run_distill(tiny_tosa(), photos, tmp_path / "run", resume=True)


def test_there_may_be_nothing_to_resume(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=fragments.RUN_RESUME):
        run_distill(short_tosa(), photos, tmp_path / "run", resume=True)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x04cos\nsystem\n."])
def test_a_foreign_file_is_not_resumed_from(photos: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run .*\("):
        run_distill(short_tosa(), photos, tmp_path / "run", resume=True)


def test_a_weights_file_is_not_resumed_from(photos: Path, tmp_path: Path) -> None:
    checkpoints.save_file({"weight": torch.zeros(2)}, tmp_path / "run", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=fragments.RUN_TOSA):
        run_distill(short_tosa(), photos, tmp_path / "run", resume=True)


def test_a_full_disk_keeps_the_last_checkpoint(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError):
        run_distill(short_tosa(), photos, tmp_path / "run", progress=StopAt(3), checkpoint_every=1)
    kept = (tmp_path / "run").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OutputError, match=fragments.NO_SPACE_LEFT_ON_DEVICE):
        run_distill(short_tosa(), photos, tmp_path / "run", resume=True, checkpoint_every=1)
    assert (tmp_path / "run").read_bytes() == kept
