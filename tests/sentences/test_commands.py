"""What commands say of what is on the disk, or is not: a model, images, files; a long table."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.cli.conftest import TRAIN, Tosa, converted, converted_once, material, rewrite, tosa, work  # noqa: F401
from tests.cli.mistakes import contents
from tests.train.tiny_pairs import write_folder
from tosa_cli.api import load, save
from tosa_cli.data.datasets import split_indices

Prepare = Callable[[Tosa], object]


def nothing(_: Tosa) -> None:
    """The model and the images are whole."""


def with_values_that_are_not_finite(_: Tosa) -> None:
    state = load_file("dense/model.safetensors")
    state["blocks.3.attn.qkv.weight"][0] = float("nan")
    state["norm.bias"][0] = float("inf")
    save_file(state, "dense/model.safetensors")


def with_recipe(text: str) -> Prepare:
    return lambda _: Path("mine.yaml").write_text(text)


def with_scenes(_: Tosa) -> None:
    write_folder(Path("scenes"), 11)


def with_one_image(_: Tosa) -> None:
    Path("one").mkdir()
    shutil.copy("photos/000.jpg", "one")


def with_bad_images(_: Tosa) -> None:
    for label in range(10):
        for number in range(4):
            path = Path(f"bad/{label}/{number}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"bad")


def with_many_bad_images(_: Tosa) -> None:
    for number in range(200):
        Path(f"photos/x{number:03d}.jpg").write_bytes(b"bad")


def with_bad_held_out_images(_: Tosa) -> None:
    for path in sorted(Path("photos").iterdir())[11:]:
        path.unlink()
    (broken,) = split_indices(11, None, hold_out=True)[1]
    rewrite(sorted(Path("photos").iterdir())[broken], b"broken")


def without_class_9(_: Tosa) -> None:
    for split in ("train", "validation"):
        shutil.rmtree(f"digits/{split}/9")


def with_another_class(_: Tosa) -> None:
    Path("digits/validation/9").rename("digits/validation/nine")


def finetuned(_: Tosa) -> None:
    model = load("dense-tosa")
    model.provenance = model.provenance.after("finetuned", {})
    save(model, "dense-tosa", overwrite=True)
    shutil.rmtree("dense")


def headless(run: Tosa) -> None:
    assert run("convert dense --layers 2,4 --num-classes 0 -o headless").code == 0


def with_nothing_to_fit(run: Tosa) -> None:
    assert run("convert dense --layers 2,3 --selector similarity --bypass nearest -o m").code == 0


def with_depth(run: Tosa) -> None:
    with_scenes(run)
    assert run(f"finetune --task depth --data-dir scenes {TRAIN} --decoder linear -o depth").code == 0


def made(*folders: str) -> Prepare:
    return lambda _: [Path(folder).mkdir() for folder in folders]


def removed(folder: str) -> Prepare:
    return lambda _: shutil.rmtree(folder)


def written(name: str, text: str) -> Prepare:
    return lambda _: (Path(name).parent.mkdir(exist_ok=True), Path(name).write_text(text))


ROWS: list[tuple[Prepare, str, str]] = [
    (
        lambda _: Path(".tosa.json").unlink(),
        "flops",
        "No model was named, and none was converted in this directory. Name one, or run `tosa convert deit_tiny "
        "--layers 2,4,6,8,10` first.",
    ),
    (
        removed("dense-tosa"),
        "flops",
        "No model was named, and dense-tosa, the last one converted here, is gone. Name one.",
    ),
    (
        with_values_that_are_not_finite,
        "convert dense --layers 2,4 -o other",
        "The weights of dense hold values that are not finite, the first of them under "
        "'blocks.3.attn.qkv.weight': take a checkpoint from before they were spoilt.",
    ),
    (
        with_values_that_are_not_finite,
        "inspect dense --data-dir photos",
        "The weights of dense hold values that are not finite, the first of them under "
        "'blocks.3.attn.qkv.weight': take a checkpoint from before they were spoilt.",
    ),
    (
        nothing,
        "bench dense-tosa --img-size 31",
        "An image of 31x31 pixels is no whole number of patches of 8x8: use 24x24 or 32x32.",
    ),
    (
        nothing,
        "convert dense --layers 2",
        "dense-tosa already exists. Choose another name with -o, or pass --overwrite.",
    ),
    (
        nothing,
        f"distill --data-dir photos -o photos --overwrite {TRAIN}",
        "photos is not a model folder and will not be overwritten. Choose another name with -o.",
    ),
    (
        nothing,
        "convert dense --layers 2 -o /proc/model",
        "/proc/model could not be written (…). Free space or choose another place.",
    ),
    (
        made("empty"),
        "eval --data-dir empty",
        "empty holds no images (.jpg, .png, ...). Pass another folder with --data-dir.",
    ),
    (
        with_one_image,
        f"distill --data-dir one {TRAIN}",
        "one holds only one image, but training needs one more to measure on: add images.",
    ),
    (
        without_class_9,
        "finetune --data-dir digits",
        "digits has 9 classes, but the model's head has 10. Point --data-dir at the right folder, say with "
        "--class-map FILE which class each folder is, or convert the source with --num-classes 9.",
    ),
    (
        with_another_class,
        f"finetune --data-dir digits --val-split validation {TRAIN}",
        "Of the 10 classes of the held-out images of digits, 9 are among those learned (0, 1, 2, 3, 4 and 5 "
        "more), but 'nine' is not: rename its folder, or say with --class-map FILE which class each folder is.",
    ),
    (
        removed("digits/validation"),
        "eval --data-dir digits",
        "digits has no folder validation, but train. Name the split, or point at the images.",
    ),
    (
        nothing,
        "eval --data-dir digits --split tset",
        "digits has no folder tset, but train and validation. Name the split, or point at the images.",
    ),
    (
        nothing,
        f"distill --data-dir photos --val-dir photos {TRAIN}",
        "The held-out images would be the training images: photos has no split of its own for validation. Name "
        "other images with --val-dir, or leave out --val-split to hold out a share.",
    ),
    (
        with_bad_images,
        "eval --data-dir bad -j 0",
        "None of the images of bad can be read, the first is bad/0/0.jpg (not an image, or broken). Check the data.",
    ),
    (
        with_bad_images,
        f"distill --data-dir bad {TRAIN}",
        "None of the held-out images of bad can be read, the first is bad/1/1.jpg (not an image, or broken). "
        "Remove broken images, or name others to hold out with --val-dir.",
    ),
    (
        with_bad_held_out_images,
        f"distill --data-dir photos {TRAIN}",
        "None of the held-out images of photos can be read, the first is photos/005.jpg (not an image, or "
        "broken). Remove broken images, or name others to hold out with --val-dir.",
    ),
    (
        with_many_bad_images,
        f"distill --data-dir photos --val-dir digits {TRAIN}",
        "Too many images in a row cannot be read, the first is photos/x….jpg (not an image, or broken). Check the "
        "data.",
    ),
    (
        with_recipe("finetune:\n  model_ema_decay: 2\n"),
        "finetune --recipe mine.yaml --data-dir digits",
        "--model-ema-decay must be 0 or more and below 1, not 2.",
    ),
    (
        nothing,
        f"finetune --data-dir digits --auto-augment bogus {TRAIN}",
        "--auto-augment 'bogus' cannot be used (…): try rand-m9-mstd0.5-inc1, augmix-m5-w4-d2 or original.",
    ),
    (
        with_scenes,
        "finetune dense --task segmentation --num-labels 2 --data-dir scenes --depth-scale 5",
        "--depth-scale goes with depth maps, and segmentation has masks: leave it out.",
    ),
    (
        with_scenes,
        "finetune dense --task depth --data-dir scenes --split tset",
        "scenes has no folder tset. Check the name of the split, or leave it out to read scenes.",
    ),
    (
        with_depth,
        f"finetune depth --data-dir scenes {TRAIN} --decoder dpt",
        "depth was trained with decoder linear, not dpt: leave decoder out.",
    ),
    (
        with_depth,
        "eval depth --data-dir scenes --task segmentation",
        "depth predicts depth, not segmentation: leave out --task.",
    ),
    (
        finetuned,
        f"finetune --objective features --data-dir photos {TRAIN}",
        "The objective features learns from the dense source …dense, which cannot be loaded: bring it back, or "
        "finetune a model that was not finetuned before. There is no folder or file …dense. Check the path, or "
        "name a timm model such as deit_tiny.",
    ),
    (
        with_nothing_to_fit,
        f"distill m --data-dir photos {TRAIN}",
        "The selector 'similarity' has nothing to train, and the bypass 'nearest' nothing to fit: the model is "
        "ready to use. Convert with --selector attention or --bypass nearest+linear to distill.",
    ),
    (
        headless,
        "eval headless --data-dir digits --task classification",
        "The model has no classification head. Convert its source with --num-classes to give it one.",
    ),
    (nothing, "list xyzzy", "timm has no architecture that matches 'xyzzy'. Type `tosa list` to see them."),
    (nothing, "push a b c", "Too many names: pass a model folder and a repository, not a b c."),
    (
        nothing,
        "bench --runtime onnxruntime --compile",
        "--compile and --runtime onnxruntime were given together: leave one of them out.",
    ),
    (
        nothing,
        "bench --runtime onnxruntime --dtype bfloat16",
        "--runtime onnxruntime measures float32 on the CPU: leave out --device and --dtype.",
    ),
    (
        written("dense-tosa.onnx", "mine"),
        "export",
        "dense-tosa.onnx already exists. Choose another name with -o, or pass --overwrite.",
    ),
    (
        written("new/cat.png", "mine"),
        "viz photos/001.jpg -o new/cat.png --no-compare",
        "new/cat.png already exists. Choose another name with -o, or pass --overwrite.",
    ),
    (
        written("dense-tosa/config.json", "{"),
        "viz dense-tosa photos/000.jpg --no-compare",
        "dense-tosa/config.json cannot be read as JSON (…): copy or download it again.",
    ),
    (
        written("theirs/config.json", '{"model_type": "swin"}'),
        "convert theirs --layers 2",
        "theirs is a transformers model of type 'swin', which cannot be converted: it attends in windows. Types "
        "that can: …. If timm has the model, name it as timm does.",
    ),
    (
        nothing,
        "demo -o dense",
        "dense already exists. Choose another folder with -o, or pass --overwrite if it is of an earlier demo.",
    ),
]
"""What has happened to the directory, the command, and what is said, where "…" stands for what varies."""

ON = "Working on dense-tosa, the last model converted here."
CHECKED = "Checked: with every token kept, the converted model equals its source."
UNTRAINED = "Warning: The selectors were not trained: run `tosa distill` first, or they select by the layer before."
NEXT = "Next: tosa eval dense-tosa --data-dir IMAGES --compare"
DISTILLED = ["… images/s.", "Wrote dense-tosa: 23.7% fewer MACs.", NEXT]

SAID: list[tuple[str, list[str]]] = [
    (
        "convert dense --layers 2,4 --img-size 96 --target-reduction 0.1 -o new",
        ["Keep rate 0.81 reaches the target.", CHECKED, "Wrote new.", "Next: tosa distill --data-dir PHOTOS"],
    ),
    ("convert dense --layers 2,4 --dry-run", [CHECKED, "Dry run: nothing was written."]),
    (
        f"distill --data-dir photos {TRAIN}",
        [ON, "Distilling on 22 images of photos; 2 images are held out.", *DISTILLED],
    ),
    (
        f"distill --data-dir photos --max-samples 12 {TRAIN}",
        [ON, "Distilling on 11 images of photos; 1 image is held out.", *DISTILLED],
    ),
    (
        f"finetune --data-dir digits {TRAIN}",
        [
            *[ON, UNTRAINED, "Finetuning on 36 images of digits; 4 images are held out."],
            *["4 steps in … s, … s of it measuring; … images/s while training.", "Wrote dense-tosa.", NEXT],
        ],
    ),
    (
        f"finetune --objective features --data-dir photos --lr 1e-3 {TRAIN} --epochs 2 --eval-every 1",
        [
            *[ON, UNTRAINED, "Finetuning on 22 images of photos; 2 images are held out."],
            "4 steps in … s, … s of it measuring; … images/s while training.",
            "Kept the weights after step 4, the best of 5 measurements on the held-out images.",
            *["Wrote dense-tosa.", "Next: tosa eval dense-tosa --data-dir IMAGES --task features"],
        ],
    ),
    (
        "eval --data-dir digits -j 0 --device cpu --update-card",
        [
            *[ON, "23.7% fewer MACs. … images/s is the model alone, loading took … s more."],
            "Wrote the result into dense-tosa/README.md.",
        ],
    ),
    ("inspect dense", ["Next: tosa convert dense --layers 2"]),
    ("push me/model --dry-run", [ON, "Dry run: nothing was pushed (0.7 MB)."]),
    ("list test_vit", ["5 of 5 architectures can be converted.", "Next: tosa inspect test_vit"]),
    ("list swin_tiny_patch4_window7_224", ["0 of 1 architectures can be converted."]),
    (
        "viz photos/000.jpg photos/001.jpg -o out --layers 2 --no-compare",
        [ON, "Wrote 2 pictures, and out/index.html, which holds all of them."],
    ),
    ("viz photos/000.jpg", [ON, "Wrote 000-selection.png."]),
]
"""A command, and the lines on stderr that tell what it does and what comes next."""


def matches(told: str, sentence: str) -> bool:
    """Whether a sentence was told, where "…" stands for what varies."""
    return re.fullmatch(".+?".join(map(re.escape, sentence.split("…"))), told) is not None


@pytest.mark.parametrize(("command", "lines"), SAID, ids=[row[0] for row in SAID])
def test_what_is_told_on_the_way(
    converted: Path,  # noqa: F811
    tosa: Tosa,  # noqa: F811
    command: str,
    lines: list[str],
) -> None:
    done = tosa(command)
    told = done.err.splitlines()
    assert done.code == 0 and len(told) == len(lines), done.err
    for one, line in zip(told, lines, strict=True):
        assert matches(one, line), one


@pytest.mark.parametrize(("prepare", "command", "sentence"), ROWS, ids=[row[1] for row in ROWS])
def test_what_is_said(
    converted: Path,  # noqa: F811
    tosa: Tosa,  # noqa: F811
    prepare: Prepare,
    command: str,
    sentence: str,
) -> None:
    prepare(tosa)
    before = contents(Path())
    done = tosa(command)
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err, done.err
    told = done.err.splitlines()[-1].removeprefix("Error: ")
    assert matches(told, sentence), told
    assert contents(Path()) == before
