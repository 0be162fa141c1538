"""`tosa finetune --objective features`: no labels, the best by held-out images, the start included."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.conftest import Tosa
from tests.sentences import fragments
from tosa_cli import load
from tosa_cli.train.config import OBJECTIVE_DEFAULTS

FEATURES = "finetune --objective features -b 8 -j 0 --device cpu"


@pytest.fixture
def mild(work: Path, tosa: Tosa) -> Path:
    """The model folder `mild`, which is close to its source already."""
    assert tosa("convert dense --layers 2,4 --keep-rate 0.8 --selector previous -o mild").code == 0
    return work / "mild"


def test_unlabelled_photos_bring_the_tokens_closer_to_the_dense_models(mild: Path, tosa: Tosa) -> None:
    before = tosa("eval mild --data-dir photos -j 0 --task features --json").json
    done = tosa(f"{FEATURES} mild --data-dir photos --epochs 8 --lr 1e-3 --eval-every 4 --val-dir digits/train")
    assert done.code == 0, done.err
    assert (
        fragments.PATCH_COSINE in done.out
        and fragments.CLASS_COSINE in done.out
        and "before" in done.out
        and "after" in done.out
    )
    assert re.search(r" step \d", done.err) and fragments.NEXT_TOSA_EVAL_MILD_DATA in done.err
    after = tosa("eval mild --data-dir photos -j 0 --task features --json").json
    assert after["patch_cosine"] > before["patch_cosine"] and after["class_cosine"] > before["class_cosine"]
    provenance = load("mild").provenance
    results, settings = provenance.results["finetune"], provenance.steps["finetune"]
    assert provenance.stage == "finetuned" and results["samples"] == 40
    assert results["patch_cosine_after"] > results["patch_cosine_before"] and results["best_step"] > 0
    assert settings["objective"] == "features" and settings["eval_every"] == 4
    # 24 photos in batches of 8, for 8 epochs: 24 steps, measured at the start and after every fourth.
    assert results["measurements"] == 7 and " 7 " in done.err
    said = "The weights are the best of 7 measurements on these same images, the start included: on others"
    assert said in Path("mild/README.md").read_text()
    assert settings["weight_decay"] == OBJECTIVE_DEFAULTS["features"]["weight_decay"]


def test_the_report_has_every_measurement_and_the_best_of_them(mild: Path, tosa: Tosa) -> None:
    report = tosa(f"{FEATURES} mild --data-dir photos --epochs 2 --eval-every 1 --json").json
    steps = [row["step"] for row in report["history"]]
    assert steps == list(range(len(steps))) and report["updates"] == steps[-1]
    held_out = report["held_out"]
    best = max(report["history"], key=lambda row: row["patch_cosine"] + row["class_cosine"])
    assert best["step"] == held_out["best_step"] and best["patch_cosine"] == held_out["patch_cosine_after"]
    assert report["objective"] == "features"


def test_where_no_step_is_better_the_weights_written_are_those_before(mild: Path, tosa: Tosa) -> None:
    before = load_file(mild / "model.safetensors")
    done = tosa(f"{FEATURES} mild --data-dir photos --epochs 1 --lr 1 --sched none --warmup-epochs 0 -o same")
    assert done.code == 0, done.err
    assert fragments.NO_STEP_WAS_BETTER_THAN in done.err and fragments.EXACTLY_THOSE_BEFORE in done.err
    after = load_file("same/model.safetensors")
    assert set(before) == set(after) and all(before[name].equal(after[name]) for name in before)
    assert load("same").provenance.results["finetune"]["best_step"] == 0


def test_a_model_that_was_finetuned_learns_from_its_source(mild: Path, tosa: Tosa) -> None:
    assert tosa(f"{FEATURES} mild --data-dir photos --epochs 4 --lr 1e-3").code == 0
    first = load("mild").provenance.results["finetune"]
    again = tosa(f"{FEATURES} mild --data-dir photos --epochs 1 --json").json["held_out"]
    assert again["patch_cosine_before"] == pytest.approx(first["patch_cosine_after"], abs=1e-5)
    shutil.rmtree("dense")
    done = tosa(f"{FEATURES} mild --data-dir photos --epochs 1")
    source = Path("dense").absolute()
    assert done.code == 2 and f" {source}, " in done.err
    assert "--compare" not in done.err


def test_time_may_be_limited(mild: Path, tosa: Tosa) -> None:
    report = tosa(f"{FEATURES} mild --data-dir photos --epochs 1000 --max-minutes 0.0001 --json").json
    assert report["updates"] == 1 and [row["step"] for row in report["history"]] == [0, 1]


def test_held_out_images_are_limited_as_they_are_measured_often(
    mild: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tosa_cli.tasks.features.Features.max_held_out", 5)
    done = tosa(f"{FEATURES} mild --data-dir photos --val-dir digits/validation --epochs 1 --json")
    assert done.json["held_out"]["samples"] == 5


def test_labels_keep_the_best_too_where_they_are_measured_on_the_way(converted: Path, tosa: Tosa) -> None:
    ruin = "--lr 5 --opt sgd --sched none --clip-grad 100 --epochs 1 -b 8 -j 0 --device cpu"
    before = load_file(converted / "model.safetensors")
    done = tosa(f"finetune --data-dir digits --val-split validation {ruin} --eval-every 2 -o kept --json")
    assert done.code == 0, done.err
    best = max(done.json["history"], key=lambda row: row["top1"])
    assert done.json["held_out"]["top1_after"] == best["top1"]
    if best["step"] == 0:
        after = load_file("kept/model.safetensors")
        assert all(before[name].equal(after[name]) for name in before)
    report = done.json
    assert report["images_per_second"] * (report["seconds"] - report["measuring_seconds"]) == pytest.approx(40)
    done = tosa("finetune --data-dir digits -b 8 -j 0 --device cpu --epochs 1 -o last")
    assert re.search(r"4 steps in \S+ s, \S+ s of it measuring; \S+ images/s while training", done.err)
    done = tosa("finetune --data-dir digits -b 8 -j 0 --device cpu --epochs 1 -o last --overwrite --json")
    assert "best_step" not in done.json["held_out"] and [row["step"] for row in done.json["history"]] == [0, 4]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--mixup 0.8", "--mixup (0.8) needs labels, and the objective features reads none: leave it out."),
        ("--smoothing 0.1", "--smoothing (0.1) needs labels"),
        ("--reprob 0.2", "--reprob (0.2) does not go with the objective features"),
        ("--feature-layers 4", "--feature-layers must be below 4"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_sentence(
    mild: Path, tosa: Tosa, options: str, sentence: str
) -> None:
    done = tosa(f"{FEATURES} mild --data-dir photos {options}")
    assert done.code == 2 and sentence in done.err and "Traceback" not in done.err


def test_the_help_names_the_defaults_of_both_objectives(tosa: Tosa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    out = " ".join(tosa("finetune --help").out.replace("│", " ").split())
    labels, features = (OBJECTIVE_DEFAULTS[name] for name in ("labels", "features"))
    for name in ("epochs", "batch_size", "lr", "warmup_epochs", "min_lr", "weight_decay", "model_ema_decay"):
        option = out.split(f"--{name.replace('_', '-')} ")[1].split(" --")[0]
        assert f"(features: {features[name]})" in option and f"[default: {labels[name]}]" in option, name


def test_a_recipe_may_choose_the_objective(mild: Path, tosa: Tosa) -> None:
    Path("mine.yaml").write_text("name: mine\nfinetune: {objective: features, epochs: 1, batch_size: 8, workers: 0}\n")
    done = tosa("finetune mild --recipe mine.yaml --data-dir photos --json")
    assert done.code == 0 and done.json["objective"] == "features"
    assert json.loads(Path("mild/config.json").read_text())["tosa"]["steps"]["finetune"]["epochs"] == 1
