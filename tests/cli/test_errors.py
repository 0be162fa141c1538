"""A mistake is told in one sentence: what was given, what was expected, what to do next; nothing is written."""

import importlib
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from safetensors.torch import load_file, save_file

from tests.cli.conftest import TRAIN, Tosa, rewrite
from tests.model.tiny_models import make_vit
from tests.sentences import fragments
from tests.train.tiny_pairs import write_folder
from tosa_cli import load
from tosa_cli.cli import console
from tosa_cli.data.datasets import split_indices

from .mistakes import check_refused, contents

# ---------------------------------------------------------------------- given


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


# ---------------------------------------------------------------------- settings


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


# ---------------------------------------------------------------------- faults


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
