"""transformers builds a converted model anew wherever a config holds ToSA settings.

A model of transformers is built by its class and its config, and then filled with weights; each part that has a config
ends its building with `post_init`. There the run of blocks gets its ToSA layers again, if the config of the part says
so. This one place serves every model, every `Auto` class, `from_pretrained`, `from_config` and `pipeline`, and no class
is registered, so that the models stay what they are called in their config.
"""

import functools
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from tosa_cli.config import SETTINGS_KEY


def register() -> None:
    """Let transformers build converted models."""
    build = PreTrainedModel.post_init
    if hasattr(build, "__wrapped__"):
        return

    @functools.wraps(build)
    def post_init(self: Any) -> None:
        build(self)
        if _holds_settings(self.config):
            insert_runs(self)

    PreTrainedModel.post_init = post_init  # type: ignore[method-assign]


def insert_runs(model: Any) -> None:
    """Put the ToSA layers into a part of a model that has the settings for them, where it has not got them yet.

    Raises:
        CheckpointError: If the settings are of a later format, or incomplete.
        ConfigError: If a setting is wrong.
    """
    from tosa_cli.hub.transformers_config import config_holder
    from tosa_cli.model.runs import Run, find_runs, insert_run

    for found in find_runs(model):
        settings = getattr(config_holder(model, found).config, SETTINGS_KEY, None)
        if found.run is None and settings:
            insert_run(found, *Run.read(settings))


def _holds_settings(config: Any) -> bool:
    """Whether a config has the settings, or a part of it."""
    parts = [config, *(value for value in vars(config).values() if hasattr(value, "model_type"))]
    return any(getattr(part, SETTINGS_KEY, None) for part in parts)


register()
