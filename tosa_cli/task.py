"""What a predictor predicts, as one frozen, strict object. Imports no torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tosa_cli.config import check_keys
from tosa_cli.errors import ConfigError

PREDICTOR_ARCHITECTURE = "tosa_dense"
"""Name of predictors (encoder and decoder) in timm's registry."""

PredictorTask = Literal["depth", "segmentation"]
DecoderName = Literal["linear", "dpt", "newcrfs"]


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What a predictor predicts, and with which decoder.

    Attributes:
        task: `depth` in metres, or `segmentation` into classes.
        decoder: What turns tokens into a map: `linear` (a linear map of the last tokens, as DINOv2 is probed), `dpt`
            (Ranftl et al. 2021) or `newcrfs` (Yuan et al. 2022).
        decoder_dim: Width of the decoder; 0 is the paper's own (dpt: 256, newcrfs: 128 at its finest level). The linear
            decoder has none.
        min_depth: Smallest depth that is predicted, in metres.
        max_depth: Largest depth that is predicted, in metres.
        num_labels: Number of classes of a segmentation.

    Raises:
        ConfigError: If a value is out of range.
    """

    task: PredictorTask = "depth"
    decoder: DecoderName = "dpt"
    decoder_dim: int = 0
    min_depth: float = 1e-3
    max_depth: float = 10.0
    num_labels: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("task", PredictorTask), ("decoder", DecoderName)):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise ConfigError(f"{name} must be one of: {', '.join(get_args(choices))}; not {value!r}.")
        if self.decoder_dim < 0 or (self.decoder_dim and self.decoder_dim % 8):
            raise ConfigError(f"decoder_dim must be 0 or a multiple of 8, not {self.decoder_dim!r}.")
        if not 0 < self.min_depth < self.max_depth:
            raise ConfigError(f"min_depth ({self.min_depth}) must be above 0 and below max_depth ({self.max_depth}).")
        if self.task == "segmentation" and self.num_labels < 2:
            raise ConfigError(f"num_labels must be 2 or more for segmentation, not {self.num_labels!r}.")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TaskConfig":
        """Read settings from JSON values, strictly.

        Raises:
            ConfigError: If a key is unknown or a value is wrong.
        """
        check_keys(values, cls.field_names(), "setting of the task:")
        return cls(**values)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of all settings."""
        return tuple(field.name for field in dataclasses.fields(cls))
