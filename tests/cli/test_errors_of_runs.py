"""A run that cannot begin, go on or end leaves the model as it was, and says what to do next."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LoggerType, get_available_trackers
from filelock import FileLock
from safetensors.torch import load_file, save_file

from tests.cli.conftest import TRAIN, WARD, Tosa, rewrite, write_whole
from tests.sentences import fragments
from tests.train.tiny_pairs import write_folder
from tosa_cli import load
from tosa_cli.cli import console
from tosa_cli.hub import checkpoint
from tosa_cli.train import checkpoint as checkpoints
from tosa_cli.workflow import job

from .mistakes import check_refused, contents


def stop_at_batch(patched: pytest.MonkeyPatch, number: int) -> None:
    """Interrupt training after so many batches."""
    advance, calls = console.TrainProgress.advance, []

    def stop(bar: Any, num_images: int, text: str = "") -> None:
        calls.append(advance(bar, num_images, text))
        if len(calls) == number:
            raise KeyboardInterrupt

    patched.setattr(console.TrainProgress, "advance", stop)


# ---------------------------------------------------------------------- disk


def test_a_full_disk_leaves_the_old_model_and_the_checkpoint(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(converted)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full)
        check_refused(tosa("convert dense --layers 2 -o other"), "other ", "(No space left on device)")
        check_refused(tosa(f"distill --data-dir photos {TRAIN}"), "(No space left on device)")
    assert contents(converted) == before and not Path("other").exists()
    assert not list(Path().glob(".*dense*"))
    # The work is not lost: nothing is left to train, only to write.
    done = tosa(f"distill --data-dir photos {TRAIN} --resume --json")
    assert done.code == 0 and load("dense-tosa").provenance.stage == "distilled"
    assert not list(Path().glob("*checkpoint*"))


def test_a_full_disk_during_training_keeps_the_last_checkpoint(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(converted)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    done = tosa(f"distill --data-dir photos {TRAIN} --checkpoint-every 1")
    check_refused(done, "No space left on device", "--resume")
    assert contents(converted) == before and not list(Path().glob("*checkpoint*"))


# ---------------------------------------------------------------------- runs


def test_a_selector_without_weights_is_not_distilled(work: Path, tosa: Tosa) -> None:
    assert tosa("convert dense --layers 2,4 --selector previous").code == 0
    check_refused(
        tosa(f"distill --data-dir photos {TRAIN}"),
        "'previous'",
        "'identity'",
    )


def test_a_loss_that_is_not_finite_stops_with_the_model_as_it_was(converted: Path, tosa: Tosa) -> None:
    state = load_file(converted / "model.safetensors")
    state["selectors.2.conv1.weight"][0, 0] = float("nan")
    save_file(state, converted / "model.safetensors", metadata={"format": "pt"})
    before = contents(converted)
    done = tosa(f"distill --data-dir photos {TRAIN}")
    check_refused(done, " nan ", " 0 ", "--lr", code=1)
    assert contents(converted) == before


def test_a_rate_that_is_far_too_high_stops_with_the_model_as_it_was(converted: Path, tosa: Tosa) -> None:
    before = contents(converted)
    done = tosa(f"finetune --data-dir digits {TRAIN} --lr 1e30 --checkpoint-every 1")
    check_refused(done, "--lr", code=1)
    assert contents(converted) == before


def test_another_model_is_not_resumed(converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"distill --data-dir photos {TRAIN} --epochs 2 --checkpoint-every 1"
    with monkeypatch.context() as patched:
        stop_at_batch(patched, 3)
        check_refused(tosa(command), "checkpoint", "--resume", code=1)
    assert tosa("convert dense --layers 2,4 --keep-rate 0.8 --overwrite").code == 0
    check_refused(tosa(f"{command} --resume"), "--resume")


def test_a_finished_run_is_known_to_have_ended(converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    for command in (
        f"distill dense-tosa --data-dir photos {TRAIN}",
        f"distill dense-tosa --data-dir photos {TRAIN} -o other",
        f"finetune dense-tosa --data-dir digits {TRAIN} --drop-path 0.1 --model-ema",
        f"finetune dense --task segmentation --num-labels 2 --data-dir scenes {TRAIN} --decoder linear",
    ):
        if "scenes" in command:
            write_folder(Path("scenes"), 12)
        with monkeypatch.context() as patched:
            patched.setattr(job, "remove_checkpoint", kill)
            assert tosa(command).code == 130
        before = contents(Path())
        (checkpoint,) = (name for name in before if "checkpoint" in name)
        done = tosa(f"{command} --resume --json")
        assert done.code == 0 and fragments.HAD_ENDED in done.err and done.json["held_out"]
        assert done.json["updates_before"] == done.json["updates"] > 0 and done.json["images_per_second"] is None
        assert contents(Path()) == {name: content for name, content in before.items() if name != checkpoint}


@pytest.mark.parametrize("command", ["distill --data-dir photos", "finetune --data-dir digits"])
def test_steps_before_a_resume_are_counted_apart_and_have_no_speed(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    command = f"{command} {TRAIN} --epochs 2 --checkpoint-every 1"
    with monkeypatch.context() as patched:
        stop_at_batch(patched, 3)
        assert tosa(command).code == 1
    with monkeypatch.context() as patched:
        patched.setattr(job, "note_result", stop)
        assert tosa(f"{command} --resume").code == 130
    done = tosa(f"{command} --resume")
    assert done.code == 0 and fragments.ALL_BEFORE_THE_RUN_WAS in done.err and fragments.IMAGES_S not in done.err


def test_a_run_that_is_resumed_halfway_tells_how_many_steps_its_time_is_for(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"distill --data-dir photos {TRAIN} --epochs 2 --checkpoint-every 1"
    with monkeypatch.context() as patched:
        stop_at_batch(patched, 3)
        assert tosa(command).code == 1
    done = tosa(f"{command} --resume")
    assert done.code == 0 and fragments.STEPS_2_OF_THEM in done.err and fragments.IMAGES_S in done.err


def test_images_that_changed_since_a_run_was_stopped_are_told(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    command = f"distill dense-tosa --data-dir photos {TRAIN}"
    for changes in (False, True):
        with monkeypatch.context() as patched:
            patched.setattr(job, "save", stop)
            patched.setattr(job, "note_result", stop)
            assert tosa(command).code == 130
        if changes:
            rewrite(Path("photos/000.jpg"), Path("photos/001.jpg").read_bytes())
        done = tosa(f"{command} --resume")
        assert done.code == 0 and (fragments.IMAGES_OF_PHOTOS_CHANGED_SINCE in done.err) == changes


def test_a_second_run_on_one_folder_is_refused(converted: Path, tosa: Tosa) -> None:
    before = contents(converted)
    with FileLock(".dense-tosa.lock"):
        for command in (
            f"distill dense-tosa --data-dir photos {TRAIN}",
            f"finetune dense-tosa --data-dir digits {TRAIN}",
            "convert dense --layers 2 --overwrite",
            "eval dense-tosa --data-dir digits -j 0 --update-card",
        ):
            done = tosa(command)
            assert done.code == 2 and done.err.splitlines()[-1].startswith("Error: ") and "dense-tosa" in done.err
    assert contents(converted) == before


def test_a_second_run_on_one_folder_of_a_whole_model_is_refused(converted: Path, tosa: Tosa) -> None:
    folder = write_whole()
    before = contents(folder)
    with FileLock(".whole-tosa.lock"):
        for command in (
            "distill whole-tosa --data-dir photos --max-samples 2",
            "finetune whole-tosa --data-dir photos -b 2 --epochs 1 --objective features",
            f"convert whole --whole {WARD} -o whole-tosa --overwrite",
            "eval whole-tosa --data-dir photos --max-samples 2 --update-card",
        ):
            done = tosa(command)
            assert done.code == 2 and done.err.splitlines()[-1].startswith("Error: ") and "whole-tosa" in done.err
            assert not done.out or "convert" in command
    assert contents(folder) == before


def test_a_tracker_that_is_not_installed_is_refused(converted: Path, tosa: Tosa) -> None:
    names = [str(name) for name in LoggerType if name not in (LoggerType.ALL, *get_available_trackers())]
    before = contents(Path())
    for name in names:
        check_refused(
            tosa(f"distill dense-tosa --data-dir photos {TRAIN} --log-with {name}"),
            f" {name} ",
        )
    assert names and contents(Path()) == before


def test_ctrl_c_keeps_the_model_and_a_checkpoint_to_go_on_from(converted: Path, tosa: Tosa) -> None:
    before = contents(converted)
    command = "distill --data-dir photos -b 8 -j 2 --device cpu --epochs 300 --checkpoint-every 1"
    child = subprocess.Popen(
        [sys.executable, "-m", "tosa_cli.cli.app", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    kept = Path("dense-tosa.distill-checkpoint.safetensors")
    while not kept.exists() and child.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(child.pid, signal.SIGINT)  # as the terminal does: the processes that load data get it too
    out, err = child.communicate()
    assert child.returncode == 1 and out == "", err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("Error: ") and kept.name in err.splitlines()[-1]
    assert contents(converted) == before
    state = checkpoints.read_checkpoint(kept)
    assert state.update > 0 and state.settings["epochs"] == 300


def test_ctrl_c_before_the_training_is_told_as_well(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tosa_cli.model import flops

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(flops, "count_flops", interrupt)
    check_refused(tosa("flops"), "Interrupted.", code=130)
