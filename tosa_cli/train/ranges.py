"""What numbers the settings of `distill` and `finetune` may be. Imports no torch."""

import math
from dataclasses import dataclass

from tosa_cli.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, each of which may be left out.

    Attributes:
        low: The lower end.
        high: The upper end.
        without_low: Whether the lower end itself is out of range.
        without_high: Whether the upper end itself is.
    """

    low: float
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.without_low else number >= self.low
        return above and (number < self.high if self.without_high else number <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low}" if self.without_low else f"{self.low} or more"
        if self.high == math.inf:
            return low
        if not (self.without_low or self.without_high):
            return f"from {self.low} to {self.high}"
        return f"{low} and {'below' if self.without_high else 'at most'} {self.high}"


COUNT, AMOUNT, POSITIVE = Range(1), Range(0), Range(0, without_low=True)
PROBABILITY = Range(0, 1)
SHARE = Range(0, 1, without_low=True)
BELOW_ONE = Range(0, 1, without_high=True)

RANGES: dict[str, Range] = {
    "max_samples": COUNT,
    "max_watched": COUNT,
    "epochs": COUNT,
    "batch_size": COUNT,
    "grad_accum_steps": COUNT,
    "lr": POSITIVE,
    "min_lr": AMOUNT,
    "encoder_lr_scale": AMOUNT,
    "layer_decay": SHARE,
    "warmup_epochs": AMOUNT,
    "weight_decay": AMOUNT,
    "clip_grad": AMOUNT,
    "workers": AMOUNT,
    # NumPy takes no other seed.
    "seed": Range(0, 2**32 - 1),
    "checkpoint_every": AMOUNT,
    "eval_every": AMOUNT,
    "max_minutes": POSITIVE,
    "feature_layers": AMOUNT,
    "smoothing": BELOW_ONE,
    "mixup": AMOUNT,
    "cutmix": AMOUNT,
    "color_jitter": AMOUNT,
    "reprob": PROBABILITY,
    "hflip": PROBABILITY,
    "crop_scale": SHARE,
    "rotation": AMOUNT,
    "drop_path": BELOW_ONE,
    "model_ema_decay": BELOW_ONE,
    "depth_scale": AMOUNT,
}
"""The range of every number among the settings, but for those that `TaskConfig` checks."""


def option_name(setting: str) -> str:
    """What a setting is called on the command line."""
    return f"--{setting.replace('_', '-')}"


def check_range(setting: str, value: object) -> None:
    """Check that a number is in the range of its setting; None and settings without a range are passed over.

    Raises:
        ConfigError: If it is out of range.
    """
    allowed = RANGES.get(setting)
    if allowed is not None and isinstance(value, (int, float)) and value not in allowed:
        raise ConfigError(f"{option_name(setting)} must be {allowed}, not {value!r}.")
