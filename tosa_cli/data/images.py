"""Which files of a folder are images, in which colors a model sees them, and at which size. Imports no torch."""

import re
from typing import TYPE_CHECKING, Any

from tosa_cli.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""What Pillow reads of the usual formats; timm by itself takes the first three only."""

SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I")
"""Pillow's modes of greyscale images of 16 bits; the last is what older Pillows read them as."""

COLOR_MODES = {1: "L", 3: "RGB"}
"""Pillow's modes by the number of channels that a model takes."""


ImgSize = int | tuple[int, int] | None
"""An image size in pixels: of a square, or (height, width); None is the model's own."""


def read_img_size(value: Any) -> ImgSize:
    """Read an image size: 224, `224`, `224,320` or [224, 320] (height, width); None and an empty text are none.

    Raises:
        ConfigError: If it is something else.
    """
    if value is None or value == "":
        return None
    is_list = isinstance(value, (list, tuple))
    parts = value if is_list else re.split("[,x]", str(value))
    sizes = [int(str(part)) for part in parts if re.fullmatch(r"[0-9]{1,9}", str(part))]
    if len(sizes) != len(parts) or len(sizes) not in ((2,) if is_list else (1, 2)) or min(sizes) < 1:
        raise ConfigError(f"--img-size must be a number of pixels, or height,width; not {value!r}.")
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def both_sides(size: ImgSize) -> tuple[int, int] | None:
    """An image size as (height, width)."""
    return (size, size) if isinstance(size, int) else size


def color_mode(in_chans: int) -> str:
    """Pillow's mode of the images that a model of so many channels takes: greyscale or colors.

    Raises:
        DataError: If image files do not have so many channels.
    """
    if in_chans not in COLOR_MODES:
        raise DataError(
            f"The model takes images of {in_chans} channels, but image files are read with 1 (greyscale) or 3 (RGB): "
            f"feed it in Python, as any timm model."
        )
    return COLOR_MODES[in_chans]


def to_color_mode(image: "Image.Image", mode: str) -> "Image.Image":
    """Bring an image to a mode from `color_mode`; 16 bits are scaled to 8, where Pillow would cut them off as white.

    Raises:
        OSError: If the file is broken.
        ValueError: If it has floating-point values, such of more than 16 bits, or of 32 bits no larger than 8 need:
            their range is not known.
    """
    if image.mode == "F":
        low, high = image.getextrema()
        raise ValueError(f"its values are floating-point, from {low:.4g} to {high:.4g}, whose range is not known")
    if image.mode in SIXTEEN_BIT_MODES:
        image = _to_eight_bits(image)
    return image.convert(mode)


def _to_eight_bits(image: "Image.Image") -> "Image.Image":
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise ValueError(f"its values run from {low} to {high}, which are no 16 bits")
    if image.mode == "I" and 0 < high < 256:
        raise ValueError(f"its values of 32 bits run from {low} to {high} only, whose range is not known")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
