"""What images are put through before a model sees them: kept in timm's `pretrained_cfg`, told where it is assumed."""

from collections.abc import Sequence
from typing import Any

from timm.data import resolve_data_config

from tosa_cli.errors import ConfigError
from tosa_cli.model.families import Backbone
from tosa_cli.settings import option_name
from tosa_cli.source_config import PixelSettings


def set_images(model: Backbone, images: PixelSettings) -> None:
    """Note on a model what its images are put through.

    Args:
        model: The model.
        images: What was named; the rest stays as it is.

    Raises:
        ConfigError: If there are more or fewer numbers than channels.
    """
    named: dict[str, Any] = images.named()
    for name in ("mean", "std"):
        if name in named:
            named[name] = _per_channel(name, named[name], model.in_chans)
    if named:
        if "crop_pct" in named:
            named["test_crop_pct"] = None  # that of a larger size to test at
        model.pretrained_cfg = {**(getattr(model, "pretrained_cfg", None) or {}), **named}


def check_pixels(model: Any, pixels: PixelSettings, shown: str) -> None:
    """Check that nothing is named of what a model's images are put through, but for what it says itself.

    Args:
        model: A model that was trained with its settings.
        pixels: What was named.
        shown: What to call the model.

    Raises:
        ConfigError: If another mean or deviation is named, or numbers for more or fewer channels.
    """
    for name, value in pixels.named().items():
        own = model.pretrained_cfg.get(name)
        if own is not None and tuple(own) != tuple(_per_channel(name, value, model.in_chans)):
            raise ConfigError(
                f"The {name} of {shown} is {_shown(own)}, not {_shown(value)}: leave out {option_name(name)}, or name "
                f"a dense source to start anew from."
            )


def assumed_images(model: Backbone, images: PixelSettings, shown: str) -> list[str]:
    """What to tell of image settings that a source is silent about and nobody named.

    Args:
        model: The model that was built for it.
        images: What was named.
        shown: What to call the source.
    """
    names = [name for name in images.field_names() if getattr(images, name) is None]
    if not names:
        return []
    cfg: dict[str, Any] = model.pretrained_cfg
    used = resolve_data_config(pretrained_cfg=cfg)
    weights = ".".join(filter(None, [cfg.get("architecture"), cfg.get("tag")]))
    said = ", ".join(f"{name} {_shown(used[name])}" for name in names)
    options = ", ".join(option_name(name) for name in names)
    return [
        f"{shown} does not say what its images are put through, so that of {weights} is taken: {said}. Change it with "
        f"{options}."
    ]


def _per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise ConfigError(
            f"{option_name(name)} has {len(values)} numbers, but the model takes images of {channels} channels: pass "
            f"one number, or {channels}."
        )
    return tuple(values) * (channels if len(values) == 1 else 1)


def _shown(value: Any) -> str:
    return ",".join(f"{part:g}" for part in value) if isinstance(value, (list, tuple)) else str(value)
