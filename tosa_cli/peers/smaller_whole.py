"""A smaller input as a peer to measure against, for a whole model: its outputs are resized, whatever they are."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.model.runs.calls import Call, tensors_of
from tosa_cli.model.runs.find import ImageRun
from tosa_cli.model.runs.flops import counted_call
from tosa_cli.model.runs.run import Patches
from tosa_cli.peers.smaller import shrink

INTERPOLATES = "interpolate_pos_encoding"
"""What some models of transformers are told before they take images of another size."""


class SmallerWhole(nn.Module):
    """A dense model on smaller images; maps and patch tokens among its outputs are resized to those of larger images.

    Args:
        model: The dense model, or the part of it that takes images.
        img_size: The smaller image size (height, width) in pixels.
        grid: Patches (rows, columns) of such an image.
        patches: The tokens of an image of the model's own size.
        shapes: Shapes of the outputs for one image of the model's own size.
    """

    def __init__(
        self,
        model: nn.Module,
        img_size: tuple[int, int],
        grid: tuple[int, int],
        patches: Patches,
        shapes: Mapping[str, torch.Size],
    ) -> None:
        super().__init__()
        self.model, self.img_size, self.grid, self.patches = model, img_size, grid, patches
        self.shapes = dict(shapes)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """The outputs for images (B, C, height, width) by their names."""
        made = tensors_of(self.model(shrink(pixel_values, self.img_size), **_options(self.model)))
        return {name: self._resized(value, self.shapes.get(name)) for name, value in made.items()}

    def resized_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, D) of the smaller grid as those of the larger one, (B, N, D)."""
        first, last = self.patches.num_prefix_tokens, tokens.shape[1] - self.patches.num_last_tokens
        patches = tokens[:, first:last].transpose(1, 2).unflatten(2, self.grid)
        resized = _interpolated(patches, self.patches.grid_size).flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, :first], resized, tokens[:, last:]], dim=1)

    @property
    def settings(self) -> dict[str, Any]:
        """The smaller image size."""
        return {"img_size": list(self.img_size)}

    def _resized(self, value: Tensor, wanted: torch.Size | None) -> Tensor:
        """An output in the shape that the larger image's has, if it is a map or of all tokens; else as it is."""
        if wanted is None or value.shape[1:] == wanted[1:] or value.ndim != len(wanted) or value.ndim not in (3, 4):
            return value
        if value.ndim == 4:
            return _interpolated(value, tuple(wanted[2:])) if value.shape[1] == wanted[1] else value
        if value.shape[2] != wanted[2]:
            return _interpolated(value[:, None], tuple(wanted[1:]))[:, 0]
        around = self.patches.num_prefix_tokens + self.patches.num_last_tokens
        return self.resized_tokens(value) if value.shape[1] == self.grid[0] * self.grid[1] + around else value


def _interpolated(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps (B, C, h, w) in another size."""
    return F.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False).to(maps.dtype)


def _options(model: Any) -> dict[str, Any]:
    return {INTERPOLATES: True} if INTERPOLATES in inspect.signature(model.forward).parameters else {}


@torch.no_grad()
def make_smaller(
    model: nn.Module, found: ImageRun, patches: Patches, target_reduction: float
) -> tuple[SmallerWhole, float]:
    """Make the largest image of about the same shape save a share of a dense model's MACs, head and all.

    Args:
        model: The dense model, or the part of it that takes images.
        found: Its run.
        patches: The tokens of an image of its own size.
        target_reduction: Share of the MACs of the whole to save.

    Returns:
        The model on smaller images, and the share that it saves.

    Raises:
        UnsupportedModelError: If the model takes images of its own size alone.
        ConfigError: If no image saves as much.
    """
    weight = next(model.parameters())

    def call(size: tuple[int, int], options: dict[str, Any]) -> Call:
        image = torch.zeros(1, found.patches.in_channels, *size, device=weight.device, dtype=weight.dtype)
        return Call(model, (image,), options)

    own = call(patches.img_size, {})
    dense, (rows, columns) = counted_call(own), patches.grid_size
    patch_height, patch_width = patches.img_size[0] // rows, patches.img_size[1] // columns
    for fewer in range(1, rows):
        grid = (rows - fewer, max(1, round((rows - fewer) * columns / rows)))
        size = (grid[0] * patch_height, grid[1] * patch_width)
        smaller = call(size, _options(model))
        try:
            saved = 1 - counted_call(smaller) / dense
            if saved < target_reduction:
                continue
            smaller.outputs()
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} takes images of its own size alone ({' '.join(str(error).split())[:200]})."
            ) from error
        shapes = {name: value.shape for name, value in own.outputs().items()}
        return SmallerWhole(model, size, grid, patches, shapes), saved
    raise ConfigError(f"No smaller image saves {target_reduction:.1%} of the MACs.")
