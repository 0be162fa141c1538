"""The Fashion-MNIST experiment in little: models that train, and a run that goes on."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from timm.models import save_for_hf

from benchmarks.fashion import render as render_fashion
from benchmarks.fashion import teacher as fashion_teacher
from benchmarks.fashion.figures import PLOT, TEACHER_PLOT
from benchmarks.fashion.lab import FashionLab
from benchmarks.fashion.run_fashion import run_part
from benchmarks.fashion.teacher import make_model, train_phase
from benchmarks.fashion.variants import LOW_RATE, PAPER_RATE, Settings, Variant
from tosa_cli.train.config import TrainConfig

from .fashion_runs import (
    TINY,
    TOSA,
    fresh_accelerate,  # noqa: F401
    one_rate,  # noqa: F401
    small_teacher,  # noqa: F401
    variant,
    write_true_work,  # noqa: F401 (the fixture `true_work`)
    write_work,
)

choose_rate = FashionLab.rate


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of noise a class, and an untrained teacher with large patches."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(fashion_teacher.SHAPE, "patch_size", 14)
        return write_work(tmp_path_factory.mktemp("fashion"))


# ---------------------------------------------------------------------- training


def test_models_train_and_a_second_run_adds_nothing(work: Path, tmp_path: Path) -> None:
    path = tmp_path / "results" / "fashion.json"
    chosen = [variant("dense"), variant(TOSA)]
    lab = FashionLab(work, path, TINY)
    for part in ("teacher", "runs", "selectors", "speed", "pictures"):
        run_part(lab, part, (0,), chosen)
    results = json.loads(path.read_text())
    dense, tosa = (results["runs"][f"{each.name}, seed 0"] for each in chosen)
    assert dense["reduction"] == 0.0 and dense["keep_rates"] == {}
    assert 0 < tosa["reduction"] < 0.25 and set(tosa["keep_rates"].values()) == {LOW_RATE}
    assert dense["updates"] == tosa["updates"] == 2 and dense["last_loss"] > 1
    assert dense["start"]["test_images"] == 10 and dense["test_images"] == 20
    assert [layer["layer"] for layer in results["selectors"][f"{TOSA}, seed 0"]["after"]] == [2, 4, 6, 8, 10]
    assert set(results["speed"]["float32"]["models"]) == {"timm", "dense", TOSA}
    assert (path.parent / results["pictures"][TOSA]["file"]).stat().st_size > 1000
    assert not list((work / "runs").glob("*/*.checkpoint"))

    written = path.read_text()
    again = FashionLab(work, path, TINY)
    for part in ("teacher", "runs", "selectors", "speed", "pictures"):
        run_part(again, part, (0,), chosen)
    assert path.read_text() == written

    render_fashion.render(results, tmp_path)
    page = (tmp_path / "FASHION.md").read_text()
    assert f"| {TOSA} ({100 * tosa['reduction']:.1f} %) | dense (0.0 %) | {tosa['top1'] - dense['top1']:+.2f} |" in page
    assert "seed 7, test accuracy top-1 10.00 %" in page and "full from step 100 on" in page
    for plot in (PLOT, TEACHER_PLOT):
        assert f"(results/{plot})" in page and (tmp_path / "results" / plot).stat().st_size > 1000


def test_an_interrupted_finetuning_ends_in_the_same_weights(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.fashion import lab as fashion_lab

    settings = Settings(**{**vars(TINY), "checkpoint_every": 1})

    def run(name: str) -> tuple[FashionLab, Any]:
        folder = tmp_path / name
        folder.mkdir()
        for shared in ("fashion", "teacher"):
            (folder / shared).symlink_to(work / shared)
        lab = FashionLab(folder, folder / "results.json", settings)
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
    assert len(list((folder / "runs").glob("*/*.checkpoint"))) == 1
    lab = FashionLab(folder, folder / "results.json", settings)
    run_part(lab, "runs", (0,), [variant("dense")])
    assert lab.results["runs"]["dense, seed 0"]["resumed"]
    for name, value in lab.finetuned(variant("dense"), 0).state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_the_learning_rate_is_the_best_of_the_dense_model_on_images_that_it_did_not_read(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fashion.json"
    lab = FashionLab(work, path, dataclasses.replace(TINY, finetune_images=120, rate_images=4))
    read = {*lab.training_images(120, 0, 8, None).samples.indices}
    kept = {*lab.rate_images().samples.indices}
    assert len(read) == 120 and len(kept) == 4 and not read & kept
    found = {("dense", 1e-4): 90.0, ("dense", 3e-4): 92.0, (TOSA, 1e-4): 95.0, (TOSA, 3e-4): 84.0}
    run_part(lab, "rates", (0,), [])
    assert {(row["variant"], row["lr"]) for row in lab.results["rates"].values()} > set(found)

    def try_rate(lab: FashionLab, variant: Variant, lr: float) -> dict[str, Any]:
        return {"variant": variant.name, "lr": lr, "top1": found.get((variant.name, lr), 0.0)}

    monkeypatch.setattr(FashionLab, "_try_rate", try_rate)
    assert choose_rate(FashionLab(work, tmp_path / "other.json", TINY)) == 3e-4


def test_processes_share_the_work(work: Path, tmp_path: Path) -> None:
    path = tmp_path / "fashion.json"
    one, other = FashionLab(work, path, TINY), FashionLab(work, path, TINY)
    with FileLock(one.runs / "runs_a.lock"):
        other.measure("runs", "a", lambda: pytest.fail("another process is at it"), wait=False)
        other.measure("runs", "b", lambda: {"top1": 2.0}, wait=False)
        one.record("runs", "a", {"top1": 1.0})
    other.measure("runs", "a", lambda: pytest.fail("it was measured"))
    assert {name: run["top1"] for name, run in json.loads(path.read_text())["runs"].items()} == {"a": 1.0, "b": 2.0}
    other.measure("runs", "a", lambda: {"top1": 3.0}, made=tmp_path / "lost.safetensors")
    assert other.results["runs"]["a"]["top1"] == 3.0


def test_other_settings_are_refused(work: Path, tmp_path: Path) -> None:
    path = tmp_path / "fashion.json"
    run_part(FashionLab(work, path, TINY), "teacher", (0,), [])
    with pytest.raises(SystemExit, match="other settings"):
        FashionLab(work, path, Settings())


def test_only_what_the_same_settings_and_teacher_made_is_taken_up(work: Path, tmp_path: Path) -> None:
    for shared in ("fashion", "teacher"):
        shutil.copytree(work / shared, tmp_path / shared)
    first, again = (FashionLab(tmp_path, tmp_path / f"{name}.json", TINY).runs for name in ("a", "b"))
    assert first == again
    few = dataclasses.replace(TINY, finetune_images=64)
    folders = {first, FashionLab(tmp_path, tmp_path / "c.json", few).runs}
    save_for_hf(make_model(1).eval(), str(tmp_path / "teacher"), safe_serialization=True)
    folders.add(FashionLab(tmp_path, tmp_path / "d.json", TINY).runs)
    assert len(folders) == 3
    run_part(FashionLab(tmp_path, tmp_path / "d.json", TINY), "teacher", (0,), [])
    shutil.copytree(work / "teacher", tmp_path / "teacher", dirs_exist_ok=True)
    with pytest.raises(SystemExit, match="another teacher"):
        FashionLab(tmp_path, tmp_path / "d.json", TINY)


@pytest.mark.parametrize("name", [TOSA, f"ToSA {LOW_RATE}, shared, 16 rows"])
def test_a_seed_draws_the_selectors(work: Path, tmp_path: Path, name: str) -> None:
    lab = FashionLab(work, tmp_path / "fashion.json", TINY)
    torch.manual_seed(0)
    one, same, other = (lab.build(variant(name), seed)[0].selectors.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


def test_models_at_the_same_macs_are_so(true_work: Path, tmp_path: Path) -> None:
    lab = FashionLab(true_work, tmp_path / "fashion.json", TINY)
    for rate, least in ((PAPER_RATE, 0.06), (LOW_RATE, 0.24)):
        aim = lab.build(variant(f"ToSA {rate}, shared, all rows"), 0)[1]["reduction"]
        assert least < aim < least + 0.01
        for peer in ("merging", "pruning"):
            assert 0 <= lab.build(variant(f"{peer}, MACs of {rate}"), 0)[1]["reduction"] - aim < 0.01
    assert 0 <= lab.build(variant("matched, -25.8%"), 0)[1]["reduction"] - 0.258 < 0.01


# ---------------------------------------------------------------------- teacher


def test_an_interrupted_teacher_ends_in_the_same_weights_and_keeps_its_log(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_teacher, "LOG_EVERY", 2)
    config = TrainConfig(
        data_dir=str(work / "fashion"), epochs=1, batch_size=16, workers=0, device="cpu", checkpoint_every=3, lr=1e-3
    )

    def run(folder: Path) -> tuple[Any, dict[str, Any]]:
        folder.mkdir(exist_ok=True)
        model = make_model(0)
        report = train_phase(model, config.data_dir, config, folder / "a.safetensors", folder / "a.done.safetensors")
        return model.state_dict(), report

    class Stop(Exception):
        pass

    class Interrupted(fashion_teacher.Log):
        def advance(self, num_images: int, text: str) -> None:
            super().advance(num_images, text)
            if self.done == 5:
                raise Stop

    whole, told = run(tmp_path / "whole")
    assert [row["step"] for row in told["log"]] == [2, 4, 6, 8] and told["updates"] == 8
    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(fashion_teacher, "Log", Interrupted)
        run(tmp_path / "stopped")
    weights, resumed = run(tmp_path / "stopped")
    assert all(torch.equal(value, whole[name]) for name, value in weights.items())
    assert [row["step"] for row in resumed["log"]] == [2, 4, 6, 8]
    assert resumed["log"][0]["loss"] == told["log"][0]["loss"] and resumed["log"][3]["loss"] == told["log"][3]["loss"]
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["a.done.safetensors"]
    kept = run(tmp_path / "stopped")
    assert kept[1] == resumed and all(torch.equal(value, whole[name]) for name, value in kept[0].items())
