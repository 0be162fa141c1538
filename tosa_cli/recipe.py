"""Recipes: settings as data, one section a command. Imports no torch.

A recipe has a header (`name`, `description`, `expected`, `command`) and the sections `convert`, `distill`, `finetune`,
whose keys are the names of the command-line options. The same shape is saved in every model folder as what made it,
in the order of the commands; there a command that was run again has a section of its own, as `distill-2`.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tosa_cli.convert_config import ConvertConfig
from tosa_cli.errors import ConfigError
from tosa_cli.provenance import command_of
from tosa_cli.settings import check_keys
from tosa_cli.train.config import DistillConfig, FinetuneConfig
from tosa_cli.train.predictor_config import PredictorConfig

SECTIONS = {
    "convert": ConvertConfig.field_names(),
    "distill": DistillConfig.field_names(),
    "finetune": tuple(dict.fromkeys((*FinetuneConfig.field_names(), *PredictorConfig.field_names()))),
}
HEADER = ("name", "description", "expected", "command")


@dataclass(frozen=True)
class Recipe:
    """Settings for the commands, and what to expect of them.

    Attributes:
        name: Name of the recipe; its file's stem.
        description: What it is for.
        expected: What came out when it was run, with conditions; or that it was not run.
        command: The commands that run it.
        sections: Settings of each command, in their order; those that the recipe does not have are empty and last.
    """

    name: str
    description: str = ""
    expected: str = ""
    command: str = ""
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def recipes_folder() -> Path:
    """Where the recipes that come with the package are: inside the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def list_recipes() -> list[Recipe]:
    """All recipes that come with the package, by name."""
    return [load_recipe(path.stem) for path in sorted(recipes_folder().glob("*.yaml"))]


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: Name of a recipe that comes with the package, or path of a YAML file.

    Raises:
        ConfigError: If there is no such recipe.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else recipes_folder() / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(path.stem for path in sorted(recipes_folder().glob("*.yaml")))
        raise ConfigError(f"There is no recipe {name!r}. Known: {known}; or give the path of a .yaml file.")
    return path


class _UniqueKeys(yaml.SafeLoader):
    """Reads YAML, and refuses a key that is given twice, of which the last would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Read one mapping.

        Raises:
            yaml.YAMLError: If a key is given twice.
        """
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_recipe(name: str) -> Recipe:
    """Read and check a recipe.

    Args:
        name: Name of a recipe that comes with the package, or path of a YAML file.

    Raises:
        ConfigError: If there is no such recipe, or it has an unknown section or key, or a wrong value.
    """
    path = find_recipe(name)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"The recipe {path} cannot be read ({reason}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The recipe {path} should hold sections such as convert: and distill:.")
    steps = [key for key in values if _is_step(key)]
    check_keys(values, (*HEADER, *SECTIONS, *steps, "versions"), "recipe section")
    sections = {}
    for section in dict.fromkeys((*steps, *SECTIONS)):
        content = values.get(section) or {}
        if not isinstance(content, dict):
            raise ConfigError(f"The section {section} of the recipe {path} should hold settings, one a line.")
        check_keys(content, SECTIONS[command_of(section)], f"setting in the section {section} of {path.name}:")
        size = content.get("img_size")
        if isinstance(size, str) and size.isdigit():
            raise ConfigError(f"--img-size must be a number of pixels, or height,width; not the text {size!r}.")
        sections[section] = content
    header = {key: str(values.get(key, "")).strip() for key in HEADER}
    return Recipe(**{**header, "name": header["name"] or path.stem}, sections=sections)


def dump_recipe(sections: Mapping[str, Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    """What made a model, as YAML that `load_recipe` reads."""
    values = {**{name: dict(content) for name, content in sections.items()}, "versions": dict(versions)}
    return "# What made this model.\n" + yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def command_lines(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The commands that have these settings, in their order; settings at their default are left out."""
    return [_command_line(command_of(step), settings) for step, settings in sections.items()]


def _is_step(key: Any) -> bool:
    return command_of(str(key)) in SECTIONS and re.fullmatch(r"[a-z]+(-[1-9]\d*)?", str(key)) is not None


def _command_line(command: str, settings: Mapping[str, Any]) -> str:
    defaults = _defaults(command, settings)
    words = ["tosa", command, *([str(settings["source"])] if settings.get("source") else [])]
    for name, value in settings.items():
        if name == "source" or value in (None, "") or (name in defaults and defaults[name] == value):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            shown = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            words += [f"--{flag}", shown]
    return shlex.join(words)


def _defaults(command: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    if command == "finetune":
        values = FinetuneConfig(objective=settings.get("objective", "labels")).to_dict()
        return {**values, "objective": FinetuneConfig().objective}
    if command == "distill":
        return DistillConfig().to_dict()
    return {name: ConvertConfig.default_of(name) for name in ConvertConfig.field_names()}
