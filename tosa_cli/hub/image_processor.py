"""What transformers' image processors do to an image, in the words of timm's `pretrained_cfg`. Imports no torch."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tosa_cli.errors import CheckpointError

if TYPE_CHECKING:
    from tosa_cli.hub.architectures import Plan
    from tosa_cli.hub.files import Files

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI_CLIP_MEAN, OPENAI_CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
STANDARD_MEAN = STANDARD_STD = (0.5, 0.5, 0.5)

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""timm's names of Pillow's filters, by their numbers."""

_SQUARE = {
    "do_center_crop": False,
    "size": 224,
    "resample": 2,
    "image_mean": STANDARD_MEAN,
    "image_std": STANDARD_STD,
    "default_to_square": True,
}
_CROPPED = {
    "do_center_crop": True,
    "size": 224,
    "crop_size": 224,
    "resample": 3,
    "image_mean": OPENAI_CLIP_MEAN,
    "image_std": OPENAI_CLIP_STD,
    "default_to_square": False,
}

_DEIT = {**_SQUARE, "do_center_crop": True, "size": 256, "crop_size": 224, "resample": 3}
_IMAGENET = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}

DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": _SQUARE,
    "DeiT": _DEIT,
    "CLIP": _CROPPED,
    "Bit": _CROPPED,
    "Siglip": {**_SQUARE, "resample": 3},
    "published DeiT": {**_DEIT, **_IMAGENET},
    "published MAE": {**_SQUARE, **_IMAGENET},
    "published DINOv2": {**_CROPPED, **_IMAGENET, "size": 256},
}
"""What transformers' processors do where their file is silent, by the beginning of their names.

The last are for models without a file: what those that are published have, which their processors' defaults are not.
"""


def pretrained_cfg(
    plan: "Plan", model: Any, files: "Files", size_is_asked: bool = False
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """timm's record of image settings, class names and license, and what to tell the user about it.

    Args:
        plan: The timm model to build.
        model: That model, on any device.
        files: Files of the source.
        size_is_asked: Whether the user chose the image size, and need not be told of another.
    """
    processor, notes = files.processor(), []
    size: tuple[int, int] = tuple(model.patch_embed.img_size)
    if processor is None:
        notes.append(
            f"{files.shown} has no preprocessor_config.json: mean, standard deviation and crop are those that models "
            f"of its type are published with."
        )
    given = processed_size(processor or {})
    if given is not None and given != size and not size_is_asked:
        notes.append(
            f"Its image processor gives {given[0]}x{given[1]} pixels, but the model has positions for "
            f"{size[0]}x{size[1]}: pass --img-size {given[0]} to convert it at that size."
        )
    cfg = {
        "architecture": plan.architecture,
        "input_size": (model.in_chans, *size),
        "fixed_input_size": True,
        **image_settings(processor or {}, plan.family.processor, size, model.in_chans, files.shown),
        "num_classes": model.num_classes,
        "label_names": plan.label_names or None,
        "first_conv": model.pretrained_cfg.get("first_conv"),
        "classifier": model.pretrained_cfg.get("classifier"),
        "license": files.license(),
    }
    return cfg, tuple(notes)


def image_settings(
    processor: Mapping[str, Any], kind: str, img_size: tuple[int, int], channels: int, shown: str
) -> dict[str, Any]:
    """Translate an image processor's configuration.

    Args:
        processor: preprocessor_config.json; empty where there is none.
        kind: Which of `DEFAULTS` it is where it does not say so itself.
        img_size: Image size (height, width) of the model in pixels.
        channels: Number of image channels.
        shown: What to call the source in an error.

    Returns:
        `mean`, `std`, `interpolation`, `crop_pct` and `crop_mode`, as timm has them.

    Raises:
        CheckpointError: If a value is of the wrong kind.
    """
    named = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")
    kind = next((known for known in DEFAULTS if named.startswith(known)), kind)
    values = {**DEFAULTS[kind], **{key: value for key, value in processor.items() if value is not None}}
    try:
        # Pixels are divided by 255 in timm; another factor goes into mean and standard deviation.
        factor = 255 * (values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1)
        normalize = values.get("do_normalize", True)
        mean = _per_channel(values["image_mean"] if normalize else 0.0, channels)
        std = _per_channel(values["image_std"] if normalize else 1.0, channels)
        resized, keeps_shape = _resized(values, img_size)
        crop = _crop(values["crop_size"]) if values["do_center_crop"] else img_size
        return {
            "mean": tuple(value / factor for value in mean) if not math.isclose(factor, 1) else mean,
            "std": tuple(value / factor for value in std) if not math.isclose(factor, 1) else std,
            "interpolation": INTERPOLATIONS[values["resample"]],
            # An image is never made smaller than the model's: what timm's crop could not fill is not cropped.
            "crop_pct": min(1.0, min(crop) / resized) if values["do_center_crop"] else 1.0,
            "crop_mode": "center" if keeps_shape else "squash",
        }
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"The image processor's configuration of {shown} cannot be used ({type(error).__name__}: {error}): correct "
            f"it, or download it again."
        ) from error


def processed_size(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    """Image size (height, width) in pixels that a processor gives, or None if it does not tell."""
    key = "crop_size" if processor.get("crop_size") and processor.get("do_center_crop", True) else "size"
    try:
        return _crop(processor[key])
    except (KeyError, TypeError, ValueError):
        return None


def _per_channel(value: Any, channels: int) -> tuple[float, ...]:
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
    if len(values) not in (1, channels):
        raise ValueError(f"{len(values)} values for {channels} channels")
    return tuple(values * channels if len(values) == 1 else values)


def _resized(values: Mapping[str, Any], img_size: tuple[int, int]) -> tuple[int, bool]:
    """Length in pixels that the shorter edge is resized to, and whether the image keeps its shape in that."""
    if not values.get("do_resize", True):
        return min(img_size), True
    size = values["size"]
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), True
        return min(int(size["height"]), int(size["width"])), False
    if isinstance(size, Sequence):
        return min(map(int, size)), False
    return int(size), not values["default_to_square"]


def _crop(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return (int(size["height"]), int(size["width"])) if "height" in size else (int(size["shortest_edge"]),) * 2
    height, width = size if isinstance(size, Sequence) else (size, size)
    return int(height), int(width)
