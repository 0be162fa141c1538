"""Help and recipes, which need no torch, the demo, and commands that can be typed as they stand."""

import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sklearn.datasets import load_digits

from tests.cli.conftest import TRAIN, Tosa, commands
from tests.processes import run_program
from tosa_cli import load
from tosa_cli.cli import demo
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import images_to_read
from tosa_cli.measure.selectors import measure_selectors
from tosa_cli.recipe import Recipe, list_recipes
from tosa_cli.train.config import DistillConfig


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
