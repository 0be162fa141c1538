"""The commands, one after another, as in the usage: stdout is data, stderr is talk."""

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from tests.cli.conftest import TRAIN, Tosa, row_of, write_dense
from tests.model.tiny_models import make_vit
from tests.processes import run_program
from tests.sentences import fragments
from tosa_cli import load
from tosa_cli.tasks.classification import Accuracy

FLOPS_KEYS = {
    *("model", "img_size", "gmacs", "dense_gmacs", "reduction", "selector_gmacs", "bypass_gmacs", "params", "layers")
}


LAYER_KEYS = {"layer", "kind", "tokens", "kept", "macs", "selector_macs", "bypass_macs"}


# ---------------------------------------------------------------------- commands


def test_convert_distill_finetune_eval_and_flops_without_naming_the_model(work: Path, tosa: Tosa) -> None:
    done = tosa("convert dense --layers 2,4 --keep-rate 0.5")
    assert done.code == 0 and fragments.WROTE_DENSE_TOSA in done.err and fragments.NEXT_TOSA_DISTILL in done.err
    assert "GMACs" in done.out
    for command, stage in (
        (f"distill --data-dir photos {TRAIN}", "distilled"),
        (f"finetune --data-dir digits {TRAIN} --val-split validation", "finetuned"),
    ):
        done = tosa(command)
        assert done.code == 0, done.err
        assert " dense-tosa, " in done.err and fragments.NEXT_TOSA_EVAL in done.err
        assert load("dense-tosa").provenance.stage == stage
    done = tosa("eval --data-dir digits -j 0 -b 10")
    assert done.code == 0 and "33 images of digits" in done.out
    done = tosa("flops")
    assert done.code == 0 and fragments.WORKING_ON_DENSE_TOSA in done.err and fragments.WORKING_ON not in done.out
    assert sorted(path.name for path in work.iterdir()) == [".tosa.json", "dense", "dense-tosa", "digits", "photos"]


def test_json_is_all_that_is_on_stdout(converted: Path, tosa: Tosa) -> None:
    for command in (
        "convert dense --layers 2 -o other --json",
        f"distill --data-dir photos {TRAIN} --json",
        f"finetune --data-dir digits {TRAIN} --json",
        "eval --data-dir digits -j 0 --json",
        "eval --data-dir photos -j 0 --task features --json",
        "flops --json",
        "bench -b 2 --rounds 1 --json",
        "inspect dense --json",
        "recipes --json",
        "push me/model --dry-run --json",
    ):
        done = tosa(command)
        assert done.code == 0, done.err
        json.loads(done.out)
        assert "━" not in done.err  # no bar without a terminal


def test_flops_json_has_the_keys_that_are_promised(converted: Path, tosa: Tosa) -> None:
    report = tosa("flops --json").json
    assert set(report) >= FLOPS_KEYS
    assert all(set(layer) >= LAYER_KEYS for layer in report["layers"])
    assert [layer["kind"] for layer in report["layers"]] == ["feeding", "tosa"] * 2
    assert report["reduction"] == pytest.approx(1 - report["gmacs"] / report["dense_gmacs"])
    dense = tosa("flops dense --json").json
    assert dense["gmacs"] == report["dense_gmacs"] and dense["reduction"] == 0
    assert tosa("flops --img-size 64 --json").json["img_size"] == [64, 64]


def test_eval_sets_the_dense_model_beside_it_on_the_same_images(converted: Path, tosa: Tosa) -> None:
    report = tosa("eval --data-dir digits -j 0 -b 10 --compare --json").json
    assert {"task", "samples", "top1", "top5", "images_per_second", "gmacs", "dense_gmacs", "reduction"} <= set(report)
    assert report["task"] == "classification" and report["samples"] == 33 and report["skipped"] == []
    assert {"top1", "top5", "images_per_second"} <= set(report["dense"])
    keep_all = "convert dense --layers 2,4 --keep-rate 1.0 -o same"
    assert tosa(keep_all).code == 0
    report = tosa("eval same --data-dir digits -j 0 --compare --json").json
    assert report["top1"] == report["dense"]["top1"] and report["top5"] == report["dense"]["top5"]


def test_a_finetuned_model_is_compared_with_the_source_it_came_from(converted: Path, tosa: Tosa) -> None:
    before = tosa("eval --data-dir digits -j 0 --compare --json").json["dense"]["top1"]
    assert tosa(f"finetune --data-dir digits {TRAIN} --lr 2e-3 --epochs 15 --smoothing 0 --hflip 0").code == 0
    report = tosa("eval --data-dir digits -j 0 --compare --json").json
    assert report["dense"]["top1"] == before and report["top1"] > before


def test_eval_measures_a_model_without_a_head_by_its_features(work: Path, tosa: Tosa) -> None:
    assert tosa("convert dense --layers 2,4 --num-classes 0 -o headless").code == 0
    done = tosa("eval headless --data-dir photos -j 0 -b 7 --json")
    report = done.json
    assert report["task"] == "features" and report["samples"] == 24
    assert 0 < report["patch_cosine"] < 1 and 0 < report["class_cosine"] < 1
    assert "images_per_second" in report["dense"]
    assert fragments.PATCH_COSINE in tosa("eval headless --data-dir photos -j 0").out
    done = tosa("eval headless --data-dir digits -j 0 --task classification")
    assert done.code == 2 and "--num-classes" in done.err


def test_what_a_model_has_no_token_for_is_not_shown_as_measured(work: Path, tosa: Tosa) -> None:
    source = make_vit("test_vit", img_size=32, patch_size=8, num_classes=0, class_token=False, global_pool="avg")
    save_for_hf(source, "patches", safe_serialization=True)
    assert tosa("convert patches --layers 2,4 --selector random").code == 0
    out = tosa("eval --data-dir photos -j 0").out
    assert row_of("dense", out)[1:3] == ["1.0000", "-"]
    assert row_of("tosa", out)[1].startswith("0.") and row_of("tosa", out)[2] == "-"


def test_percents_have_two_decimals_however_few_they_are(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"tosa": Accuracy(100 / 103, 500 / 103)}
    monkeypatch.setattr("tosa_cli.tasks.classification.AccuracyMeasure.figures", lambda *_: few)
    assert row_of("tosa", tosa("eval --data-dir digits -j 0").out)[1:3] == ["0.97", "4.85"]


def test_eval_writes_its_result_into_the_card(converted: Path, tosa: Tosa) -> None:
    weights = (converted / "model.safetensors").read_bytes()
    done = tosa("eval --data-dir digits -j 0 --compare --update-card --json")
    top1 = done.json["top1"]
    assert done.code == 0 and "README.md" in done.err
    config = json.loads((converted / "config.json").read_text())
    assert config["tosa"]["results"]["eval"]["top1"] == top1
    assert (converted / "model.safetensors").read_bytes() == weights


def test_bench_json_has_the_keys_that_are_promised(converted: Path, tosa: Tosa) -> None:
    done = tosa("bench -b 2 --rounds 1 --device cpu --json")
    report = done.json
    assert {"device", "dtype", "batch_size", "img_size", "torch", "compile", "speedup", "ideal_speedup"} <= set(report)
    for model in ("dense", "tosa"):
        assert {"median_s", "min_s", "max_s", "peak_memory_mb"} <= set(report[model])
        assert report[model]["peak_memory_mb"] > 0
    assert report["batch_size"] == 2 and report["img_size"] == [32, 32]


def test_bench_says_nothing_but_what_it_measures(converted: Path) -> None:
    code = (
        "import runpy, sys\nsys.argv = 'tosa bench -b 2 --rounds 1 --device cpu'.split()\n"
        "try:\n    runpy.run_module('tosa_cli.cli.app', run_name='__main__')\n"
        "except SystemExit as exit:\n    assert not exit.code"
    )
    done = run_program(code)
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and lines[1].startswith("Timing 1 turn of") and lines[2].startswith("cpu")


def test_inspect_tells_what_each_setting_would_save(work: Path, tosa: Tosa) -> None:
    write_dense(work / "dense", depth=6)
    report = tosa("inspect dense --json").json
    assert report["convertible"] and report["depth"] == 6 and report["num_prefix_tokens"] == 1
    saved = [s["reduction"] for s in report["savings"] if s["layers"] == [2, 4] and s["selection"] == "shared"]
    assert len(saved) == 6 and saved == sorted(saved)
    done = tosa("inspect dense")
    assert (
        done.code == 0
        and fragments.CAN_BE_CONVERTED_6_LAYERS in done.out
        and fragments.NEXT_TOSA_CONVERT_DENSE in done.err
    )


# ---------------------------------------------------------------------- told


def test_the_summary_names_kl_and_share_found_by_layer(converted: Path, tosa: Tosa) -> None:
    report = tosa(f"distill --data-dir photos {TRAIN} --json").json
    layers = report["held_out"]["layers"]
    assert [row["layer"] for row in layers] == [2, 4] and report["held_out"]["samples"] == 2
    for row in layers:
        assert row["kl_after"] >= 0 and row["kl_before"] > 0 and 0 <= row["found"] <= 1
    out = tosa(f"distill --data-dir photos {TRAIN}").out
    assert "KL before" in out and "KL after" in out and "by chance" in out


def test_selectors_that_training_made_worse_are_told(converted: Path, tosa: Tosa) -> None:
    command = "distill --data-dir photos -b 8 -j 0 --device cpu --epochs 1"
    fine, worse = tosa(f"{command} -o fine"), tosa(f"{command} --lr 1e9 -o worse")
    assert fine.code == 0
    assert fragments.THE_SELECTORS_ARE_WORSE_THAN not in fine.err + Path("fine/README.md").read_text()
    for told in (worse.err, Path("worse/README.md").read_text()):
        assert fragments.THE_SELECTORS_ARE_WORSE_THAN in told and fragments.WITH_A_SMALLER_LR in told


def test_trained_selectors_that_tell_no_token_from_another_are_told(converted: Path, tosa: Tosa) -> None:
    state = load_file(converted / "model.safetensors")
    for layer in (2, 4):
        state[f"selectors.{layer}.conv1.bias"].fill_(-1e3)
    save_file(state, converted / "model.safetensors")
    done = tosa(f"distill --data-dir photos {TRAIN}")
    for told in (done.err, (converted / "README.md").read_text()):
        assert fragments.IN_LAYERS_2_AND_4 in told and fragments.WITH_A_SMALLER_LR in told


def test_timms_figure_of_a_small_model_is_not_below_the_dense_one_for_want_of_decimals(
    converted: Path, tosa: Tosa
) -> None:
    out = tosa("flops").out
    dense, timms = re.findall(r", dense ([\d.]+):", out), re.findall(r"is ([\d.]+) GMACs\.", out)
    assert float(timms[0]) >= float(dense[0]) > 0


def test_a_tracker_writes_beside_the_model(converted: Path, tosa: Tosa) -> None:
    pytest.importorskip("tensorboard")
    assert tosa(f"distill --data-dir photos {TRAIN} --log-with tensorboard").code == 0
    assert list(Path("dense-tosa-logs").rglob("events.out.tfevents.*"))
    assert not list(converted.rglob("events*"))
