"""What a config.json says of the images that a model takes, checked before anything is made of it. Imports no torch."""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from tosa_cli.errors import CheckpointError


@cache
def _checks() -> dict[str, tuple[Any, str]]:
    """What checks the value of each key that is read, and what it must be in words."""
    from pydantic import ConfigDict, Field, TypeAdapter

    count = Annotated[int, Field(gt=0)]
    positive = Annotated[float, Field(gt=0)]
    share = Annotated[float, Field(gt=0, le=8)]
    size = tuple[count, count, count]
    kinds: dict[str, tuple[Any, str]] = {
        "mean": (Annotated[list[float], Field(min_length=1)], "a list of numbers"),
        "std": (Annotated[list[positive], Field(min_length=1)], "a list of numbers above 0"),
        "crop_pct": (share, "a number above 0"),
        "test_crop_pct": (share, "a number above 0"),
        "crop_mode": (Literal["center", "squash", "border"], "center, squash or border"),
        "interpolation": (
            Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random"],
            "one of timm's filters, as bilinear or bicubic",
        ),
        "input_size": (size, "three whole numbers above 0"),
        "test_input_size": (size, "three whole numbers above 0"),
        "num_classes": (Annotated[int, Field(ge=0)], "a whole number from 0 up"),
        "license": (str, "a text"),
        "architecture": (str, "a text"),
        "tag": (str, "a text"),
        "label_names": (list[str], "a list of texts"),
        "label_descriptions": (dict[str, str] | list[str], "texts by name"),
    }
    strict = ConfigDict(strict=True, allow_inf_nan=False)
    return {key: (TypeAdapter(kind | None, config=strict), words) for key, (kind, words) in kinds.items()}


def check_image_config(config: Mapping[str, Any], path: str) -> None:
    """Check what a config.json says of images and classes, at its top and under `pretrained_cfg`.

    Args:
        config: The values.
        path: The file, for the error.

    Raises:
        CheckpointError: Naming the first key that is of another type or out of range.
    """
    from pydantic import ValidationError

    for place, values in (("", config), ("pretrained_cfg.", config.get("pretrained_cfg") or {})):
        for key in _checks().keys() & values.keys():
            adapter, words = _checks()[key]
            value = values[key]
            try:
                adapter.validate_python(tuple(value) if key.endswith("input_size") and value else value)
            except (ValidationError, TypeError):
                raise CheckpointError(f"{path} cannot be used: {place}{key} must be {words}, not {value!r}.") from None
