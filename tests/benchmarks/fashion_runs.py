"""The Fashion-MNIST experiment in little."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from timm.models import save_for_hf

from benchmarks.fashion import teacher as fashion_teacher
from benchmarks.fashion.data import CLASSES
from benchmarks.fashion.lab import FashionLab
from benchmarks.fashion.teacher import make_model
from benchmarks.fashion.variants import LOW_RATE, Settings, Variant, variants

TINY = Settings(
    seeds=(0,),
    finetune_images=128,
    distill_images=16,
    curve_images=4,
    calibration_images=20,
    test_images=20,
    start_images=10,
    selector_images=10,
    speed_batch=2,
    speed_rounds=1,
    speed_seconds=0.0,
    workers=0,
)

TOSA = f"ToSA {LOW_RATE}, shared, all rows"


def variant(name: str) -> Variant:
    return next(each for each in variants() if each.name == name)


def write_work(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 13), ("validation", 2)):
        for name in CLASSES:
            target = folder / "fashion" / split / name
            target.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (28, 28), dtype=np.uint8)
                Image.fromarray(pixels).save(target / f"{index}.png")
    save_for_hf(make_model(0).eval(), str(folder / "teacher"), safe_serialization=True)
    phase = {"phase": "full", "epochs": 1, "img_size": 56, "lr": 1e-3, "updates": 200, "last_loss": 2.3}
    log = [{"step": step, "loss": 2.3, "lr": 1e-3, "images_per_second": 100.0} for step in (100, 200)]
    phase |= {"seconds": 60.0, "log": log}
    report = {"parameters": 1, "seed": 7, "top1": 10.0, "top5": 50.0, "phases": [phase]}
    (folder / "teacher" / "training.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its precision for a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def one_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying learning rates takes time."""
    monkeypatch.setattr(FashionLab, "rate", lambda self: 1e-3)


@pytest.fixture(autouse=True)
def small_teacher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen large patches an image, where nothing is said of what the experiment's own models cost."""
    if "true_work" not in request.fixturenames:
        monkeypatch.setitem(fashion_teacher.SHAPE, "patch_size", 14)


@pytest.fixture(name="true_work")
def write_true_work(tmp_path: Path) -> Path:
    """A few images of noise a class, and an untrained teacher in the experiment's own shape."""
    return write_work(tmp_path / "true")
