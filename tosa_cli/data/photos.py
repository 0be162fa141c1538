"""Image files as a model sees them, one by one, for pictures."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_transform, resolve_input_data_config
from torch import Tensor
from torchvision.transforms import v2

from tosa_cli.data.images import IMAGE_SUFFIXES, color_mode, to_color_mode
from tosa_cli.errors import DataError
from tosa_cli.model.predictor import Predictor, whole_patches
from tosa_cli.model.tosa_vit import TosaViT


def find_photos(paths: Iterable[Path]) -> list[Path]:
    """The image files among paths, a folder's in the order of their names and its sub-folders' with them.

    Raises:
        DataError: If a path does not exist, or a folder holds no images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise DataError(f"{path} holds no images (.jpg, .png, ...). Name another folder, or an image.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"There is no image or folder {path}. Check the path.")
    return list(dict.fromkeys(found))


def photo_transform(model: TosaViT) -> Callable[[Image.Image], Tensor]:
    """The transform (C, height, width) that evaluation applies to an image for a model, at the model's image size."""
    config = resolve_input_data_config(model)
    size: Any = model.patch_embed.img_size
    return create_transform(
        (config["input_size"][0], *size),
        is_training=False,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )


def whole_photo_transform(model: Predictor, img_size: tuple[int, int] | None = None) -> Callable[[Image.Image], Tensor]:
    """The transform (C, height, width) that evaluation applies to an image for a model with a decoder.

    The image is seen whole, whatever its form is, brought to one size in whole patches.

    Args:
        model: The model.
        img_size: Image size (height, width) in pixels, brought to whole patches; None is the one trained on.
    """
    config = resolve_input_data_config(model)
    size = whole_patches(img_size or model.img_size, model.patch_embed.patch_size)
    return v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(size, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config["mean"], config["std"]),
        ]
    )


def read_photo(path: Path, model: TosaViT | Predictor, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """Read an image as a batch of one.

    Args:
        path: The file.
        model: The model that it is for, which tells the number of channels.
        transform: From `photo_transform` or `whole_photo_transform`.

    Returns:
        Normalised image (1, C, height, width).

    Raises:
        DataError: If it cannot be read.
    """
    return transform(open_photo(path, model))[None]


def open_photo(path: Path, model: TosaViT | Predictor) -> Image.Image:
    """Open an image with the colors that a model takes.

    As in timm, and so in training and `tosa eval`, the orientation that a camera noted is not applied.

    Raises:
        DataError: If it cannot be read, or image files do not have as many channels as the model takes.
    """
    mode = color_mode(model.in_chans)
    try:
        with Image.open(path) as image:
            return to_color_mode(image, mode)
    except Exception as error:  # broken files make Pillow's decoders raise errors of any kind
        broken = isinstance(error, UnidentifiedImageError)
        reason = "it is not an image, or broken" if broken else " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read ({reason}). Name another image.") from error


def to_pixels(images: Tensor, model: TosaViT | Predictor) -> Tensor:
    """Undo the normalisation of one image (1, C, height, width): colors (height, width, 3) in 0..1."""
    config = resolve_input_data_config(model)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    pixels = (images[0].cpu().float() * std + mean).clamp(0, 1)
    return pixels.expand(3, -1, -1).permute(1, 2, 0)
