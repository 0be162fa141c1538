"""`tosa recipes`."""

from pathlib import Path

import yaml

from tests.cli.conftest import Tosa
from tosa_cli.recipe import recipes_folder

MINE = "name: paper\ndescription: Mine.\nconvert:\n  source: dense\n  layers: [2, 4]\n"


def test_a_recipe_of_ones_own_is_printed_and_not_the_packages_of_that_name(work: Path, tosa: Tosa) -> None:
    (work / "mine.yaml").write_text(MINE)
    assert tosa("recipes ./mine.yaml").out == MINE
    (work / "other.yaml").write_text(MINE.replace("name: paper\n", ""))
    assert tosa("recipes other.yaml").out == MINE.replace("name: paper\n", "")
    assert tosa("recipes paper").out == (recipes_folder() / "paper.yaml").read_text()


def test_a_recipe_is_json_where_that_is_asked_for(tosa: Tosa) -> None:
    printed = tosa("recipes paper --json").json
    written = yaml.safe_load((recipes_folder() / "paper.yaml").read_text())
    assert printed["name"] == "paper" and printed["sections"]["convert"] == written["convert"]
    assert [one["name"] for one in tosa("recipes --json").json] == sorted(p.stem for p in recipes_folder().iterdir())


def test_the_list_names_a_command_that_runs(tosa: Tosa) -> None:
    (step,) = [line for line in tosa("recipes").err.splitlines() if line.startswith("Next: tosa ")]
    done = tosa(step.removeprefix("Next: tosa "))
    assert done.code == 0 and "command: |" in done.out


def test_a_recipe_that_is_not_there_is_told(tosa: Tosa) -> None:
    for name in ("nope", "./nope.yaml"):
        done = tosa(f"recipes {name}")
        assert done.code == 2 and f"'{name}'" in done.err
