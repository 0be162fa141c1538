"""The decoder of the Dense Prediction Transformer (Ranftl et al. 2021, arXiv 2103.13413, section 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tosa_cli.errors import ConfigError
from tosa_cli.model.decoders.base import Decoder, DecoderFeatures, resize

DIM = 256
SCALES = (4.0, 2.0, 1.0, 0.5)
"""How much finer than the patches the map of each level is."""


class DptDecoder(Decoder):
    """Tokens of four evenly spread layers become maps of four scales, which are fused from coarse to fine."""

    reads_norm = False

    def __init__(self, embed_dim: int, has_class_token: bool, out_channels: int, dim: int = 0) -> None:
        super().__init__(embed_dim, has_class_token, out_channels, dim)
        dim = dim or DIM
        self.reassembles = nn.ModuleList(Reassemble(embed_dim, has_class_token, dim, scale) for scale in SCALES)
        # The coarsest level has nothing to be fused with.
        self.fusions = nn.ModuleList(Fusion(dim, fuses=level < len(SCALES) - 1) for level in range(len(SCALES)))
        self.head = nn.Sequential(
            nn.Conv2d(dim, dim // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(dim // 2, max(8, dim // 8), 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(max(8, dim // 8), out_channels, 1),
        )

    @staticmethod
    def indices(depth: int) -> list[int]:
        """Four evenly spread layers, the last among them.

        Raises:
            ConfigError: If there are fewer.
        """
        if depth < len(SCALES):
            raise ConfigError(
                f"The decoder 'dpt' reads {len(SCALES)} layers, but the encoder has {depth}: use --decoder linear."
            )
        return [depth * level // len(SCALES) - 1 for level in range(1, len(SCALES) + 1)]

    def forward(self, features: DecoderFeatures) -> Tensor:
        """Turn features into a map (B, out_channels, 16 * rows, 16 * columns)."""
        class_tokens: Sequence[Tensor | None] = features.class_tokens or [None] * len(SCALES)
        levels = [
            reassemble(maps, class_token)
            for reassemble, maps, class_token in zip(self.reassembles, features.maps, class_tokens, strict=True)
        ]
        fused: Tensor | None = None
        for level in reversed(range(len(SCALES))):
            finer = levels[level - 1].shape[-2:] if level else [2 * extent for extent in levels[0].shape[-2:]]
            fused = self.fusions[level](levels[level], fused, finer)
        return self.head(fused)


class Reassemble(nn.Module):
    """Patch tokens to a map of one scale (section 3.1): read the class token in, project, resample.

    Args:
        embed_dim: Width D of the tokens.
        has_class_token: Whether there is a class token to read in.
        dim: Channels of the map.
        scale: How much finer than the patches it is: 4, 2, 1 or 0.5.
    """

    def __init__(self, embed_dim: int, has_class_token: bool, dim: int, scale: float) -> None:
        super().__init__()
        self.readout = nn.Sequential(nn.Linear(2 * embed_dim, embed_dim), nn.GELU()) if has_class_token else None
        self.proj = nn.Conv2d(embed_dim, dim, 1)
        self.resample: nn.Module
        if scale > 1:
            self.resample = nn.ConvTranspose2d(dim, dim, int(scale), stride=int(scale))
        else:
            self.resample = nn.Identity() if scale == 1 else nn.Conv2d(dim, dim, 3, stride=2, padding=1)
        self.out = nn.Conv2d(dim, dim, 3, padding=1, bias=False)

    def forward(self, maps: Tensor, class_token: Tensor | None) -> Tensor:
        """Turn maps (B, D, rows, columns) and a class token (B, D) into a map (B, dim, scale * rows, ...)."""
        if self.readout is not None and class_token is not None:
            tokens = maps.permute(0, 2, 3, 1)
            beside = class_token[:, None, None].expand_as(tokens)
            maps = self.readout(torch.cat([tokens, beside], dim=-1)).permute(0, 3, 1, 2)
        return self.out(self.resample(self.proj(maps)))


class Fusion(nn.Module):
    """One step from coarse to fine (section 3.1, as in RefineNet).

    Args:
        dim: Channels.
        fuses: Whether there is a coarser map to fuse with.
    """

    def __init__(self, dim: int, fuses: bool) -> None:
        super().__init__()
        self.before = ResidualConv(dim) if fuses else None
        self.after = ResidualConv(dim)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, maps: Tensor, coarser: Tensor | None, size: list[int]) -> Tensor:
        """Fuse maps (B, dim, h, w) with those of the level before, and bring them to the next size (height, width)."""
        if self.before is not None and coarser is not None:
            maps = resize(coarser, maps.shape[-2:]) + self.before(maps)
        return self.proj(resize(self.after(maps), size))


class ResidualConv(nn.Module):
    """Two convolutions with ReLU before each, and a residual connection."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, dim, h, w) to maps of the same shape."""
        return maps + self.conv2(self.conv1(maps.relu()).relu())
