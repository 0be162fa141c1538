"""What the commands share: options made from the settings, recipes below them, and the last converted model."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

import typer

from tosa_cli.cli import console
from tosa_cli.errors import ConfigError, InputError, OutputError
from tosa_cli.recipe import load_recipe
from tosa_cli.settings import Settings, option_name, shown
from tosa_cli.source_config import ARCHITECTURE, WEIGHTS_KEY

STATE_FILE = Path(".tosa.json")
"""Remembers, in the directory where `tosa convert` ran, the folder that it wrote."""

WIDEST_LIST = 32
"""Characters of a list of choices that fit beside an option's help."""

PRESETS = ("paper", "calibrated", "matched")

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        help="Converted model: a folder or a Hub id. Default: what the last `tosa convert` here wrote.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")]
OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write.", show_default=False)]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that exists.")]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="Settings from a recipe: a name from `tosa recipes`, or a .yaml file. Options go before it.",
        show_default=False,
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        help="paper: the paper's setting. calibrated: without finetuning, tokens in groups whose means are computed, "
        "keep rates found on the whole model; nothing to distill. matched: without finetuning, layers and keep rates "
        "by error curves, and a bypass that `tosa distill` fits. Each is a recipe.",
        show_default=False,
    ),
]
ImgSizeOption = Annotated[
    str | None, typer.Option(help="Image size in pixels: 224, or height,width.", show_default=False)
]
ArchitectureOption = Annotated[str | None, typer.Option(help=ARCHITECTURE.help, show_default=False)]
WeightsKeyOption = Annotated[str | None, typer.Option(help=WEIGHTS_KEY.help, show_default=False)]


def with_settings(*classes: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each setting; the values that were given arrive as the argument `settings`.

    A setting that several classes have is one option, described by the first of them. An option that the command has
    itself is left out.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
        names = list(dict.fromkeys(name for cls in classes for name in cls.field_names()))
        names = [name for name in names if name not in {parameter.name for parameter in own}]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, classes))
            for name in names
        ]

        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            command(**values, settings={name: value for name, value in given.items() if value is not None})

        run.__doc__ = command.__doc__
        run.__name__ = command.__name__
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + added
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def settings_from(section: str, recipe: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a command: what was given on the command line goes before what the recipe says.

    Raises:
        ConfigError: If there is no such recipe, or it is wrong.
    """
    base = dict(load_recipe(recipe).sections[section]) if recipe else {}
    return {**base, **{key: value for key, value in given.items() if value is not None}}


def preset_recipe(preset: str | None, recipe: str | None) -> str | None:
    """The recipe to read: a preset is one by another name.

    Raises:
        ConfigError: If there is no such preset, or both were given.
    """
    if preset is None:
        return recipe
    if preset not in PRESETS:
        raise ConfigError(f"--preset must be {', '.join(PRESETS[:-1])} or {PRESETS[-1]}, not {preset!r}.")
    if recipe is not None:
        raise ConfigError("Both --preset and --recipe were given: pass one of them.")
    return preset


def remember_model(folder: Path) -> None:
    """Remember the folder that was converted last in this directory."""
    from tosa_cli.hub.writing import write_file

    try:
        write_file(STATE_FILE, (json.dumps({"last_model": str(folder)}) + "\n").encode())
    except OutputError:
        console.warn(f"{STATE_FILE} cannot be written here, so name the model in the next command.")


def resolve_model(model: str | None) -> str:
    """The model that a command works on: the one named, or the last one converted in this directory.

    Raises:
        InputError: If none was named and none was converted here.
    """
    if model is not None:
        return model
    try:
        last = json.loads(STATE_FILE.read_text(encoding="utf-8"))["last_model"]
        is_there = bool(last) and Path(last).is_dir()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            "No model was named, and none was converted in this directory. Name one, or run "
            "`tosa convert deit_tiny --layers 2,4,6,8,10` first."
        ) from None
    if not is_there:
        raise InputError(f"No model was named, and {last}, the last one converted here, is gone. Name one.")
    console.say(f"Working on {last}, the last model converted here.")
    return last


def _option(name: str, classes: Sequence[type[Settings]]) -> Any:
    """The option of a setting, as typer reads it: an annotation with type, flags, help and range.

    Values are checked by the classes alone, in sentences, so typer is told the range to show and no more.
    """
    having = [cls for cls in classes if name in cls.field_names()]
    declared = having[0].declarations()[name]
    text, default = having[0].help_of(name).removesuffix("."), declared.default
    for cls in having[1:]:
        if cls.default_of(name) != default:
            text += f" ({cls.goes_with}: {shown(cls.default_of(name))})"
    text += "." if default in (None, "", (), MISSING) else f". [default: {shown(default)}]"
    flag, short = option_name(name), [declared.setting.flag] * bool(declared.setting.flag)
    if declared.kinds == (bool,):
        flags = [f"{flag}/{option_name(f'no_{name}')}"]
        return Annotated[bool | None, typer.Option(*flags, help=text, show_default=False)]
    kind = declared.kinds[0] if declared.kinds in ((int,), (float,)) else str
    listed = f"<{'|'.join(map(str, declared.choices))}>"
    # Long lists would leave no room for the help beside them, and stand in it.
    shape = listed if 2 < len(listed) <= WIDEST_LIST else f"<{kind.__name__}>"
    bounds = declared.setting.in_symbols()
    metavar = f"{shape} [{bounds}]" if bounds and declared.is_number else shape
    return Annotated[kind | None, typer.Option(*short, flag, help=text, metavar=metavar, show_default=False)]
