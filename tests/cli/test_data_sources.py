"""Sources of images through timm: folders and Hugging Face data sets."""

import re
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import TRAIN, Tosa
from tests.sentences import fragments
from tosa_cli.data.class_folders import ClassFolders

from .image_sources import (
    contents,
    share_converted,  # noqa: F401 (the fixture `converted`)
)

# ---------------------------------------------------------------- folders


def test_a_split_is_read_from_its_folder(converted: Path, tosa: Tosa) -> None:
    assert tosa("eval --data-dir digits -j 0 --json").json["samples"] == 33
    assert tosa("eval --data-dir digits --split train -j 0 --json").json["samples"] == 40
    assert tosa("eval --data-dir digits/train -j 0 --json").json["samples"] == 40
    done = tosa(f"distill --data-dir digits {TRAIN}")
    assert re.search(r"\b36\b.* digits.*\b4\b", done.err)


def test_held_out_images_may_be_a_split_or_a_folder(converted: Path, tosa: Tosa) -> None:
    done = tosa(f"distill --data-dir digits --val-split validation {TRAIN}")
    assert re.search(r"\b40\b.* digits.*\b33\b", done.err)
    done = tosa(f"finetune --data-dir digits --val-dir digits/validation {TRAIN}")
    assert re.search(r"\b40\b.* digits.*\b33\b", done.err)
    done = tosa(f"distill --data-dir digits --val-dir photos {TRAIN}")
    assert re.search(r"\b40\b.* digits.*\b24\b", done.err)


def test_images_are_never_held_out_of_themselves(converted: Path, tosa: Tosa) -> None:
    before = contents(converted)
    for command in (
        f"distill --data-dir photos --val-split validation {TRAIN}",
        f"distill --data-dir photos --val-dir photos {TRAIN}",
        f"finetune --data-dir digits --val-split train {TRAIN}",
    ):
        done = tosa(command)
        assert done.code == 2 and "--val-dir" in done.err, done.err
    assert contents(converted) == before


def test_a_split_that_is_not_there_is_not_replaced_by_all_images(converted: Path, tosa: Tosa) -> None:
    shutil.rmtree("digits/validation")
    done = tosa("eval --data-dir digits -j 0")
    assert done.code == 2 and fragments.FOLDER_VALIDATION in done.err


def test_some_of_the_images_are_enough(converted: Path, tosa: Tosa) -> None:
    done = tosa(f"distill --data-dir photos --max-samples 12 {TRAIN}")
    assert re.search(r"\b11\b.* photos.*\b1\b", done.err)
    assert re.search(r"\b1\b", done.out.splitlines()[0])
    assert re.search(r"\b1\b.* photos", tosa("inspect dense --data-dir photos --max-samples 1").err)
    assert tosa("eval --data-dir digits --max-samples 7 -b 3 -j 2 --json").json["samples"] == 7


@pytest.mark.parametrize("batch_size", [1, 7, 33, 64])
@pytest.mark.parametrize("workers", [0, 2])
def test_eval_counts_every_image_whatever_the_batch(converted: Path, tosa: Tosa, batch_size: int, workers: int) -> None:
    report = tosa(f"eval --data-dir digits -b {batch_size} -j {workers} --json").json
    assert report["samples"] == 33
    assert report["top1"] == tosa("eval --data-dir digits -b 11 -j 0 --json").json["top1"]


def test_held_out_images_of_other_classes_are_refused(converted: Path, tosa: Tosa) -> None:
    Path("digits/validation/9").rename("digits/validation/nine")
    done = tosa(f"finetune --data-dir digits --val-split validation {TRAIN}")
    assert done.code == 2 and re.search(r"held-out .* digits.*'nine'", done.err)


@pytest.mark.parametrize(
    ("conversion", "command", "scans"),
    [
        ("--selector similarity --bypass nearest+affine", "distill --data-dir photos", 1),
        ("--bypass linear", "distill --data-dir photos", 1),
        ("", "distill --data-dir photos --val-dir digits", 2),
        ("", "finetune --data-dir digits", 1),
        ("", "finetune --data-dir digits --val-split validation", 2),
        ("", "finetune --objective features --data-dir photos", 1),
    ],
)
def test_a_folder_is_scanned_once_a_command(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch, conversion: str, command: str, scans: int
) -> None:
    if conversion:
        assert tosa(f"convert dense --layers 2 --keep-rate 0.5 --overwrite {conversion}").code == 0
    scanned: list[str] = []

    def count(root: Path) -> ClassFolders:
        scanned.append(str(root))
        return ClassFolders(root)

    monkeypatch.setattr("tosa_cli.data.datasets.ClassFolders", count)
    done = tosa(f"{command} {TRAIN}")
    assert done.code == 0 and len(scanned) == scans, (done.err, scanned)


def test_a_folder_that_is_a_dot_is_called_by_its_name(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("digits")
    for data_dir in (".", "../digits/.", "train/.."):
        done = tosa(f"eval ../dense-tosa --data-dir {data_dir} -j 0 --json")
        assert done.code == 0 and done.json["dataset"] == "digits", data_dir


# ---------------------------------------------------------------- Hugging Face data sets


@pytest.fixture
def parquet(work: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digits as a local data set of parquet files, with and without labels, images embedded."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for split in ("train", "validation"):
        loaded = datasets.load_dataset("imagefolder", data_dir=str(work / "digits" / split), split="train")
        loaded.to_parquet(str(work / "parquet" / f"{split}.parquet"))
        loaded.remove_columns("label").to_parquet(str(work / "unlabelled" / f"{split}.parquet"))
    return str(work / "parquet")


def test_a_local_hugging_face_data_set_trains_and_measures(converted: Path, tosa: Tosa, parquet: str) -> None:
    source = f"--dataset hfds/{parquet} --data-dir cache"
    done = tosa(f"distill {source} {TRAIN} --val-split validation --json")
    assert done.code == 0, done.err
    assert done.json["held_out"]["samples"] == 33 and done.json["updates"] == 5
    done = tosa(f"finetune {source} {TRAIN} --max-samples 24 --json")
    assert done.code == 0 and done.json["held_out"]["samples"] == 2, done.err
    report = tosa(f"eval {source} -j 2 -b 10 --json").json
    assert report["samples"] == 33
    assert report["top1"] == tosa("eval --data-dir digits -j 0 --json").json["top1"]
    assert "Generating" not in done.err
    done = tosa(f"convert dense {source} --preset calibrated --max-drop 1 -o held")
    assert fragments.OF_22_HELD_OUT_IMAGES in done.err and fragments.BY_GUESSING_10_0_ARE in done.err


def test_a_data_set_without_labels_serves_distillation_and_nothing_else(
    converted: Path, tosa: Tosa, parquet: str
) -> None:
    source = f"--dataset hfds/{Path(parquet).with_name('unlabelled')} --data-dir cache"
    done = tosa(f"distill {source} {TRAIN}")
    assert done.code == 0, done.err
    convert = "convert dense --preset calibrated --max-drop 1 -o held"
    for command in ("finetune -j 0 -b 8", "eval --split train -j 0 -b 8", convert):
        done = tosa(f"{command} {source}")
        assert done.code == 2 and "--label-column" in done.err


def test_a_data_set_that_is_not_there_or_has_no_such_split(converted: Path, tosa: Tosa, parquet: str) -> None:
    done = tosa("eval --dataset hfds//no/such/folder --data-dir cache -j 0")
    assert done.code == 2 and "/no/such/folder" in done.err and "Traceback" not in done.err
    done = tosa(f"eval --dataset hfds/{parquet} --data-dir cache --split test -j 0")
    assert done.code == 2 and "test" in done.err
