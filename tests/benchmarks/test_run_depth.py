"""Depth with converted encoders: what the page says of the figures, and that a run goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.depth import run_depth

FIGURES = {"sq_rel": 0.1, "rmse": 0.5, "log10": 0.04, "d2": 0.99}
COSTS = {"encoder_gmacs": 6.0, "encoder_reduction": 0.0, "gmacs": 9.0, "reduction": 0.0, "samples": 300, "seconds": 1.0}
MACHINE = {"cpu": "some"}


def run(abs_rel: float, d1: float) -> dict[str, Any]:
    return {**FIGURES, **COSTS, "abs_rel": abs_rel, "d1": d1}


def page(matched: list[tuple[float, float]]) -> str:
    runs = {f"dense, seed {seed}": run(0.1, 0.9) for seed in range(2)}
    runs |= {f"matched, -25 %, seed {seed}": run(*figures) for seed, figures in enumerate(matched)}
    return run_depth.render({"machine": MACHINE, "settings": run_depth.SETTINGS, "dpt": runs})


def test_encoders_are_compared_with_the_dense_one_of_the_same_seed() -> None:
    text = page([(0.101, 0.898), (0.103, 0.896)])
    assert "| dense | 6.000 | 0.0% | 2 | 0.1000 ± 0.0000 |" in text
    assert "matched, -25 %: Abs Rel +2.0 ± 1.4 % (relative), δ<1.25 -0.0030 ± 0.0014; within 2 % and 0.005." in text


def test_the_page_is_that_of_the_committed_figures() -> None:
    figures = json.loads(run_depth.RESULTS.read_text(encoding="utf-8"))
    assert run_depth.PAGE.read_text(encoding="utf-8") == run_depth.render(figures)


def test_what_was_not_run_is_listed() -> None:
    text = page([(0.1, 0.9)])
    assert "dpt on matched, -25 %, seed 1;" in text and "dpt on matched, -25 %, seed 0;" not in text


@pytest.mark.parametrize("figures", [(0.103, 0.9), (0.1, 0.894)])
def test_a_worse_encoder_is_said_to_be_worse(figures: tuple[float, float]) -> None:
    assert "not within 2 % and 0.005." in page([figures])


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A small set of rooms, and the commands that were run instead of being run."""
    seen: list[list[str]] = []

    def tosa(*arguments: Any) -> str:
        seen.append([str(argument) for argument in arguments])
        if "-o" in seen[-1]:
            (tmp_path / seen[-1][seen[-1].index("-o") + 1]).mkdir(exist_ok=True)
        return json.dumps(run(0.1, 0.9))

    monkeypatch.setattr(run_depth, "tosa", tosa)
    monkeypatch.setattr(run_depth, "SCENES", 20)
    monkeypatch.setattr(run_depth, "SIZE", 16)
    monkeypatch.setattr(run_depth, "CALIBRATION_IMAGES", 3)
    (tmp_path / "dinov2_small").mkdir()
    return seen


def test_what_was_measured_is_not_run_again(tmp_path: Path, commands: list[list[str]]) -> None:
    for _ in range(2):
        lab = run_depth.DepthLab(tmp_path, tmp_path / "depth.json")
        lab.measure("dpt", "matched, -25 %", 0)
    assert [command[0] for command in commands] == ["convert", "distill", "finetune", "eval"]
    assert "--resume" not in commands[2]
    rooms = {path.name for path in next(tmp_path.glob("depth_*/calibration_0")).iterdir()}
    tested = (tmp_path / "scenes" / "test.txt").read_text(encoding="utf-8")
    assert len(rooms) == 3
    assert not any(name in tested for name in rooms)


def test_an_interrupted_training_goes_on(tmp_path: Path, commands: list[list[str]]) -> None:
    lab = run_depth.DepthLab(tmp_path, tmp_path / "depth.json")
    (lab.runs / "dpt_dense_0.finetune-checkpoint.safetensors").touch()
    lab.measure("dpt", "dense", 0)
    assert [command[0] for command in commands] == ["finetune", "eval"]
    assert "--resume" in commands[0]


def test_what_other_settings_made_is_not_taken_for_what_these_make(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_depth.DepthLab(tmp_path, tmp_path / "depth.json")
    before.measure("dpt", "dense", 0)
    monkeypatch.setattr(run_depth, "SETTINGS", {**run_depth.SETTINGS, "training": "--epochs 9"})
    with pytest.raises(SystemExit, match="was measured with other settings"):
        run_depth.DepthLab(tmp_path, tmp_path / "depth.json")
    assert run_depth.DepthLab(tmp_path, tmp_path / "other.json").runs != before.runs
