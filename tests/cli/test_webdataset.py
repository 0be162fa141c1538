"""Images in the shards of WebDataset, which are read in order."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Tosa
from tests.sentences import fragments

from .image_sources import (
    contents,
    share_converted,  # noqa: F401 (the fixture `converted`)
    write_shards,
)


@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset_shards_train_and_measure(converted: Path, tosa: Tosa, workers: int) -> None:
    pytest.importorskip("webdataset")
    write_shards(Path("shards"), Path("digits"))
    source = f"--dataset wds/digits --data-dir shards -j {workers} --device cpu"
    done = tosa(f"distill {source} -b 8 --epochs 1 --val-split validation --json")
    assert done.code == 0, done.err
    assert done.json["held_out"]["samples"] == 33 and done.json["updates"] in (5, 6)
    done = tosa(f"finetune {source} -b 8 --epochs 1 --val-split validation --json")
    assert done.code == 0 and done.json["held_out"]["samples"] == 33
    report = tosa(f"eval {source} -b 10 --json").json
    assert report["samples"] == 33
    assert report["top1"] == tosa("eval --data-dir digits -j 0 --json").json["top1"]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_broken_images_in_shards_are_named_and_counted(converted: Path, tosa: Tosa, workers: int) -> None:
    pytest.importorskip("webdataset")
    write_shards(Path("shards"), Path("digits"), broken=True)
    source = f"--dataset wds/digits --data-dir shards -j {workers} --device cpu"
    done = tosa(f"eval {source} --json")
    assert done.json["samples"] == 31 and len(done.json["skipped"]) == 2
    assert fragments.VALIDATION_000_TAR_0006 in done.err and fragments.VALIDATION_001_TAR_0007 in done.err
    assert fragments.HANDLING_WEBDATASET_ERROR not in done.err
    done = tosa(f"distill {source} -b 8 --epochs 1 --val-split validation --json")
    assert done.code == 0, done.err
    assert any("train-000.tar: 0006" in name for name in done.json["skipped"])
    before = contents(converted)
    for command in ("eval", "distill --val-split validation", "finetune --val-split validation"):
        done = tosa(f"{command} {source} --strict")
        assert done.code == 2 and "--strict" in done.err
    assert contents(converted) == before


def test_a_stream_is_read_whole_and_needs_its_own_held_out_images(converted: Path, tosa: Tosa) -> None:
    pytest.importorskip("webdataset")
    write_shards(Path("shards"), Path("digits"))
    source = "--dataset wds/digits --data-dir shards -j 0"
    done = tosa(f"distill {source}")
    assert done.code == 2 and "--val-dir" in done.err
    done = tosa(f"distill {source} --val-split train")
    assert done.code == 2 and "--val-dir" in done.err
    done = tosa(f"eval {source} --max-samples 3")
    assert done.code == 2 and "--max-samples" in done.err
    done = tosa(f"eval {source} --split nope")
    assert done.code == 2 and "nope" in done.err


def test_what_is_measured_and_fitted_takes_the_first_images_of_a_stream(work: Path, tosa: Tosa) -> None:
    pytest.importorskip("webdataset")
    write_shards(work / "shards", work / "digits")
    source = "--dataset wds/digits --data-dir shards"
    chosen = "--layers auto --target-reduction 0.2 --selector similarity --bypass nearest+affine"
    done = tosa(f"convert dense {chosen} {source} --max-samples 6 -o a")
    assert done.code == 0 and re.search(r"\b6\b.* wds/digits", done.err), done.err
    done = tosa(f"convert dense {chosen} --dataset wds/digits --data-dir shards --split nope -o b")
    assert done.code == 2 and "nope" in done.err and "--data-dir" not in done.err
    shutil.copytree("a", "b")
    for folder, workers in (("a", 0), ("b", 2)):
        command = f"distill {folder} {source} --val-split validation -b 4 -j {workers} --device cpu"
        done = tosa(f"{command} --max-samples 10")
        assert done.code == 0 and re.search(r"\b10\b.* wds/digits", done.err), done.err
    one, two = (load_file(f"{folder}/model.safetensors") for folder in ("a", "b"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    whole = tosa(f"{command} -o c")
    assert whole.code == 0 and re.search(r"\b40\b.* wds/digits", whole.err)
    assert any(not torch.equal(one[key], value) for key, value in load_file("c/model.safetensors").items())
    done = tosa(f"finetune a {source} --val-split validation --max-samples 10 -b 4 -j 0 --device cpu")
    assert done.code == 2 and "--max-samples" in done.err


def stop_after(patched: pytest.MonkeyPatch, batches: int) -> None:
    """Interrupt the next run after so many batches, as Ctrl-C would."""
    from tosa_cli.cli import console

    advance = console.TrainProgress.advance
    left = batches

    def interrupt(bar: console.TrainProgress, num_images: int, text: str = "") -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        advance(bar, num_images, text)

    patched.setattr(console.TrainProgress, "advance", interrupt)


def test_training_on_shards_resumes_exactly(converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    write_shards(Path("shards"), Path("digits"))
    for workers in (0, 2):
        command = (
            f"finetune dense-tosa --dataset wds/digits --data-dir shards --val-split validation -b 8 --epochs 2 "
            f"--checkpoint-every 1 --mixup 0.8 --drop-path 0.3 --lr 1e-3 --device cpu -j {workers}"
        )
        assert tosa(f"{command} -o whole{workers}").code == 0
        for stop in (3, 5):
            with monkeypatch.context() as patched:
                stop_after(patched, stop)
                done = tosa(f"{command} -o part{workers}" + " --resume" * (stop == 5))
            assert done.code == 1 and "Interrupted." in done.err
        assert tosa(f"{command} -o part{workers} --resume").code == 0
        whole, part = (Path(f"{name}{workers}/model.safetensors").read_bytes() for name in ("whole", "part"))
        assert whole == part


def test_training_on_shards_is_not_resumed_with_another_number_of_workers(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset")
    write_shards(Path("shards"), Path("digits"))
    command = "finetune dense-tosa --epochs 2 -b 8 --device cpu --val-split validation --data-dir"
    for source in ("shards --dataset wds/digits", "digits"):
        with monkeypatch.context() as patched:
            stop_after(patched, 8)
            done = tosa(f"{command} {source} -j 0")
        assert done.code == 1 and "--resume" in done.err
        done = tosa(f"{command} {source} -j 2 --resume")
        if source == "digits":
            assert done.code == 0, done.err
        else:
            assert done.code == 2 and re.search(r"workers 0\b.*\b2\b", done.err)


@pytest.mark.parametrize(("name", "package"), [("hfds", "datasets"), ("wds", "webdataset")])
def test_a_package_that_is_missing_is_named(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"timm.data.readers.reader_{name}", raising=False)
    done = tosa(f"eval dense-tosa --dataset {name}/digits --data-dir shards -j 0")
    assert done.code == 2 and done.out == ""
    assert f"'tosa-cli[{name}]'" in done.err
