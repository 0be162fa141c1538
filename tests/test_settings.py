"""A setting is declared once, and its check, its help and its option follow from that."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from tests.sentences import fragments
from tosa_cli.cli.options import with_settings
from tosa_cli.config import Method, TosaConfig
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.data.images import both_sides, read_img_size
from tosa_cli.errors import ConfigError
from tosa_cli.export.config import ExportConfig
from tosa_cli.measure.config import EvalConfig
from tosa_cli.methods import BYPASSES, SELECTORS
from tosa_cli.settings import CommandSettings, Setting, Settings
from tosa_cli.task import TaskConfig
from tosa_cli.train.config import DistillConfig, FinetuneConfig
from tosa_cli.train.predictor_config import PredictorConfig


@dataclass(frozen=True, kw_only=True)
class Walk(CommandSettings):
    """A walk."""

    steps: Annotated[int, Setting("How many steps.", flag="-n", ge=1)] = 10
    slope: Annotated[float | None, Setting("How steep.", gt=-1, lt=1)] = None
    pace: Annotated[Literal["slow", "fast"], Setting("How fast.")] = "slow"
    places: Annotated[tuple[str, ...], Setting("Where to.", expected="names with commas")] = ()
    shoes: Annotated[bool, Setting("With shoes on.")] = True


@dataclass(frozen=True, kw_only=True)
class LongWalk(Walk):
    """A long one."""

    goes_with = "long walks"
    steps: int = 1000
    rest: Annotated[int | Literal["never"], Setting("Rest after.", ge=1, expected="'never' or a number")] = "never"


@dataclass(frozen=True, kw_only=True)
class Stored(Settings):
    """What a file holds."""

    steps: Annotated[int, Setting("How many steps.", ge=1)] = 10
    slope: Annotated[float, Setting("How steep.")] = 0.0


def test_what_is_typed_may_be_text() -> None:
    walk = Walk.from_dict({"steps": "1e2", "slope": "5e-1", "places": "hill,wood"})
    assert (walk.steps, walk.slope, walk.places) == (100, 0.5, ("hill", "wood"))
    assert Walk.from_dict({"steps": 5.0, "places": ["hill"]}) == Walk(steps=5, places=("hill",))


@pytest.mark.parametrize("values", [{"steps": "5"}, {"steps": 5.0}, {"slope": "0.5"}, {"steps": True}], ids=str)
def test_what_a_file_holds_is_of_its_type_already(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^{next(iter(values))} must be "):
        Stored.from_dict(values)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf", True, None, [1.0], "steep"])
def test_what_is_no_finite_number_is_none(value: Any) -> None:
    for kind in (Stored, DistillConfig):
        name = "slope" if kind is Stored else "lr"
        with pytest.raises(ConfigError):
            kind.from_dict({name: value})


def test_a_derived_class_inherits_what_was_declared_and_may_name_another_default() -> None:
    assert (Walk().steps, LongWalk().steps) == (10, 1000)
    assert LongWalk.help_of("steps") == "How many steps." and LongWalk.default_of("steps") == 1000
    with pytest.raises(ConfigError, match=fragments.STEPS_MUST_BE_1_OR):
        LongWalk(steps=0)


def test_settings_are_frozen_and_copied_as_data_classes_are() -> None:
    walk = dataclasses.replace(Walk(), steps=3)
    assert walk == Walk(steps=3) and hash(walk) == hash(Walk(steps=3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        walk.steps = 4  # type: ignore[misc]
    with pytest.raises(ConfigError):
        dataclasses.replace(walk, steps=0)
    with pytest.raises(TypeError):
        Walk(speed=1)  # type: ignore[call-arg]


def test_a_command_has_an_option_for_each_setting_and_is_given_what_was_typed() -> None:
    app, seen = typer.Typer(rich_markup_mode="markdown"), []

    @app.command()
    @with_settings(Walk, LongWalk)
    def walk(settings: dict[str, Any], quiet: bool = False) -> None:
        seen.append((settings, quiet))

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        return " ".join(done.output.replace("│", " ").split())

    run("-n", "4", "--rest", "2", "--pace", "fast", "--no-shoes", "--quiet")
    run()
    assert seen == [({"steps": 4, "rest": "2", "pace": "fast", "shoes": False}, True), ({}, False)]
    assert LongWalk.from_dict(seen[0][0]) == LongWalk(steps=4, rest=2, pace="fast", shoes=False)
    text = run("--help")
    assert "--steps -n <int> [x>=1] How many steps (long walks: 1000). [default: 10]" in text
    assert "--slope <float> [-1<x<1] How steep." in text
    assert "--pace <slow|fast> How fast. [default: slow]" in text
    assert "--shoes --no-shoes <bool> With shoes on. [default: true]" in text
    assert "--rest <str> Rest after. [default: never]" in text


@pytest.mark.parametrize(
    "kind",
    [TosaConfig, ConvertConfig, DistillConfig, FinetuneConfig, PredictorConfig, EvalConfig, ExportConfig, TaskConfig],
)
def test_every_setting_says_what_it_does(kind: type[Settings]) -> None:
    assert kind.field_names() == tuple(kind.declarations())
    for name in kind.field_names():
        text = kind.help_of(name)
        assert len(text) > 10 and text.endswith("."), name


def test_the_help_names_every_selector_and_bypass() -> None:
    for name, table in (("selector", SELECTORS), ("bypass", BYPASSES)):
        assert Method.declarations()[name].choices == tuple(table)
        assert all(f"{choice}: " in Method.help_of(name) for choice in table)


def test_a_method_is_what_a_conversion_is_without_its_places() -> None:
    config = TosaConfig(layers=(1, 2), keep_rate=0.5, selector="similarity", bypass="nearest", span=2)
    assert config.method == Method(selector="similarity", bypass="nearest", span=2)
    assert config.method.at((1, 2), 0.5) == config
    assert config.at([3, 5], [0.2, 0.4]) == dataclasses.replace(config, layers=(3, 5), keep_rate=(0.2, 0.4))
    with pytest.raises(ConfigError, match="adjacent"):
        Method().at((2, 3), 0.5)


def test_a_conversion_is_read_from_what_people_type() -> None:
    config = ConvertConfig.from_dict(
        {"source": "deit_tiny", "layers": "2,4", "keep_rate": "0.9,0.8", "query_rows": "all", "img_size": "224x320"}
    )
    assert config.at(config.layers, config.keep_rate) == TosaConfig(  # type: ignore[arg-type]
        layers=(2, 4), keep_rate=(0.9, 0.8), query_rows="all"
    )
    assert config.img_size == (224, 320) and config.source_settings == {"img_size": [224, 320]}


def test_choosing_layers_needs_images_and_a_target() -> None:
    auto = {"source": "deit_tiny", "layers": "auto", "selector": "similarity"}
    with pytest.raises(ConfigError, match="--data-dir"):
        ConvertConfig.from_dict({**auto, "target_reduction": 0.25}).check_images()
    with pytest.raises(ConfigError, match="--target-reduction"):
        ConvertConfig.from_dict({**auto, "data_dir": "photos"})
    assert ConvertConfig.from_dict({**auto, "data_dir": "photos", "target_reduction": 0.25}).layers == "auto"


@pytest.mark.parametrize(
    ("value", "size"),
    [(224, 224), ("224", 224), ("224,320", (224, 320)), ("224x320", (224, 320)), ([224, 320], (224, 320)), ("", None)],
    ids=str,
)
def test_an_image_size_is_one_number_or_two(value: Any, size: Any) -> None:
    assert read_img_size(value) == size and read_img_size(None) is None


@pytest.mark.parametrize(
    "value", ["big", "0", 0, -1, True, 22.5, "1,2,3", [], [0, 4], [224], "224,", "9" * 5000], ids=str
)
def test_what_is_no_image_size_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="--img-size"):
        read_img_size(value)


def test_a_size_has_two_sides() -> None:
    assert (both_sides(224), both_sides((1, 2)), both_sides(None)) == ((224, 224), (1, 2), None)
