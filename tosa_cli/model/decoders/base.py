"""What all decoders have in common."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class DecoderFeatures(NamedTuple):
    """What a decoder reads.

    Attributes:
        maps: Patch tokens (B, D, rows, columns) after each layer that the decoder asked for.
        class_tokens: Class tokens (B, D) after the same layers; None where the encoder has none.
    """

    maps: Sequence[Tensor]
    class_tokens: Sequence[Tensor] | None


class Decoder(nn.Module):
    """A decoder: from features to a map (B, out_channels, height, width), finer than the patches.

    Args:
        embed_dim: Width D of the tokens.
        has_class_token: Whether the features have class tokens.
        out_channels: Channels of the map.
        dim: Width of the decoder; 0 is its own.
    """

    reads_norm: ClassVar[bool]
    """Whether it reads tokens after the encoder's final norm."""

    depth_channels: ClassVar[int] = 1
    """Channels that it makes for depth: one that gives it, or the weights of so many depths."""

    def __init__(self, embed_dim: int, has_class_token: bool, out_channels: int, dim: int = 0) -> None:
        super().__init__()

    @staticmethod
    def indices(depth: int) -> list[int]:
        """The layers that are read of an encoder of `depth` layers, counted from 0 as in timm."""
        return [depth - 1]

    def forward(self, features: DecoderFeatures) -> Tensor:
        """Turn features into a map (B, out_channels, height, width)."""
        raise NotImplementedError


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bring maps (B, C, h, w) to a size (height, width), bilinearly."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
