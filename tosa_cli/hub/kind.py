"""Which kind of model a name stands for. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tosa_cli.errors import TosaError
from tosa_cli.hub.download import fetch_file
from tosa_cli.hub.folder import CONFIG, Kind, kind_of, read_json


def find_kind(name: str) -> Kind | None:
    """Which kind of model a folder or Hub repository holds.

    Args:
        name: A folder, or `org/name[@revision]`.

    Returns:
        None if tosa did not write it, if there is none, or if it cannot be read.
    """
    return kind_of(find_config(name))


def find_config(name: str) -> dict[str, Any]:
    """The config.json of a folder or Hub repository; empty without one, or where it cannot be read."""
    folder = Path(name.removeprefix("local-dir:"))
    repo_id, _, revision = name.removeprefix("hf-hub:").partition("@")
    try:
        if folder.is_dir():
            return read_json(folder / CONFIG)
        if name.startswith(("local-dir:", ".", "/", "~")) or repo_id.count("/") != 1 or folder.exists():
            return {}
        return read_json(fetch_file(repo_id, CONFIG, revision=revision or None))
    except TosaError:
        return {}  # whoever loads it tells why it cannot be loaded


def is_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is transformers', not timm's."""
    return isinstance(config.get("model_type"), str) and not isinstance(config.get("architecture"), str)


def is_wrapped(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a timm model in transformers' `TimmWrapper`, which keeps timm's names."""
    return config.get("model_type") == "timm_wrapper"
