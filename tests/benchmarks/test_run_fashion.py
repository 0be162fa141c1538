"""The Fashion-MNIST experiment in little: models that train, a run that goes on, and the page."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import render_fashion
from accelerate.state import AcceleratorState, GradientState
from fashion_data import CLASSES
from fashion_figures import PLOT
from fashion_lab import Lab
from fashion_teacher import make_model
from fashion_variants import LOW_RATE, PAPER_RATE, Settings, Variant, variants
from PIL import Image
from run_fashion import run_part
from timm.models import save_for_hf

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


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its precision for a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of noise a class, and an untrained teacher."""
    folder = tmp_path_factory.mktemp("fashion")
    random = np.random.default_rng(0)
    for split, count in (("train", 13), ("validation", 2)):
        for name in CLASSES:
            target = folder / "fashion" / split / name
            target.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (28, 28), dtype=np.uint8)
                Image.fromarray(pixels).save(target / f"{index}.png")
    save_for_hf(make_model(0).eval(), str(folder / "teacher"), safe_serialization=True)
    phase = {"phase": "whole", "epochs": 1, "patches_dropped": 0.0, "lr": 1e-3, "updates": 1, "last_loss": 2.3}
    report = {"parameters": 1, "top1": 10.0, "top5": 50.0, "phases": [{**phase, "seconds": 60.0}]}
    (folder / "teacher" / "training.json").write_text(json.dumps(report))
    return folder


def test_models_train_and_a_second_run_adds_nothing(work: Path, tmp_path: Path) -> None:
    path = tmp_path / "results" / "fashion.json"
    chosen = [variant("dense"), variant(TOSA)]
    lab = Lab(work, path, TINY)
    for part in ("teacher", "runs", "selectors", "speed", "pictures"):
        run_part(lab, part, (0,), chosen)
    results = json.loads(path.read_text())
    dense, tosa = (results["runs"][f"{each.name}, seed 0"] for each in chosen)
    assert dense["reduction"] == 0.0 and dense["keep_rates"] == {}
    assert 0.24 < tosa["reduction"] < 0.25 and set(tosa["keep_rates"].values()) == {LOW_RATE}
    assert dense["updates"] == tosa["updates"] == 2 and dense["last_loss"] > 1
    assert dense["start"]["test_images"] == 10 and dense["test_images"] == 20
    assert [layer["layer"] for layer in results["selectors"][f"{TOSA}, seed 0"]["after"]] == [2, 4, 6, 8, 10]
    assert set(results["speed"]["float32"]["models"]) == {"timm", "dense", TOSA}
    assert (path.parent / results["pictures"][TOSA]["file"]).stat().st_size > 1000
    assert not list((work / "runs").glob("*.checkpoint"))

    written = path.read_text()
    again = Lab(work, path, TINY)
    for part in ("teacher", "runs", "selectors", "speed", "pictures"):
        run_part(again, part, (0,), chosen)
    assert path.read_text() == written

    render_fashion.render(results, tmp_path)
    page = (tmp_path / "FASHION.md").read_text()
    assert f"| {TOSA} ({100 * tosa['reduction']:.1f} %) | dense (0.0 %) | {tosa['top1'] - dense['top1']:+.2f} |" in page
    assert (tmp_path / "results" / PLOT).stat().st_size > 1000


def test_an_interrupted_finetuning_ends_in_the_same_weights(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fashion_lab
    import torch

    settings = Settings(**{**vars(TINY), "checkpoint_every": 1})

    def run(name: str) -> tuple[Lab, Any]:
        folder = tmp_path / name
        folder.mkdir()
        for shared in ("fashion", "teacher"):
            (folder / shared).symlink_to(work / shared)
        lab = Lab(folder, folder / "results.json", settings)
        run_part(lab, "runs", (0,), [variant("dense")])
        return lab, lab.finetuned(variant("dense"), 0).state_dict()

    _, whole = run("whole")

    class Stop(Exception):
        pass

    class Interrupted(fashion_lab.Log):
        def advance(self, num_images: int, text: str) -> None:
            super().advance(num_images, text)
            if self.done == 2:
                raise Stop

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(fashion_lab, "Log", Interrupted)
        run("stopped")
    folder = tmp_path / "stopped"
    assert len(list((folder / "runs").glob("*.checkpoint"))) == 1
    lab = Lab(folder, folder / "results.json", settings)
    run_part(lab, "runs", (0,), [variant("dense")])
    assert lab.results["runs"]["dense, seed 0"]["resumed"]
    for name, value in lab.finetuned(variant("dense"), 0).state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_other_settings_are_refused(work: Path, tmp_path: Path) -> None:
    path = tmp_path / "fashion.json"
    run_part(Lab(work, path, TINY), "teacher", (0,), [])
    with pytest.raises(SystemExit, match="other settings"):
        Lab(work, path, Settings())


def test_models_at_the_same_macs_are_so(work: Path, tmp_path: Path) -> None:
    lab = Lab(work, tmp_path / "fashion.json", TINY)
    for rate in (PAPER_RATE, LOW_RATE):
        aim = lab.build(variant(f"ToSA {rate}, shared, all rows"), 0)[1]["reduction"]
        for peer in ("merging", "pruning"):
            assert 0 <= lab.build(variant(f"{peer}, MACs of {rate}"), 0)[1]["reduction"] - aim < 0.01
    assert 0 <= lab.build(variant("calibrated, -25.8%"), 0)[1]["reduction"] - 0.258 < 0.01


def test_a_page_of_three_seeds_has_means_and_spreads(tmp_path: Path) -> None:
    def run(name: str, seed: int, top1: float) -> dict[str, Any]:
        return {
            "variant": name,
            "seed": seed,
            "top1": top1,
            "top5": 99.0,
            "start": {"top1": 50.0, "top5": 90.0, "test_images": 10},
            "gmacs": 0.1764,
            "reduction": 0.0,
            "keep_rates": {},
            "resumed": False,
            "images_per_second": 100.0,
            "last_loss": 0.5,
        }

    runs = {}
    for seed, (dense, tosa) in enumerate([(90.0, 90.5), (91.0, 91.6), (92.0, 92.1)]):
        runs[f"dense, seed {seed}"] = run("dense", seed, dense)
        runs[f"{TOSA}, seed {seed}"] = run(TOSA, seed, tosa)
    used = {**vars(TINY), "finetune": {**_tuned()}}
    render_fashion.render({"settings": used, "machine": {"cpu": "x"}, "runs": runs}, tmp_path)
    page = (tmp_path / "FASHION.md").read_text()
    assert "| dense, finetuned | 0.1764 | 0.0 % | 91.00 ± 1.00 |" in page
    assert f"| {TOSA} (0.0 %) | dense (0.0 %) | +0.40 ± 0.26 | +0.50, +0.60, +0.10 | ahead |" in page
    assert "Parts that are missing: selectors, speed, pictures." in page


def _tuned() -> dict[str, Any]:
    from fashion_variants import FINETUNE

    return FINETUNE
