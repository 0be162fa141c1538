"""What needs a GPU or ImageNet says so; what can be shown without them runs."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.deploy import run_gpu
from benchmarks.imagenet import estimate
from benchmarks.imagenet.render import put_in, render
from tosa_cli.measure import speed

TINY = "deit_tiny_patch16_224"
ONCE = speed.Speedup(1.0, 1.0, 1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_gpu.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module(run_gpu.__spec__.name, run_name="__main__")
    assert exit.value.code == "There is no CUDA device here: run this where there is a GPU, or pass --render."
    assert capsys.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_on_the_cpu_every_variant_is_timed_and_a_second_run_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)
    few = ["--models", "deit_tiny_patch16_224", "--sizes", "224", "--modes", "eager", "--batch", "2", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["run_gpu.py", "--device", "cpu", *few, "--out", str(tmp_path)])
    run_gpu.main()
    assert capsys.readouterr().out == "deit_tiny_patch16_224 224 eager done\n"
    path = tmp_path / "results" / "gpu.json"
    (rows,) = json.loads(path.read_text()).values()
    row = rows["deit_tiny_patch16_224 224 eager"]
    assert list(row["timings"]) == ["dense", *run_gpu.VARIANTS]
    assert row["conditions"]["dtype"] == "bfloat16" and row["conditions"]["img_size"] == [224, 224]
    assert row["reductions"]["paper, 0.8"] == pytest.approx(0.079, abs=5e-4)
    assert row["reductions"]["matched-like"] > 0.24
    page, before = (tmp_path / "GPU.md").read_text(), path.read_bytes()
    assert page.count("| deit_tiny_patch16_224 224 eager | 2 |") == 1 + len(run_gpu.VARIANTS)
    run_gpu.main()
    assert path.read_bytes() == before and capsys.readouterr().out == ""


def test_the_page_on_imagenet_has_the_committed_figures() -> None:
    figures = json.loads(estimate.RESULTS.read_text(encoding="utf-8"))
    page = estimate.PAGE.read_text(encoding="utf-8")
    assert put_in(page, render(figures)) == page
    assert render(figures) in page


def test_memory_is_told_of_the_eager_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(models: dict[str, Any], images: torch.Tensor, **_: Any) -> speed.TurnsReport:
        timings = {name: speed.Timing(1.0, 1.0, 1.0, 12.0) for name in models}
        return speed.TurnsReport(speed._conditions(images, False, 1), timings, dict.fromkeys(models, ONCE))

    monkeypatch.setattr(speed, "time_in_turns", timed)
    rows = {mode: run_gpu.measure(TINY, 32, mode, 1, 1, torch.device("cpu")) for mode in run_gpu.MODES}
    told = {mode: {timing["peak_memory_mb"] for timing in row["timings"].values()} for mode, row in rows.items()}
    assert told == {"eager": {12.0}, "compiled": {None}, "CUDA graphs": {None}}
    page = run_gpu.render({"GPU": rows})
    assert "eager | 1 | dense | 1 | 1.00x (1.00 to 1.00) |  | 12 |" in page
    assert "compiled | 1 | dense | 1 | 1.00x (1.00 to 1.00) |  |  |" in page


def test_what_did_not_fit_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)
    options = ["--models", TINY, "--sizes", "32", "--modes", "eager", "--batch", "2", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["run_gpu.py", "--device", "cpu", *options, "--out", str(tmp_path)])
    path = tmp_path / "results" / "gpu.json"
    with monkeypatch.context() as patched:
        patched.setattr(speed, "time_in_turns", too_large)
        run_gpu.main()
    (rows,) = json.loads(path.read_text()).values()
    assert rows == {f"{TINY} 32 eager": {"error": "2 images do not fit"}}
    assert f"| {TINY} 32 eager |  | 2 images do not fit |  |  |  |  |" in (tmp_path / "GPU.md").read_text()
    run_gpu.main()
    (rows,) = json.loads(path.read_text()).values()
    assert "error" not in rows[f"{TINY} 32 eager"]
