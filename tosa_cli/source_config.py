"""How a source is read, as frozen and strict data. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tosa_cli.settings import CommandSettings, Setting

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "hamming", "box"]


def _read_channels(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(part, bool) for part in parts):
        raise ValueError("true and false are no numbers")
    numbers = tuple(float(part) for part in parts)
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError("not finite")
    return numbers


def _read_deviations(value: Any) -> tuple[float, ...] | None:
    numbers = _read_channels(value)
    if numbers is not None and min(numbers) <= 0:
        raise ValueError("not above 0")
    return numbers


@dataclass(frozen=True, kw_only=True)
class PixelSettings(CommandSettings):
    """What the values of pixels are put through before a model sees them, where it is not as its source says.

    Raises:
        ConfigError: If a value is out of range.
    """

    mean: Annotated[
        tuple[float, ...] | None,
        Setting(
            "Mean that is taken off pixels from 0 to 1, one number or one a channel; None is what the source says.",
            expected="a number, or one a channel as in 0.485,0.456,0.406",
            read=_read_channels,
        ),
    ] = None
    std: Annotated[
        tuple[float, ...] | None,
        Setting(
            "Standard deviation that they are divided by then, in the same form.",
            expected="a number above 0, or one a channel as in 0.229,0.224,0.225",
            read=_read_deviations,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ImageSettings(PixelSettings):
    """What images are put through before a model sees them, where it is not as its source says.

    Raises:
        ConfigError: If a value is out of range.
    """

    crop_pct: Annotated[
        float | None,
        Setting("Share of an image's sides that is seen in evaluation; None is what the source says.", gt=0, le=1),
    ] = None
    interpolation: Annotated[
        Interpolation | None,
        Setting("Filter by which images are brought to size; empty is what the source says."),
    ] = None


ARCHITECTURE = Setting("timm's name of the architecture of a weights file.")

WEIGHTS_KEY = Setting(
    "Which weights to take of a file that holds several, by what stands before their names, as model_ema or "
    "teacher.backbone."
)
