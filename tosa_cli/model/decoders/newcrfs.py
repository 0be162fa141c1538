"""Neural window fully-connected CRFs (Yuan et al. 2022, arXiv 2203.01502) on a plain ViT.

A plain ViT has one map where the paper's encoder has four: the simple feature pyramid of ViTDet (Li et al. 2022, arXiv
2203.16527, section 3) makes them of the last one. In place of batch norm there is layer norm, as in that pyramid, so
that nothing depends on what else is in a batch.
"""

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d, Mlp, trunc_normal_
from timm.models.swin_transformer import get_relative_position_index, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.model.decoders.base import Decoder, DecoderFeatures, resize

DIM = 128
"""Width at the finest level; it doubles with each coarser one."""

LEVELS = 4
WINDOW = 7
HEAD_DIM = 32
POOL_SIZES = (1, 2, 3, 6)
"""Rows and columns of the pooled maps of the pyramid pooling module (Zhao et al. 2017)."""


class NewcrfsDecoder(Decoder):
    """Window CRFs at four levels, from coarse to fine: features give the pairwise potentials, the level before the map.

    The coarsest map comes from a pyramid pooling module. Between two levels pixels are rearranged into four times as
    many (paper, section 3.4).
    """

    reads_norm = True

    def __init__(self, embed_dim: int, has_class_token: bool, out_channels: int, dim: int = 0) -> None:
        super().__init__(embed_dim, has_class_token, out_channels, dim)
        dim = dim or DIM
        self.pyramid = SimpleFeaturePyramid(embed_dim, 2 * dim)
        self.pooling = PyramidPooling(2 * dim, 4 * dim)
        # From fine to coarse; a coarser level hands on a quarter of its channels.
        widths = [dim * 2**level for level in range(LEVELS)]
        handed = [width // 4 for width in widths[1:]] + [4 * dim]
        self.crfs = nn.ModuleList(
            WindowCrfs(2 * dim, before, width) for before, width in zip(handed, widths, strict=True)
        )
        self.shuffle = nn.PixelShuffle(2)
        self.head = nn.Conv2d(dim, out_channels, 3, padding=1)

    def forward(self, features: DecoderFeatures) -> Tensor:
        """Turn features into a map (B, out_channels, 4 * rows, 4 * columns)."""
        levels = self.pyramid(features.maps[-1])
        maps = self.pooling(levels[-1])
        for level in reversed(range(LEVELS)):
            if level < LEVELS - 1:
                # With an odd number of patches the two differ by a pixel.
                maps = resize(self.shuffle(maps), levels[level].shape[-2:])
            maps = self.crfs[level](levels[level], maps)
        return self.head(maps)


class SimpleFeaturePyramid(nn.Module):
    """Maps of four scales (4, 2, 1 and 0.5 times the patches) out of the last one.

    Args:
        embed_dim: Width D of the tokens.
        dim: Channels of the maps.
    """

    def __init__(self, embed_dim: int, dim: int) -> None:
        super().__init__()
        half, quarter = max(1, embed_dim // 2), max(1, embed_dim // 4)
        scales: list[tuple[nn.Module, int]] = [
            (
                nn.Sequential(
                    nn.ConvTranspose2d(embed_dim, half, 2, stride=2),
                    LayerNorm2d(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, stride=2),
                ),
                quarter,
            ),
            (nn.ConvTranspose2d(embed_dim, half, 2, stride=2), half),
            (nn.Identity(), embed_dim),
            (nn.MaxPool2d(2, ceil_mode=True), embed_dim),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                nn.Conv2d(width, dim, 1, bias=False),
                LayerNorm2d(dim),
                nn.Conv2d(dim, dim, 3, padding=1, bias=False),
                LayerNorm2d(dim),
            )
            for scale, width in scales
        )

    def forward(self, maps: Tensor) -> list[Tensor]:
        """Turn maps (B, D, rows, columns) into maps of `dim` channels, from fine to coarse."""
        return [level(maps) for level in self.levels]


class PyramidPooling(nn.Module):
    """Beside each pixel, means over the whole map and over ever smaller parts of it; then a convolution.

    Args:
        dim: Channels that come in, and of each mean.
        out_dim: Channels that go out.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.means = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Conv2d(dim, dim, 1, bias=False), LayerNorm2d(dim), nn.ReLU())
            for size in POOL_SIZES
        )
        width = dim * (1 + len(POOL_SIZES))
        self.out = nn.Sequential(nn.Conv2d(width, out_dim, 3, padding=1, bias=False), LayerNorm2d(out_dim), nn.ReLU())

    def forward(self, maps: Tensor) -> Tensor:
        """Turn maps (B, dim, h, w) into maps (B, out_dim, h, w)."""
        means = [resize(mean(maps), maps.shape[-2:]) for mean in self.means]
        return self.out(torch.cat([maps, *means], dim=1))


class WindowCrfs(nn.Module):
    """One level: two steps of CRF optimisation, in windows and in shifted windows (section 3.3).

    Args:
        feature_dim: Channels of the features.
        before_dim: Channels of the map of the level before.
        dim: Width of the level.
    """

    def __init__(self, feature_dim: int, before_dim: int, dim: int) -> None:
        super().__init__()
        self.proj_features = nn.Conv2d(feature_dim, dim, 3, padding=1)
        self.proj_map = nn.Conv2d(before_dim, dim, 3, padding=1)
        self.steps = nn.ModuleList(CrfStep(dim, shift) for shift in (0, WINDOW // 2))
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Tensor, before: Tensor) -> Tensor:
        """Refine the map before (B, before_dim, h, w) by features (B, feature_dim, h, w) to a map (B, dim, h, w)."""
        features = self.proj_features(features).permute(0, 2, 3, 1)
        maps = self.proj_map(before).permute(0, 2, 3, 1)
        for step in self.steps:
            maps = step(features, maps)
        return self.norm(maps).permute(0, 3, 1, 2)


class CrfStep(nn.Module):
    """One step: within a window each pixel of the map is told what all others say.

    The unary potential is the map itself; the pairwise one weighs the map of the others by the affinity of the
    features, query and key, plus their relative position (equations 4 to 7). A layer behind it is the optimisation.

    Args:
        dim: Width.
        shift: By how many pixels the windows are shifted.
    """

    position_bias: Tensor
    position_index: Tensor

    def __init__(self, dim: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.num_heads = max(1, dim // HEAD_DIM)
        self.norm_features, self.norm_map, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.position_bias = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, self.num_heads))
        trunc_normal_(self.position_bias, std=0.02)
        self.register_buffer("position_index", get_relative_position_index(WINDOW, WINDOW), persistent=False)

    def forward(self, features: Tensor, maps: Tensor) -> Tensor:
        """Refine maps (B, h, w, dim) by features (B, h, w, dim)."""
        maps = maps + self._messages(self.norm_features(features), self.norm_map(maps))
        return maps + self.mlp(self.norm_mlp(maps))

    def _messages(self, features: Tensor, maps: Tensor) -> Tensor:
        batch, height, width = maps.shape[:3]
        # Pad to whole windows, then shift; a region number a pixel tells what belongs together after that.
        bottom, right = -height % WINDOW, -width % WINDOW
        regions = self._regions(height, width, (bottom, right), maps)
        features, maps = (F.pad(values, (0, 0, 0, right, 0, bottom)) for values in (features, maps))
        if self.shift:
            features, maps = (values.roll((-self.shift, -self.shift), dims=(1, 2)) for values in (features, maps))
        windows = [window_partition(values, (WINDOW, WINDOW)).flatten(1, 2) for values in (features, maps)]
        query, key = self._heads(self.query_key(windows[0]), 2)
        (value,) = self._heads(windows[1], 1)
        bias = self.position_bias[self.position_index.flatten()].view(WINDOW**2, WINDOW**2, -1).permute(2, 0, 1)
        told = F.scaled_dot_product_attention(query, key, value, attn_mask=self._mask(regions, bias, batch))
        told = self.proj(told.transpose(1, 2).flatten(2)).unflatten(1, (WINDOW, WINDOW))
        told = window_reverse(told, (WINDOW, WINDOW), height + bottom, width + right)
        if self.shift:
            told = told.roll((self.shift, self.shift), dims=(1, 2))
        return told[:, :height, :width]

    def _heads(self, values: Tensor, parts: int) -> Sequence[Tensor]:
        """Split values (W, P, parts * dim) into `parts` tensors (W, heads, P, head_dim)."""
        return values.unflatten(-1, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _regions(self, height: int, width: int, padding: tuple[int, int], like: Tensor) -> Tensor:
        """Which pixels may see each other: numbers (windows, P); those that were padded have one of their own."""
        rows = self._stripes(height, padding[0], like.device)
        columns = self._stripes(width, padding[1], like.device)
        numbers = (4 * rows[:, None] + columns[None, :])[None, :, :, None]
        return window_partition(numbers, (WINDOW, WINDOW)).flatten(1)

    def _stripes(self, size: int, padding: int, device: torch.device) -> Tensor:
        """Numbers of the rows or columns after the shift: 0, 1 what the shift brought round, 2 padding."""
        numbers = torch.zeros(size + padding, dtype=torch.long, device=device)
        numbers[size:] = 2
        if self.shift:
            numbers[: self.shift] = 1
            numbers = numbers.roll(-self.shift)
        return numbers

    def _mask(self, regions: Tensor, bias: Tensor, batch: int) -> Tensor:
        """What is added to the affinities: (batch * windows, heads, P, P)."""
        apart = regions[:, None, :] != regions[:, :, None]
        mask = bias[None].masked_fill(apart[:, None], float("-inf"))
        return mask.repeat(batch, 1, 1, 1)
