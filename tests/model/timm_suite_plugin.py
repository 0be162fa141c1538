"""A pytest plugin: timm's tests of all models run on the folders in `TIMM_SUITE_FOLDERS`, and on no other model.

A folder becomes a model of timm's registry under its own name, and is what `create_model` makes of it by its path.
It stands among the ViTs, so that timm's own filters give it the tests that a ViT has. A test for which they give none
of the folders is reported as skipped, with `NOTSET` in its name, and tests that name a model of timm's are left out.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from timm.models import generate_default_cfgs, register_model
from timm.models import vision_transformer as among
from timm.models._hub import load_model_config_from_path

import tosa_cli  # noqa: F401  (makes converted models known to timm)

FOLDERS = sorted(Path(os.environ["TIMM_SUITE_FOLDERS"]).iterdir())
NAMES = {folder.name for folder in FOLDERS}


def register(folder: Path) -> None:
    """Make a folder a model of timm's registry."""

    def entry_point(pretrained: bool = False, **kwargs: Any) -> Any:
        kwargs = {name: value for name, value in kwargs.items() if not name.startswith("pretrained_cfg")}
        return timm.create_model(f"local-dir:{folder}", pretrained=pretrained, **kwargs)

    cfg, _, _ = load_model_config_from_path(str(folder))
    with_weights = {**cfg, "file": str(folder / "model.safetensors")}
    among.default_cfgs.update(generate_default_cfgs({folder.name: with_weights}))
    entry_point.__name__, entry_point.__module__ = folder.name, among.__name__
    register_model(entry_point)


def ours_of(lister: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """What lists names of models, of which the folders' are left."""
    return lambda *args, **kwargs: [name for name in lister(*args, **kwargs) if name in NAMES]


for each in FOLDERS:
    register(each)
# The tests are for the models of these lists, which are made when their file is imported.
timm.list_models, timm.list_pretrained = ours_of(timm.list_models), ours_of(timm.list_pretrained)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if "NOTSET" in item.name or any(name in item.name for name in NAMES)]
