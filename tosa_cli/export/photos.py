"""Photos on which an exported model is compared with its original: pieces of the two in the folder `images`."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import resolve_data_config
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from tosa_cli.model.tosa_vit import TosaViT

PHOTOS = tuple(Path(__file__).with_name("images") / name for name in ("china.jpg", "flower.jpg"))


def sample_images(model: TosaViT, count: int, seed: int = 0) -> Tensor:
    """Pieces of photos, of many sizes and places, normalised as the model wants them.

    Args:
        model: The model; its image size, channels, mean and standard deviation count.
        count: Number of images B.
        seed: Seed of the pieces.

    Returns:
        Images (B, C, height, width) in float32.
    """
    batch = photo_pieces((model.in_chans, *model.patch_embed.img_size), count, seed)
    config = resolve_data_config({}, model=model)
    mean, std = (_per_channel(config[key], model.in_chans) for key in ("mean", "std"))
    return ((batch - mean) / std).contiguous()


def photo_pieces(shape: tuple[int, int, int], count: int, seed: int = 0) -> Tensor:
    """Pieces of photos, of many sizes and places.

    Args:
        shape: Channels C, height and width of each.
        count: Number of images B.
        seed: Seed of the pieces.

    Returns:
        Images (B, C, height, width) in float32, of values in 0..1.
    """
    channels, *target = shape
    photos = [_read(path) for path in PHOTOS]
    generator = torch.Generator().manual_seed(seed)
    images = []
    for number in range(count):
        photo = photos[number % len(photos)]
        scale, *places = torch.rand(3, generator=generator).tolist()
        sides = photo.shape[1:]
        size = [int(side * (0.3 + 0.7 * scale)) for side in sides]
        corner = [int(place * (side - part)) for place, side, part in zip(places, sides, size, strict=True)]
        images.append(T.resized_crop(photo, *corner, *size, target, antialias=True))
    batch = torch.stack(images)
    return batch if channels == batch.shape[1] else batch.mean(1, keepdim=True).expand(-1, channels, -1, -1)


def _read(path: Path) -> Tensor:
    with Image.open(path) as photo:
        return torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1) / 255


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    tensor = torch.tensor(values)
    return (tensor if len(tensor) == channels else tensor.mean().expand(channels))[:, None, None]
