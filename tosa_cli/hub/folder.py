"""Model folders as files: telling one, and whether one may be written. Imports no torch."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tosa_cli.config import ARCHITECTURE, SETTINGS_KEY
from tosa_cli.errors import CheckpointError, OutputError
from tosa_cli.task import PREDICTOR_ARCHITECTURE

WEIGHTS, CONFIG, CARD, RECIPE = "model.safetensors", "config.json", "README.md", "recipe.yaml"

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
"""Endings of the names of files of weights."""

STAGING = ".writing"
"""Ending of the name under which a folder or file is written before it takes its place."""

Kind = Literal["converted", "predictor", "whole"]
"""What tosa writes: a converted model; a model with a decoder, which predicts for every pixel; or a whole model of
transformers with a converted encoder inside."""


def read_json(path: Path, shown: str | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        shown: What to call it in an error; None takes its path.

    Raises:
        CheckpointError: If the file is missing, is not JSON, or holds something else.
    """
    shown = shown or str(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(values, ensure_ascii=False).encode()  # an escape may stand for half a character
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}, so it is not a model folder: name one that has it."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown} cannot be read as JSON ({error}): copy or download it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{shown} should hold a JSON object, but holds a {type(values).__name__}.")
    return values


def kind_of(config: Mapping[str, Any]) -> Kind | None:
    """Which kind of model a config.json is of; None if it is of none that tosa writes."""
    kinds: dict[Any, Kind] = {ARCHITECTURE: "converted", PREDICTOR_ARCHITECTURE: "predictor"}
    architecture = config.get("architecture")
    if isinstance(architecture, str):
        return kinds.get(architecture)
    return "whole" if _holds_settings(config) else None


def _holds_settings(config: Mapping[str, Any]) -> bool:
    """Whether a config holds the settings of a conversion, in whatever part."""
    return SETTINGS_KEY in config or any(_holds_settings(part) for part in config.values() if isinstance(part, dict))


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a model that tosa wrote."""
    try:
        return kind_of(read_json(folder / CONFIG)) is not None
    except CheckpointError:
        return False


def claims_model(folder: Path) -> bool:
    """Whether a folder is meant as a model, whoever wrote it, even where it is broken."""
    try:
        return not {"architecture", "model_type"}.isdisjoint(read_json(folder / CONFIG))
    except CheckpointError:
        return (folder / CONFIG).is_file()


def check_output(folder: Path, overwrite: bool) -> None:
    """Check that a folder can be written, before any work is done.

    Raises:
        OutputError: If it exists and may not be overwritten, or its parent cannot be written to.
    """
    if folder.is_file():
        raise OutputError(f"{folder} is a file, but a folder is written: choose another name with -o.")
    if folder.exists() and any(entry.name != STAGING for entry in folder.iterdir()):
        if not overwrite:
            raise OutputError(f"{folder} already exists. Choose another name with -o, or pass --overwrite.")
        if not is_model_folder(folder):
            raise OutputError(
                f"{folder} is not a model folder and will not be overwritten. Choose another name with -o."
            )
    check_writable(folder.resolve().parent)


def check_writable(folder: Path) -> None:
    """Check that files can be written into a folder, which may have to be made.

    Raises:
        OutputError: If they cannot.
    """
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} cannot be written to: choose another place with -o.")
