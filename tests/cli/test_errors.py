"""A mistake is told in one sentence: what was given, what was expected, what to do next; nothing is written."""

import importlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate.tracking import LoggerType, get_available_trackers
from filelock import FileLock
from safetensors.torch import load_file, save_file

from tests.cli.conftest import WARD, Done, Tosa, rewrite, write_whole
from tests.model.tiny_models import make_vit
from tests.sentences import fragments
from tests.train.tiny_pairs import write_folder
from tosa_cli import load
from tosa_cli.cli import console
from tosa_cli.data.datasets import split_indices
from tosa_cli.hub import checkpoint
from tosa_cli.train import checkpoint as checkpoints
from tosa_cli.workflow import job

TRAIN = "-b 8 -j 0 --epochs 1 --device cpu"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_refused(done: Done, *sentence: str, code: int = 2) -> None:
    assert done.code == code, done.err
    assert done.out == "" and "Traceback" not in done.err
    message = done.err.splitlines()[-1]
    assert message.startswith("Error: ") and message.endswith("."), message
    for part in sentence:
        assert part in message, message


def stop_at_batch(patched: pytest.MonkeyPatch, number: int) -> None:
    """Interrupt training after so many batches."""
    advance, calls = console.TrainProgress.advance, []

    def stop(bar: Any, num_images: int, text: str = "") -> None:
        calls.append(advance(bar, num_images, text))
        if len(calls) == number:
            raise KeyboardInterrupt

    patched.setattr(console.TrainProgress, "advance", stop)


def test_weights_that_are_not_finite_are_blamed_on_the_source_and_not_on_tosa(work: Path, tosa: Tosa) -> None:
    state = load_file("dense/model.safetensors")
    for key, value in (("blocks.3.attn.qkv.weight", float("nan")), ("norm.bias", float("inf"))):
        state[key][0] = value
    save_file(state, "dense/model.safetensors")
    alone = make_vit().state_dict()
    alone["norm.bias"][0] = float("inf")
    save_file(alone, "test_vit.safetensors")
    before = contents(work)
    check_refused(
        tosa("convert dense --layers 2,4"),
        "'blocks.3.attn.qkv.weight'",
    )
    check_refused(tosa("convert test_vit.safetensors --layers 2,4"), "test_vit.safetensors", "finite")
    check_refused(tosa("inspect dense --data-dir photos"), "not finite")
    assert contents(work) == before


def test_an_unknown_option_or_command_is_a_usage_error(tosa: Tosa) -> None:
    for command in ("convert --layer 2", "distil", "distill --epochs many"):
        done = tosa(command)
        assert done.code == 2 and done.out == "" and "Traceback" not in done.err


@pytest.mark.parametrize("command", ["distill", "finetune", "eval", "flops", "bench", "push me/model"])
def test_without_a_model_and_without_a_last_one_a_model_is_asked_for(work: Path, tosa: Tosa, command: str) -> None:
    check_refused(tosa(command), "tosa convert")


@pytest.mark.parametrize("command", ["distill", "flops"])
def test_a_last_model_that_is_gone_is_named(converted: Path, tosa: Tosa, command: str) -> None:
    shutil.rmtree(converted)
    check_refused(tosa(command), " dense-tosa,")
    (Path(".tosa.json")).write_text("{broken")
    check_refused(tosa(command), "tosa convert")


@pytest.mark.parametrize("command", ["eval --data-dir digits", "bench", "flops", "viz photos/000.jpg", "export"])
def test_an_image_size_that_is_no_whole_number_of_patches_is_refused(converted: Path, tosa: Tosa, command: str) -> None:
    name, _, rest = command.partition(" ")
    model = f"dense-tosa {rest}"
    check_refused(tosa(f"{name} {model} --img-size 31"), " 31x31 ", " 24x24 ")


@pytest.mark.parametrize("command", ["distill", "finetune", "eval"])
def test_missing_and_empty_data_are_refused(converted: Path, tosa: Tosa, command: str) -> None:
    before = contents(converted)
    Path("empty").mkdir()
    check_refused(tosa(f"{command} dense-tosa"), "--data-dir")
    check_refused(tosa(f"{command} dense-tosa --data-dir nowhere"), " nowhere.")
    check_refused(tosa(f"{command} dense-tosa --data-dir empty"), "empty ")
    check_refused(tosa(f"{command} dense-tosa --data-dir dense"), "dense ")
    assert contents(converted) == before


def test_one_image_is_not_enough_to_train(converted: Path, tosa: Tosa) -> None:
    Path("one").mkdir()
    shutil.copy("photos/000.jpg", "one")
    check_refused(tosa(f"distill --data-dir one {TRAIN}"), "one ")


@pytest.mark.parametrize("command", ["finetune", "eval"])
def test_a_wrong_number_of_classes_is_refused(converted: Path, tosa: Tosa, command: str) -> None:
    for split in ("train", "validation"):
        shutil.rmtree(f"digits/{split}/9")
    check_refused(
        tosa(f"{command} --data-dir digits"),
        " 9 ",
        " 10.",
        "--num-classes 9",
    )


def test_an_output_that_exists_is_refused_before_any_work(converted: Path, tosa: Tosa) -> None:
    before = contents(converted)
    check_refused(tosa("convert dense --layers 2"), "dense-tosa ", "--overwrite")
    check_refused(tosa(f"distill dense-tosa --data-dir photos -o dense {TRAIN}"), "dense ")
    check_refused(
        tosa(f"distill dense-tosa --data-dir photos -o photos --overwrite {TRAIN}"),
        "photos ",
    )
    check_refused(tosa(f"distill dense-tosa --data-dir photos -o .tosa.json {TRAIN}"), ".tosa.json ")
    for command in ("convert dense --layers 2", f"distill dense-tosa --data-dir photos {TRAIN}"):
        check_refused(tosa(f"{command} -o dense --overwrite"), "dense ")
    assert contents(converted) == before
    assert tosa("convert dense --layers 2 --overwrite").code == 0 and load("dense-tosa").config.layers == (2,)


@pytest.mark.parametrize("place", ["dense/config.json/model", "/proc/model", "/dev/null/model"])
def test_a_place_that_cannot_be_written_to_is_refused(converted: Path, tosa: Tosa, place: str) -> None:
    before = contents(converted)
    for command in ("convert dense --layers 2", f"distill dense-tosa --data-dir photos {TRAIN}"):
        check_refused(tosa(f"{command} -o {place}"), place.removesuffix("/model"))
    assert contents(converted) == before


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


def change_config(folder: Path, change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda c: c["tosa"].update(format_version=99),
            "format_version 99",
        ),
        (lambda c: c.pop("tosa"), "'tosa'"),
        (lambda c: c["model_args"].pop("layers"), "'layers'"),
        (lambda c: c["model_args"].update(layers=[1]), "Layer 1 "),
        (lambda c: c["model_args"].update(num_classes=3), " 3 "),
        (lambda c: c.update(architecture="test_vit"), "`tosa convert"),
    ],
)
@pytest.mark.parametrize("command", ["eval --data-dir digits", "distill --data-dir photos", "bench"])
def test_a_config_of_the_wrong_shape_is_refused(
    converted: Path, tosa: Tosa, change: Any, sentence: str, command: str
) -> None:
    change_config(converted, change)
    before = contents(converted)
    check_refused(tosa(command), sentence)
    assert contents(converted) == before


@pytest.mark.parametrize("text", ["", "[]", "{", "not json"])
def test_a_config_that_is_no_json_object_is_refused(converted: Path, tosa: Tosa, text: str) -> None:
    (converted / "config.json").write_text(text)
    check_refused(tosa("bench"), "config.json")


@pytest.mark.parametrize("share", [0.5, 0.01, 0])
def test_truncated_weights_are_refused(converted: Path, tosa: Tosa, share: float) -> None:
    for weights in (converted / "model.safetensors", Path("dense/model.safetensors")):
        content = weights.read_bytes()
        weights.write_bytes(content[: int(len(content) * share)])
    check_refused(tosa("eval --data-dir digits"), "dense-tosa")
    check_refused(tosa("convert dense --layers 2 -o other"), "dense")


def test_foreign_weights_are_refused(converted: Path, tosa: Tosa) -> None:
    state = load_file(converted / "model.safetensors")
    for changed, sentence in (
        ({key: value for key, value in state.items() if key != "norm.weight"}, "'norm.weight'"),
        ({**state, "extra": torch.zeros(1)}, "'extra'"),
        ({**state, "head.weight": torch.zeros(3, 64)}, "[3, 64], expected [10, 64]"),
    ):
        save_file(changed, converted / "model.safetensors", metadata={"format": "pt"})
        check_refused(tosa("eval --data-dir digits"), sentence)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (os.system, ("touch executed",))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(work: Path, tosa: Tosa) -> None:
    torch.save({"head.weight": Evil()}, "test_vit.pth")
    check_refused(tosa("convert test_vit.pth --layers 2"), ".safetensors")
    Path("test_vit.pt").write_bytes(pickle.dumps(Evil()))
    check_refused(tosa("convert test_vit.pt --layers 2"), "test_vit.pt")
    assert not Path("executed").exists()


def test_a_recipe_with_a_number_out_of_range_is_refused(converted: Path, tosa: Tosa) -> None:
    Path("mine.yaml").write_text("finetune:\n  model_ema_decay: 2\n")
    done = tosa("finetune --recipe mine.yaml --data-dir digits")
    check_refused(done, "--model-ema-decay", " 2.")


@pytest.mark.parametrize("command", ["inspect", "flops", f"finetune --task depth --data-dir photos {TRAIN}"])
def test_what_is_advised_for_a_file_is_an_option_of_the_command(work: Path, tosa: Tosa, command: str) -> None:
    Path("dense/model.safetensors").rename("w.safetensors")
    name, *options = command.split()
    done = tosa(name, "w.safetensors", *options)
    advised = re.findall(r"--[a-z-]+", done.err)
    assert done.code == 2 and advised and {*advised} <= {*re.findall(r"--[a-z-]+", tosa(f"{name} --help").out)}


def test_a_recipe_with_a_wrong_type_is_refused(converted: Path, tosa: Tosa) -> None:
    Path("mine.yaml").write_text("distill:\n  epochs: five\n")
    check_refused(tosa("distill --recipe mine.yaml --data-dir photos"), "--epochs", "'five'")


def test_a_split_that_was_named_has_to_be_there(converted: Path, tosa: Tosa) -> None:
    Path("digits/validation").rename("digits/test")
    Path("digits/train").rename("digits/train_small")
    for command in ("eval", "eval --task features", f"distill {TRAIN}", f"distill --val-split tset {TRAIN}"):
        split = "" if "tset" in command else "--split tset"
        check_refused(tosa(f"{command} --data-dir digits {split}"), "digits ", " tset")
    assert tosa("eval --data-dir digits --split test -j 0 --json").json["samples"] == 33


def test_held_out_images_in_a_folder_of_their_own_need_no_split_of_that_name(converted: Path, tosa: Tosa) -> None:
    Path("digits/train").rename("digits/small")
    command = f"finetune --data-dir digits --split small --val-dir digits/validation {TRAIN} --json"
    assert tosa(command).json["held_out"]["samples"] == 33


def test_a_scale_of_depth_is_refused_for_masks(work: Path, tosa: Tosa) -> None:
    write_folder(work / "scenes", 4)
    command = "finetune dense --task segmentation --num-labels 2 --data-dir scenes --depth-scale 5"
    check_refused(tosa(command), "--depth-scale")


def test_a_split_of_images_with_maps_that_was_named_has_to_be_there(work: Path, tosa: Tosa) -> None:
    write_folder(work / "scenes", 4)
    check_refused(tosa("finetune dense --task depth --data-dir scenes --split tset"), "scenes ", " tset")


def test_a_count_that_cannot_be_meant_is_refused(converted: Path, tosa: Tosa) -> None:
    before = contents(Path())
    check_refused(tosa("convert dense --layers 2 --num-classes -3"), "--num-classes", "-3")
    check_refused(tosa("eval --max-samples 0 --data-dir digits"), "--max-samples", " 0.")
    assert contents(Path()) == before


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("num_classes: -3", "--num-classes"),
        ("num_classes: ten", "'ten'"),
        ("max_samples: 0", "--max-samples"),
    ],
)
def test_a_count_of_a_recipe_is_checked_as_well(work: Path, tosa: Tosa, setting: str, sentence: str) -> None:
    Path("mine.yaml").write_text(f"convert:\n  layers: [2]\n  {setting}\n")
    before = contents(work)
    check_refused(tosa("convert dense --recipe mine.yaml"), sentence)
    assert contents(work) == before


def test_no_classes_are_no_head(work: Path, tosa: Tosa) -> None:
    assert tosa("convert dense --layers 2 --num-classes 0").code == 0
    assert load("dense-tosa").num_classes == 0


@pytest.mark.parametrize("policy", ["bogus", "rand-z9", "augmix-q1"])
def test_an_augmentation_policy_that_timm_does_not_know_is_refused(converted: Path, tosa: Tosa, policy: str) -> None:
    before = contents(Path())
    done = tosa(f"finetune --data-dir digits --auto-augment {policy} {TRAIN}")
    check_refused(done, "--auto-augment", f"'{policy}'")
    assert contents(Path()) == before


@pytest.mark.parametrize(
    "command", ["distill dense-tosa --data-dir photos", "finetune dense --task depth --data-dir scenes"]
)
def test_held_out_images_that_cannot_be_read_are_told_from_all_images(
    converted: Path, tosa: Tosa, command: str
) -> None:
    write_folder(Path("scenes"), 11)
    for path in list(Path("photos").iterdir())[11:]:
        path.unlink()
    (broken,) = split_indices(11, None, hold_out=True)[1]
    for folder in ("scenes/rgb", "photos"):
        rewrite(sorted(Path(folder).iterdir())[broken], b"broken")
    check_refused(
        tosa(f"{command} {TRAIN}"),
        "held-out",
        "--val-dir",
    )


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


def test_debug_shows_the_traceback(work: Path, tosa: Tosa) -> None:
    for command in ("--debug convert dense --layers 0", "convert dense --layers 0 --debug"):
        done = tosa(command)
        assert done.code == 2 and fragments.TRACEBACK_MOST_RECENT_CALL_LAST in done.err
        assert done.err.splitlines()[-1].startswith("Error: Layer 0 ")


def test_a_fault_of_tosa_asks_for_a_report(converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch) -> None:
    from tosa_cli.model import flops

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("something\nunforeseen")

    monkeypatch.setattr(flops, "count_flops", fail)
    check_refused(tosa("flops"), "RuntimeError: something unforeseen", "This is a fault of tosa", code=1)


@pytest.mark.parametrize(("rank", "talks"), [("0", True), ("1", False)])
def test_only_the_main_process_talks(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch, rank: str, talks: bool
) -> None:
    monkeypatch.setenv("RANK", rank)
    with patch.dict(vars(console)):
        importlib.reload(console)
        done = tosa("flops")
    assert done.code == 0 and bool(done.out) == bool(done.err) == talks
