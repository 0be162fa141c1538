"""What commands write: rates and settings that are recorded, stages in place or in another folder."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.cli.conftest import TRAIN, Tosa
from tests.cli.mistakes import contents
from tosa_cli import load
from tosa_cli.recipe import load_recipe


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
