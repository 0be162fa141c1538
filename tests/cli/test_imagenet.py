"""Both ImageNet recipes from convert to eval on a tree in ImageNet's shape: three sources, one and two processes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from PIL import Image
from timm.models import save_for_hf

from tests.cli.conftest import Tosa
from tests.cli.image_sources import write_shards
from tests.model.tiny_models import randomize_
from tests.processes import run_together
from tosa_cli import load
from tosa_cli.recipe import load_recipe
from tosa_cli.train.config import DistillConfig, FinetuneConfig

PAPER, MATCHED = "deit_tiny_imagenet_paper", "deit_tiny_imagenet_matched"
CLASSES = ("n01440764", "n01443537", "n02102040", "n03028079")
NUM_TRAIN, NUM_VALIDATION = 24, 12
SMALL = "-b 4 -j 1 --device cpu"
"""The recipes are for a GPU and a million images."""
SHORT = f"{SMALL} --epochs 1 --warmup-epochs 0"

SOURCES = {
    "folder": "--data-dir imagenet",
    "hfds": "--dataset hfds/in1k --data-dir cache",
    "wds": "--dataset wds/imagenet --data-dir shards",
}


def write_tree(folder: Path) -> None:
    """Folders train and validation of class folders of JPEGs that are no squares, some grey as in ImageNet."""
    noise = np.random.default_rng(0)
    for split, count in (("train", NUM_TRAIN), ("validation", NUM_VALIDATION)):
        for i in range(count):
            label = i % len(CLASSES)
            height, width = (48, 64) if i % 3 else (64, 48)
            pixels = noise.integers(0, 256, (8, 8, 3)).astype("uint8")
            pixels[:, :, label % 3] //= 2 + label
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
            path = folder / split / CLASSES[label] / f"{CLASSES[label]}_{i:04d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            (image.convert("L") if i == 5 else image).save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeiT-Tiny's twelve layers in small, and the images in each of the three shapes."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("imagenet")
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "num_classes": 4}
    dense = randomize_(timm.create_model("deit_tiny_patch16_224", **shape), seed=0)
    save_for_hf(dense, str(folder / "dense"), safe_serialization=True)
    write_tree(folder / "imagenet")
    write_shards(folder / "shards", folder / "imagenet", shards=2)
    for split in ("train", "validation"):
        loaded = datasets.load_dataset(
            "imagefolder", data_dir=str(folder / "imagenet" / split), split="train", cache_dir=str(folder / "making")
        )
        loaded.to_parquet(str(folder / "in1k" / f"{split}.parquet"))
    return folder


@pytest.fixture
def work(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def convert(tosa: Tosa, recipe: str, source: str, output: str) -> Any:
    images = SOURCES[source] if recipe == MATCHED else ""
    done = tosa(f"convert dense --recipe {recipe} {images} --json -o {output}")
    assert done.code == 0, done.err
    return done.json


def check_model(folder: str, recipe: str) -> None:
    """What was written has been through both stages, with the recipe's own settings."""
    model = load(folder)
    assert model.provenance.stage == "finetuned"
    said = load_recipe(recipe).sections
    config = model.config.to_dict()
    chosen = ("layers", "source", "target_reduction", "max_samples")
    assert all(config[key] == value for key, value in said["convert"].items() if key not in chosen)
    made_by = yaml.safe_load(Path(folder, "recipe.yaml").read_text())
    overridden = ("epochs", "batch_size", "workers", "warmup_epochs")
    # A model's recipe leaves out what is the default.
    for command, defaults in (("distill", DistillConfig()), ("finetune", FinetuneConfig())):
        for key, value in said[command].items():
            assert key in overridden or made_by[command].get(key, getattr(defaults, key)) == value, (command, key)
    assert made_by["finetune"]["mixup"] == 0.8 and made_by["finetune"]["model_ema"] is True


def check_accuracy(tosa: Tosa, folder: str, source: str) -> None:
    """A source gives every held-out image, with the label that its class folder has."""
    report = tosa(f"eval {folder} {SOURCES[source]} {SMALL} --compare --json").json
    assert report["samples"] == NUM_VALIDATION and report["dense"]["top5"] == 100
    assert report["top1"] == tosa(f"eval {folder} {SOURCES['folder']} {SMALL} --json").json["top1"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("recipe", [PAPER, MATCHED])
def test_a_recipe_runs_from_convert_to_eval(work: Path, tosa: Tosa, recipe: str, source: str) -> None:
    report = convert(tosa, recipe, source, "model")
    if recipe == MATCHED:
        assert 0.258 <= report["reduction"] < 0.29
    done = tosa(f"distill model --recipe {recipe} {SOURCES[source]} {SHORT} --json")
    assert done.code == 0, done.err
    assert done.json["updates"] == (NUM_TRAIN // 4 if recipe == PAPER else 0)
    assert re.search(rf"\b{NUM_TRAIN}\b.*\b{NUM_VALIDATION}\b", done.err)
    assert done.json["held_out"]["samples"] == NUM_VALIDATION
    done = tosa(f"finetune model --recipe {recipe} {SOURCES[source]} {SHORT} --json")
    assert done.code == 0, done.err
    assert done.json["updates"] == NUM_TRAIN // 4 and done.json["held_out"]["samples"] == NUM_VALIDATION
    assert not done.json["skipped"]
    check_model("model", recipe)
    check_accuracy(tosa, "model", source)


@pytest.mark.parametrize(("source", "recipe"), [("folder", PAPER), ("hfds", MATCHED), ("wds", MATCHED)])
def test_a_recipe_runs_in_two_processes(work: Path, tosa: Tosa, recipe: str, source: str) -> None:
    convert(tosa, recipe, source, "model")
    shutil.copytree("model", "alone")
    words = f"--recipe {recipe} {SOURCES[source]} {SHORT} -j 0"
    for command in ("distill", "finetune"):
        if (command, source) == ("distill", "hfds"):  # the fit in two processes is seen on shards
            assert tosa(f"distill model {words}").code == 0
            continue
        done = run_together(["tosa_cli.cli.app", *f"{command} model {words} --json".split()], work)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        is_fit = command == "distill" and recipe == MATCHED
        assert report["updates"] == (0 if is_fit else NUM_TRAIN // 4 // 2)
        assert report["held_out"]["samples"] == NUM_VALIDATION and not report["skipped"]
        if is_fit:  # what is fitted is what one process fits
            assert tosa(f"distill alone {words}").code == 0
            one, two = (Path(folder, "model.safetensors").read_bytes() for folder in ("alone", "model"))
            assert one == two
    check_model("model", recipe)
    check_accuracy(tosa, "model", source)
