"""timm's validate.py, train.py and benchmark.py with `local-dir:` of a converted folder.

They are in timm's repository alone: `TIMM_SCRIPTS` names a folder that has them, else they are fetched by their tag.
Each is run by `RUN`, as they import no more than timm, which does not know converted models.
"""

import csv
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT

RUN = "import runpy, sys, tosa_cli; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
ADDRESS = "https://raw.githubusercontent.com/huggingface/pytorch-image-models"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "TIMM_SCRIPTS" in os.environ:
        return Path(os.environ["TIMM_SCRIPTS"])
    folder = tmp_path_factory.mktemp("scripts")
    for name in ("validate.py", "train.py", "benchmark.py"):
        try:
            urllib.request.urlretrieve(f"{ADDRESS}/v{timm.__version__}/{name}", folder / name)
        except OSError as error:
            pytest.skip(f"timm's {name} cannot be fetched: {error}")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of each of seven classes, for training and for validation."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "validation"):
        for label in range(7):
            (folder / split / f"c{label}").mkdir(parents=True)
            for number in range(12):
                pixels = torch.randint(0, 256, (180, 200, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / split / f"c{label}" / f"{number}.png")
    return folder


def run(script: Path, *args: str) -> str:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(script), *args], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def tosa(*args: str) -> dict[str, float]:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "tosa_cli", *args, "--json"]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_validate_finds_the_accuracy_of_tosa_eval(scripts: Path, photos: Path, folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    run(
        scripts / "validate.py", "--data-dir", str(photos), "--split", "validation", "--model", f"local-dir:{folder}",
        "--pretrained", "--device", "cpu", "-b", "16", "-j", "0", "--num-classes", "7",
        "--results-file", str(results), "--results-format", "json",
    )  # fmt: skip
    found = json.loads(results.read_text())
    found = found[0] if isinstance(found, list) else found
    ours = tosa("eval", str(folder), "--data-dir", str(photos), "--split", "validation", "--device", "cpu", "-j", "0")
    assert found["top1"] == pytest.approx(ours["top1"], abs=0.01)
    assert found["top5"] == pytest.approx(ours["top5"], abs=0.01)


def test_train_trains_it(scripts: Path, photos: Path, folder: Path, tmp_path: Path) -> None:
    run(
        scripts / "train.py", "--data-dir", str(photos), "--model", f"local-dir:{folder}", "--pretrained",
        "--num-classes", "7", "--device", "cpu", "-b", "28", "-j", "0", "--epochs", "1", "--warmup-epochs", "0",
        "--opt", "adamw", "--lr", "1e-4", "--layer-decay", "0.75", "--output", str(tmp_path), "--experiment", "run",
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "run" / "summary.csv").open()))
    assert len(rows) == 1 and float(rows[0]["train_loss"]) > 0


def test_benchmark_counts_what_tosa_flops_counts(scripts: Path, folder: Path, model: TosaViT) -> None:
    pytest.importorskip("fvcore")
    said = run(
        scripts / "benchmark.py",
        "--bench",
        "profile_fvcore",
        "--model",
        f"local-dir:{folder}",
        "--device",
        "cpu",
        "-b",
        "1",
    )
    gmacs = re.search(r"([\d.]+) GMACs", said)
    assert gmacs is not None and float(gmacs.group(1)) == pytest.approx(count_flops(model).gmacs, abs=0.01)
