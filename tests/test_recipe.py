"""Recipes are data, read strictly."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sentences import fragments
from tosa_cli.config import CALIBRATED, TosaConfig
from tosa_cli.errors import ConfigError
from tosa_cli.recipe import SECTIONS, command_lines, dump_recipe, load_recipe
from tosa_cli.train.config import DistillConfig, FinetuneConfig


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_recipe_has_a_header_and_one_section_a_command(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, "description: Quick.\nconvert:\n  layers: [2, 4]\n  keep_rate: 0.5\ndistill:\n  lr: 0.01\n")
    )
    assert recipe.name == "mine" and recipe.description == "Quick." and recipe.expected == ""
    assert recipe.sections == {"convert": {"layers": [2, 4], "keep_rate": 0.5}, "distill": {"lr": 0.01}, "finetune": {}}


def test_the_preset_calibrated_is_the_method_that_rates_are_found_for_without_another() -> None:
    settings = load_recipe("calibrated").sections["convert"]
    assert {name: settings[name] for name in ("selector", "bypass", "span")} == {
        name: getattr(CALIBRATED, name) for name in ("selector", "bypass", "span")
    }
    assert set(settings) == {"selector", "bypass", "span", "layers", "target_reduction"}


def test_a_name_in_the_header_wins_over_that_of_the_file(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "name: paper\n")).name == "paper"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("convrt:\n  layers: [2]\n", "Unknown recipe section 'convrt'. Did you mean 'convert'?"),
        (
            "convert:\n  layer: [2]\n",
            "Unknown setting in the section convert of mine.yaml: 'layer'. Did you mean 'layers'?",
        ),
        (
            "distill:\n  learning_rate: 1\n",
            "Unknown setting in the section distill of mine.yaml: 'learning_rate'.",
        ),
        ("distil-2: {}", "Unknown recipe section 'distil-2'"),
        ("distill-two: {}", "Unknown recipe section 'distill-two'"),
        ("distill-2: {smoothing: 0.1}", "Unknown setting in the section distill-2 of mine.yaml: 'smoothing'"),
        ("convert: 3\n", "The section convert of the recipe"),
        ("convert:\n- layers\n", "The section convert of the recipe"),
        ("- convert\n", "should hold sections such as convert: and distill:"),
        ("", "should hold sections such as convert: and distill:"),
        ("convert: [\n", "cannot be read"),
        ("convert: !!python/object/apply:os.getcwd []\n", "cannot be read"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as failure:
        load_recipe(write(tmp_path, text))
    message = str(failure.value)
    assert sentence in message and "\n" not in message


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError, match=fragments.CANNOT_BE_READ):
        load_recipe(str(path))


@pytest.mark.parametrize("name", ["no_such_recipe", "no/such.yaml"])
def test_a_missing_recipe_is_named_with_what_there_is(name: str) -> None:
    with pytest.raises(ConfigError, match=f"There is no recipe '{name}'. Known: .*or give the path of a .yaml file"):
        load_recipe(name)


def test_what_is_dumped_loads_again_and_names_the_versions(tmp_path: Path) -> None:
    sections: dict[str, dict[str, Any]] = {
        "convert": {"source": "deit_tiny", "layers": [2, 4], "keep_rate": [0.5, 0.25], "query_rows": "all"},
        "distill": {"lr": 0.01, "max_samples": None},
    }
    text = dump_recipe(sections, {"tosa-cli": "0.1.0"})
    assert load_recipe(write(tmp_path, text)).sections == {**sections, "finetune": {}}
    assert yaml.safe_load(text)["versions"] == {"tosa-cli": "0.1.0"}


def test_a_command_that_was_run_again_has_a_section_of_its_own(tmp_path: Path) -> None:
    steps = {"convert": {"layers": [2]}, "finetune": {"lr": 0.1}, "distill": {"lr": 0.2}, "finetune-2": {"lr": 0.3}}
    sections = load_recipe(write(tmp_path, dump_recipe(steps, {}))).sections
    assert list(sections) == list(steps) and sections == steps
    assert [line.split()[1:] for line in command_lines(steps)][1:] == [
        ["finetune", "--lr", "0.1"],
        ["distill", "--lr", "0.2"],
        ["finetune", "--lr", "0.3"],
    ]


def test_every_setting_of_a_conversion_can_stand_in_a_recipe() -> None:
    assert {"source", "layers", "keep_rate", "selector", "query_rows", "target_reduction"} <= set(SECTIONS["convert"])


def test_command_lines_say_what_is_not_the_default() -> None:
    config = TosaConfig(layers=(2, 4), keep_rate=(0.8, 0.5), bypass="linear").to_dict()
    sections = {
        "convert": {"source": "my vit", **config, "img_size": [224, 320], "pretrained": False},
        "distill": DistillConfig(data_dir="photos", epochs=5, strict=True).to_dict(),
        "finetune": FinetuneConfig(data_dir="photos", objective="features", model_ema=False).recorded(),
    }
    assert command_lines(sections) == [
        "tosa convert 'my vit' --layers 2,4 --keep-rate 0.8,0.5 --bypass linear --img-size 224,320 --no-pretrained",
        "tosa distill --data-dir photos --epochs 5 --strict",
        "tosa finetune --data-dir photos --no-model-ema --objective features",
    ]


def test_command_lines_of_settings_at_their_default_are_short() -> None:
    config = TosaConfig(layers=(2,)).to_dict()
    sections = {"convert": {"source": "deit_tiny", **config}, "finetune": FinetuneConfig(data_dir="a").recorded()}
    assert command_lines(sections) == ["tosa convert deit_tiny --layers 2", "tosa finetune --data-dir a"]
