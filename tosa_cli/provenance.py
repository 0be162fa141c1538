"""Where a converted model comes from: what is remembered of its source and of each command. Imports no torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tosa_cli.errors import ConfigError
from tosa_cli.settings import check_keys

FORMAT_VERSION = 1
"""Version of the format of model folders."""

Stage = Literal["converted", "distilled", "finetuned"]

COMMANDS: dict[str, str] = {"converted": "convert", "distilled": "distill", "finetuned": "finetune"}
"""The command that takes a model to each stage."""


_OPTIONAL = ("base_hub_id", "base_revision", "license")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a converted model comes from; it never changes what the model computes.

    Attributes:
        format_version: Version of the folder's format.
        stage: The last thing done to the model.
        source: The source as the user named it, a local one by its whole path.
        base_model: Its name: the timm name or the Hub id.
        base_hub_id: Its id on the Hugging Face Hub, if it comes from there.
        base_revision: The commit that it was read at there.
        license: Its license.
        steps: Settings of each command that made the model, in the order of the commands. One that was run again is
            numbered: `distill`, `finetune`, `distill-2`.
        results: What was measured on it, with conditions.
    """

    format_version: int = FORMAT_VERSION
    stage: Stage = "converted"
    source: str = ""
    base_model: str = ""
    base_hub_id: str | None = None
    base_revision: str | None = None
    license: str | None = None
    steps: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_distilled(self) -> bool:
        """Whether what selects and bypasses was trained or fitted, whatever came after."""
        return self._was_run("distill")

    @property
    def is_finetuned(self) -> bool:
        """Whether the backbone was finetuned, whatever came after: its weights are not the source's any more."""
        return self._was_run("finetune")

    def to_dict(self) -> dict[str, Any]:
        """The values as plain JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Provenance":
        """Read the values, strictly.

        Raises:
            ConfigError: If the format is newer than this version of tosa, or a key is unknown.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"The tosa block should be an object, not {values!r}.")
        version = values.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ConfigError(f"format_version should be a whole number from 1 up, but is {version!r}.")
        if version > FORMAT_VERSION:
            raise ConfigError(
                f"The folder has format_version {version}, but this tosa reads up to {FORMAT_VERSION}: "
                f"run `pip install -U tosa-cli`."
            )
        check_keys(values, (field.name for field in dataclasses.fields(cls)), "key in the tosa block:")
        if not isinstance(stage := values.get("stage", "converted"), str) or stage not in COMMANDS:
            raise ConfigError(f"stage must be one of {', '.join(COMMANDS)}; not {stage!r}.")
        for name, value in values.items():
            if name in ("steps", "results"):
                if not isinstance(value, Mapping) or not all(isinstance(part, Mapping) for part in value.values()):
                    raise ConfigError(f"{name} in the tosa block should be an object of objects, not {value!r}.")
            elif name != "format_version" and not isinstance(value, str | None if name in _OPTIONAL else str):
                raise ConfigError(f"{name} in the tosa block should be a text, not {value!r}.")
        for step in values.get("steps", {}):
            if command_of(step) not in COMMANDS.values():
                raise ConfigError(
                    f"steps in the tosa block has {step!r}, but steps are of {', '.join(COMMANDS.values())}."
                )
        return cls(**values)

    def after(
        self, stage: Stage, settings: Mapping[str, Any], results: Mapping[str, Any] | None = None
    ) -> "Provenance":
        """The provenance after one more step; figures measured before it no longer hold and are dropped."""
        command = COMMANDS[stage]
        times = 1 + sum(command_of(step) == command for step in self.steps)
        step = command if times == 1 else f"{command}-{times}"
        return dataclasses.replace(
            self, stage=stage, steps={**self.steps, step: dict(settings)}, results=dict(results or {})
        )

    def _was_run(self, command: str) -> bool:
        return any(command_of(step) == command for step in self.steps)


def command_of(step: str) -> str:
    """The command of a step: that of `distill-2` is `distill`."""
    return step.partition("-")[0]
