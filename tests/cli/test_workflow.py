"""The commands, one after another, as in the usage: stdout is data, stderr is talk."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from timm.models import save_for_hf

from tests.cli.conftest import Tosa, commands, row_of, write_dense
from tests.model.tiny_models import make_vit
from tests.processes import run_program
from tests.sentences import fragments
from tosa_cli import load
from tosa_cli.cli import demo
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import images_to_read
from tosa_cli.measure.selectors import measure_selectors
from tosa_cli.recipe import Recipe, list_recipes, load_recipe
from tosa_cli.tasks.classification import Accuracy
from tosa_cli.train.config import DistillConfig

TRAIN = "-b 8 -j 0 --epochs 1 --device cpu"

FLOPS_KEYS = {
    *("model", "img_size", "gmacs", "dense_gmacs", "reduction", "selector_gmacs", "bypass_gmacs", "params", "layers")
}
LAYER_KEYS = {"layer", "kind", "tokens", "kept", "macs", "selector_macs", "bypass_macs"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def test_a_dry_run_writes_nothing(work: Path, tosa: Tosa) -> None:
    before = contents(work)
    done = tosa("convert dense --layers 2,4 --dry-run")
    assert done.code == 0 and "GMACs" in done.out
    assert contents(work) == before


def test_each_layer_may_have_its_own_keep_rate(work: Path, tosa: Tosa) -> None:
    done = tosa("convert dense --layers 2,4 --keep-rate 0.9,0.25 --json")
    assert [layer["kept"] for layer in done.json["layers"] if layer["kind"] == "tosa"] == [15, 4]
    assert load("dense-tosa").keep_rates == {2: 0.9, 4: 0.25}


@pytest.mark.parametrize("target", [0.1, 0.258])
def test_a_target_reduction_finds_the_keep_rate(work: Path, tosa: Tosa, target: float) -> None:
    done = tosa(f"convert dense --layers 2,4 --img-size 96 --target-reduction {target} --json")
    assert done.code == 0
    assert done.json["reduction"] == pytest.approx(target, abs=0.005)


def test_a_recipe_gives_settings_and_the_command_line_goes_before_it(work: Path, tosa: Tosa) -> None:
    recipe: dict[str, Any] = {
        "name": "mine",
        "convert": {"source": "dense", "layers": [2, 4], "keep_rate": 0.5, "query_rows": "all"},
        "distill": {"epochs": 3, "lr": "1e-3", "batch_size": 8, "workers": 0},
    }
    (work / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert tosa("convert --recipe mine.yaml --keep-rate 0.25 -o a").code == 0
    config = load("a").config
    assert (config.layers, config.keep_rate, config.query_rows) == ((2, 4), 0.25, "all")
    assert tosa("convert --recipe mine.yaml --target-reduction 0.1 -o b").code == 0
    done = tosa("distill a --recipe mine.yaml --data-dir photos --epochs 1 --json")
    assert done.code == 0 and done.json["updates"] == 2
    settings = load("a").provenance.steps["distill"]
    assert settings["lr"] == 1e-3 and settings["epochs"] == 1 and "opt" not in settings
    # What is saved beside the weights is a recipe itself.
    assert load_recipe("a/recipe.yaml").sections["distill"]["epochs"] == 1
    assert tosa("convert --recipe a/recipe.yaml -o again").code == 0


def test_what_convert_was_told_about_its_source_is_recorded(work: Path, tosa: Tosa) -> None:
    assert tosa("convert test_vit --no-pretrained --num-classes 10 --layers 2 --img-size 96").code == 0
    step = load("test_vit-tosa").provenance.steps["convert"]
    assert (step["pretrained"], step["num_classes"], step["img_size"]) == (False, 10, 96)


def test_recipes_are_listed_and_printed(tosa: Tosa) -> None:
    done = tosa("recipes")
    assert done.code == 0 and "deit_tiny_imagenet_paper" in done.out and "dinov2_small_photos" in done.out
    assert yaml.safe_load(tosa("recipes deit_tiny_imagenet_paper").out)["convert"]["keep_rate"] == 0.8
    assert {recipe["name"] for recipe in tosa("recipes --json").json} >= {"dinov2_small_photos"}


def test_without_output_a_model_is_brought_to_its_next_stage_in_place(converted: Path, tosa: Tosa) -> None:
    (converted / "notes.txt").write_text("mine")
    before = load_file(converted / "model.safetensors")
    assert tosa(f"distill dense-tosa --data-dir photos {TRAIN}").code == 0
    after = load_file(converted / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all(name.startswith("selectors.") for name in changed)
    assert (converted / "notes.txt").read_text() == "mine"


def test_with_output_the_model_stays_as_it_was(converted: Path, tosa: Tosa) -> None:
    before = contents(converted)
    assert tosa(f"distill dense-tosa --data-dir photos {TRAIN} -o distilled").code == 0
    assert contents(converted) == before and load("distilled").provenance.stage == "distilled"


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


def test_help_is_quick_as_it_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys\nfrom tosa_cli.cli.app import app\n"
        "for command in sys.argv[1:]:\n"
        "    try:\n        app(command.split())\n    except SystemExit:\n        pass\n"
        "    print(command, {'torch', 'timm', 'accelerate', 'sklearn', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    commands = ["--help", "distill --help", "finetune --help", "--version", "recipes"]
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if line.endswith(" set()")]
    assert told == [f"{command} set()" for command in commands]


def test_settings_that_do_not_go_together_are_refused_before_torch_and_timm_are_imported() -> None:
    auto, groups = "--layers auto --target-reduction 0.2", "--selector ward --bypass mean --layers auto"
    commands = [
        "convert deit_tiny --preset calibrated",
        "convert deit_tiny --preset matched",
        f"convert deit_tiny {auto} --selector similarity",
        f"convert deit_tiny {groups} --min-cosine 0.99",
        f"convert deit_tiny {groups} --max-drop 1",
        "convert whole --whole --preset calibrated",
        "convert whole --whole --preset calibrated --data-dir photos --img-size 64",
        "convert whole --whole --preset calibrated --dataset hfds/photos",
    ]
    code = (
        "import sys\nfrom tosa_cli.cli.app import app\nfrom tosa_cli.errors import ConfigError\n"
        "for command in sys.argv[1:]:\n"
        "    try:\n        app(command.split())\n"
        "    except ConfigError:\n        print(command, {'torch', 'timm'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{command} set()" for command in commands], done.stderr


def test_the_help_of_a_setting_tells_what_it_does_and_its_default(tosa: Tosa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = " ".join(tosa("distill --help").out.replace("│", " ").split())
    assert f"Passes over the data. [default: {DistillConfig().epochs}]" in out and "-logs" in out
    assert f"Learning rate at its peak. [default: {DistillConfig().lr}]" in out


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_the_commands_of_every_recipe_are_commands(recipe: Recipe) -> None:
    """Each line parses; `--help` at its end keeps it from running."""
    convert = recipe.sections["convert"]
    ConvertConfig.from_dict({"source": "deit_tiny", "data_dir": "photos", **convert})
    lines = recipe.command.splitlines()
    assert lines and lines[0].startswith("tosa convert")
    for line in lines:
        words = line.split()
        words = words[words.index("tosa") + 1 :] if "tosa" in words else words[words.index("tosa_cli.cli.app") + 1 :]
        with pytest.raises(SystemExit) as exit:
            commands()([*words, "--help"])
        assert not exit.value.code


def test_the_demo_runs_through_and_each_step_does_its_work(
    tosa: Tosa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "DENSE_EPOCHS", 2)
    digits = load_digits()
    few = {"images": digits.images[:150], "target": digits.target[:150]}
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: SimpleNamespace(**few))
    done = tosa("demo -o", "a demo")
    assert done.code == 0, done.err
    commands = [shlex.split(line) for line in done.err.splitlines() if line.startswith("$ tosa ")]
    assert [words[2] for words in commands] == ["convert", "distill", "finetune", "eval", "flops"]
    assert all(words[3].startswith("a demo/") for words in commands)
    for stage in ("dense", "converted", "distilled", "finetuned"):
        assert stage in done.out
    assert load("a demo/finetuned").provenance.stage == "finetuned" and Path("a demo/finetuned/README.md").is_file()
    # One test set for all figures of the table: the same that anybody measures on it afterwards.
    table = done.out.partition("The four stages")[2].replace("│", " ").splitlines()
    for stage in ("converted", "distilled", "finetuned"):
        model = load(f"a demo/{stage}")
        opened = open_dataset("a demo/digits", split="validation")
        batches = (batch.images for batch in images_to_read(opened, model, batch_size=64).batches(strict=True))
        layers = measure_selectors(model, batches).layers
        (row,) = [line.split() for line in table if stage in line]
        assert row[3:] == [f"{sum(q.kl for q in layers) / 3:.2f}", f"{sum(q.found for q in layers) / 3:.1%}"]
    again = tosa("demo -o", "a demo")
    assert again.code == 2 and "a demo " in again.err


def test_the_demo_names_the_package_that_brings_its_digits(
    tosa: Tosa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    done = tosa("demo")
    assert done.code == 2 and "'tosa-cli[demo]'" in done.err.splitlines()[-1]


def test_measuring_and_exporting_need_neither_scikit_learn_nor_scipy() -> None:
    code = (
        "import sys; sys.modules.update(sklearn=None, scipy=None);"
        "import tosa_cli.export.photos, tosa_cli.tasks.segmentation, tosa_cli.data.pairs, tosa_cli.cli.demo"
    )
    run_program(code)


def test_a_model_is_trained_in_its_own_folder(converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(converted)
    for command in ("distill . --data-dir ../photos", "finetune . --data-dir ../digits"):
        done = tosa(f"{command} {TRAIN}")
        assert done.code == 0, done.err
    assert tosa("eval . --data-dir ../digits -j 0 --device cpu --update-card").code == 0
    assert Path.cwd() == converted and load(".").provenance.stage == "finetuned"
    assert sorted(path.name for path in converted.parent.iterdir() if "dense-tosa" in path.name) == ["dense-tosa"]


def test_a_link_to_a_model_stays_a_link(converted: Path, tosa: Tosa) -> None:
    Path("best").symlink_to("dense-tosa")
    assert tosa(f"distill best --data-dir photos {TRAIN}").code == 0
    assert Path("best").is_symlink() and load(converted).provenance.stage == "distilled"


def test_the_next_command_can_be_typed_as_it_stands(converted: Path, tosa: Tosa) -> None:
    folder = "my first model"
    done = tosa(f"distill --data-dir photos {TRAIN} -o", folder)
    assert f"Next: tosa eval '{folder}' --data-dir IMAGES --compare" in done.err, done.err
