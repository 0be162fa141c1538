"""Every source of images through timm: folders, Hugging Face data sets, WebDataset shards; and broken images."""

import io
import json
import re
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Tosa, rewrite
from tests.sentences import fragments
from tosa_cli.data.class_folders import ClassFolders

TRAIN = "-b 8 -j 0 --epochs 1 --device cpu"


@pytest.fixture
def converted(short: Path) -> Path:
    """The model folder `dense-tosa`, of two layers."""
    return short


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def add_broken(folder: Path, like: Path) -> list[str]:
    """A text, an empty file and half an image among good ones, sorted between them."""
    (folder / "0005b.png").write_text("This is not an image.")
    (folder / "0009b.jpg").write_bytes(b"")
    whole = like.read_bytes()
    (folder / f"0013b{like.suffix}").write_bytes(whole[: len(whole) // 2])
    return ["0005b.png", "0009b.jpg", f"0013b{like.suffix}"]


def write_shards(folder: Path, images: Path, shards: int = 2, broken: bool = False) -> None:
    """Shards of a tree's splits `train` and `validation`, with timm's _info.json; a label is its folder's place."""
    splits = {}
    folder.mkdir()
    for split in ("train", "validation"):
        paths = sorted((path for path in (images / split).rglob("*") if path.is_file()), key=lambda path: path.stem)
        classes = sorted(path.name for path in (images / split).iterdir())
        names, lengths = [], []
        for shard in range(shards):
            names.append(f"{split}-{shard:03d}.tar")
            mine = paths[shard::shards]
            lengths.append(len(mine))
            with tarfile.open(folder / names[-1], "w") as tar:
                for number, path in enumerate(mine):
                    content = path.read_bytes()
                    if broken and number == 3:
                        content = content[:60]
                    label = str(classes.index(path.parent.name)).encode()
                    suffix = "png" if path.suffix == ".png" else "jpg"
                    for name, data in ((f"{path.stem}.{suffix}", content), (f"{path.stem}.cls", label)):
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        splits[split] = {"name": split, "num_samples": len(paths), "filenames": names, "shard_lengths": lengths}
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))


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


# ---------------------------------------------------------------- broken images


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_names_and_counts_what_it_cannot_read(converted: Path, tosa: Tosa, workers: int) -> None:
    broken = add_broken(Path("digits/validation/3"), Path("digits/validation/3/0003.png"))
    done = tosa(f"eval --data-dir digits -b 4 -j {workers} --json")
    report = done.json
    assert done.code == 0 and report["samples"] == 33 and len(report["skipped"]) == 3
    assert fragments.COULD_NOT_BE_READ_WERE in done.err
    for name in broken:
        assert name in done.err and any(name in skipped for skipped in report["skipped"])
    assert "\n" not in report["skipped"][0]


@pytest.mark.parametrize("workers", [0, 2])
def test_distill_names_and_counts_what_it_cannot_read(converted: Path, tosa: Tosa, workers: int) -> None:
    broken = add_broken(Path("photos"), Path("photos/003.jpg"))
    done = tosa(f"distill --data-dir photos -b 6 -j {workers} --epochs 2 --device cpu --json")
    assert done.code == 0, done.err
    assert len(done.json["skipped"]) == 3 and done.json["updates"] == 8
    assert all(name in done.err for name in broken)


def test_a_broken_image_among_the_held_out_ones_is_named_too(converted: Path, tosa: Tosa) -> None:
    rewrite(Path("digits/validation/0/0000.png"), b"")
    for command in ("distill", "finetune"):
        done = tosa(f"{command} --data-dir digits --val-split validation {TRAIN} --json")
        assert done.json["held_out"]["samples"] == 32
        assert len(done.json["skipped"]) == 1 and "0000.png" in done.err


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "command",
    [
        "eval --data-dir digits --strict",
        "distill --data-dir digits --split validation --strict -b 8",
        "finetune --data-dir digits --split validation --strict -b 8",
    ],
)
def test_strict_stops_at_a_broken_image(converted: Path, tosa: Tosa, command: str, workers: int) -> None:
    add_broken(Path("digits/validation/3"), Path("digits/validation/3/0003.png"))
    before = contents(converted)
    done = tosa(f"{command} -j {workers}")
    assert done.code == 2 and done.out == ""
    last = done.err.splitlines()[-1]
    assert last.startswith("Error: digits/validation/3/00") and fragments.CANNOT_BE_READ_REMOVE_IT in last
    assert contents(converted) == before


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("command", ["eval", f"distill {TRAIN}", f"finetune {TRAIN}"])
def test_a_folder_of_broken_images_is_refused(converted: Path, tosa: Tosa, command: str, workers: int) -> None:
    for label in range(10):
        for i in range(4):
            path = Path(f"bad/{label}/{i}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"bad")
    done = tosa(f"{command} dense-tosa --data-dir bad -j {workers}")
    assert done.code == 2 and "Traceback" not in done.err
    assert ("held-out" in done.err) == (command != "eval") and " bad/" in done.err


def test_many_broken_images_in_a_row_stop_the_training(converted: Path, tosa: Tosa) -> None:
    for i in range(200):
        Path(f"photos/x{i:03d}.jpg").write_bytes(b"bad")
    for workers in (0, 2):
        done = tosa(f"distill --data-dir photos --val-dir digits -b 8 --epochs 1 --device cpu -j {workers}")
        assert done.code == 2 and " photos/x" in done.err
        assert "Traceback" not in done.err


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


# ---------------------------------------------------------------- WebDataset


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
