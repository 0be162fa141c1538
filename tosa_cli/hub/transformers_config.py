"""Where the config of a transformers model keeps the ToSA settings: in the part that is of the encoder."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from tosa_cli.config import SETTINGS_KEY
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.runs import ImageRun, converted_runs
from tosa_cli.model.runs.calls import is_transformers, parts_around


def record_settings(model: Any) -> None:
    """Write the settings of a converted model into its config, so that it is saved and built with them.

    Args:
        model: A converted model of transformers; another has no config, and nothing is done.

    Raises:
        UnsupportedModelError: If its config has no part of the encoder's.
    """
    if not is_transformers(model):
        return
    for found in converted_runs(model):
        run = found.run
        assert run is not None
        owner = config_holder(model, found)
        wanted = owner.config.to_dict()
        parts = [part for part in _parts(model) if part is owner or any(m is owner for m in part.modules())]
        configs = {id(each): each for part in parts for each in configs_in(part.config)}
        configs[id(owner.config)] = owner.config
        # A model gives some of its parts copies of their configs.
        same = [each for each in configs.values() if type(each) is type(owner.config) and each.to_dict() == wanted]
        held = {id(each) for each in configs_in(model.config)}
        if not any(id(each) in held for each in same):
            raise UnsupportedModelError(
                f"The config of {type(model).__name__} does not hold that of its {type(owner).__name__}, so the "
                f"converted model could not be saved: convert the {type(owner).__name__} alone."
            )
        for each in same:
            setattr(each, SETTINGS_KEY, run.to_dict())


def config_holder(model: nn.Module, found: ImageRun) -> Any:
    """The smallest part of a model around a run that has a config."""
    return next(part for part in parts_around(model, found) if hasattr(part, "config"))


def _parts(model: nn.Module) -> list[Any]:
    return [part for part in model.modules() if is_transformers(part)]


def configs_in(config: Any) -> Iterator[Any]:
    """A config, and those of its parts."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from configs_in(value)
