"""At which image size the weights of a ViT were trained, as far as their positions tell."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm.layers import to_2tuple
from torch import Tensor

from tosa_cli.errors import CheckpointError
from tosa_cli.model.families import Backbone

TABLE = "relative_position_bias_table"
"""End of the names of tables of relative positions."""

_POSITIONS = ("pos_embed", "visual.positional_embedding", "preprocessor.pos_embed")
_PATCHES = ("patch_embed.proj.weight", "visual.conv1.weight", "preprocessor.patchifier.proj.weight")


def check_patches(state: Mapping[str, Tensor], model: Any, shown: str, architecture: str) -> None:
    """Check that patches are of the architecture's size, to which timm would resample others.

    Raises:
        CheckpointError: If they are not.
    """
    found, wanted = patch_kernel(state), model.patch_embed.proj.weight
    if found is None or found.ndim != wanted.ndim or found.shape[-2:] == wanted.shape[-2:]:
        return
    own, other = ("x".join(map(str, weight.shape[-2:])) for weight in (found, wanted))
    raise CheckpointError(
        f"{shown} has patches of {own} pixels, but {architecture} of {other}: name the architecture that it was "
        f"trained as with --architecture."
    )


def patch_kernel(state: Mapping[str, Tensor]) -> Tensor | None:
    """The weight of the patch embedding, (D, C, height, width) or flat; None if there is none."""
    return next((state[name] for name in _PATCHES if name in state), None)


def own_size(
    state: Mapping[str, Tensor], model: Backbone, asked: int | tuple[int, int] | None, shown: str
) -> tuple[tuple[int, int], str]:
    """The image size that the positions of weights are for.

    Args:
        state: The weights.
        model: The model as it is built without them, at the size of its architecture or configuration.
        asked: Image size in pixels that the user asked for, one number or (height, width).
        shown: What to call the weights.

    Returns:
        The size (height, width) in pixels, and what the user should know about it, which may be nothing.

    Raises:
        CheckpointError: If the positions do not tell it.
    """
    usual: tuple[int, int] = tuple(model.patch_embed.img_size)  # type: ignore[assignment]
    found, grid = _positions(state, model), model.patch_embed.grid_size
    if found is None:
        return usual, ""
    height, width = (extent // patches for extent, patches in zip(usual, grid, strict=True))
    if asked is not None:
        wanted = to_2tuple(asked)
        rows, columns = wanted[0] // height, wanted[1] // width
        if found.are_of(rows, columns):
            if rows == columns or (rows, columns) == tuple(grid) or found.side is None:
                return wanted, ""
            return wanted, (
                f"The positions of {shown} are taken for the {rows}x{columns} patches of --img-size as they are. If "
                f"they are of {found.side}x{found.side}, convert without --img-size, and load the model at that size."
            )
    if found.are_of(*grid):
        return usual, ""
    if found.side is None:
        raise CheckpointError(
            f"{shown} has {found.rows} positions of patches of {height}x{width} pixels, which are of no square image: "
            f"pass the size that it was trained at with --img-size HEIGHT,WIDTH."
        )
    own, patches = (found.side * height, found.side * width), f"{found.side}x{found.side}"
    if asked is not None:
        return own, f"The positions of {shown}, of {patches} patches, are resampled to the image size asked for."
    return own, (
        f"{shown} has positions of {patches} patches, so the model is for {own[0]}x{own[1]} pixels, and not for the "
        f"{usual[0]}x{usual[1]} that its architecture has: --img-size gives another size."
    )


@dataclass(frozen=True)
class _Positions:
    """Rows that tell positions: one a patch, or one for each distance of two patches."""

    rows: int
    of_pairs: bool

    def are_of(self, rows: int, columns: int) -> bool:
        """Whether they are so many as a grid has."""
        return self.rows == ((2 * rows - 1) * (2 * columns - 1) if self.of_pairs else rows * columns)

    @property
    def side(self) -> int | None:
        """Patches along the side of a square that has so many; None if none has."""
        root = math.isqrt(self.rows)
        side = (root + 1) // 2 if self.of_pairs else root
        return side if self.are_of(side, side) else None


def _positions(state: Mapping[str, Tensor], model: Any) -> _Positions | None:
    """The positions in weights, without those of other tokens; None if there are none, or they hold for any size."""
    rows, columns = model.patch_embed.grid_size
    found = next((state[name] for name in _POSITIONS if name in state), None)
    if found is not None and getattr(model, "pos_embed", None) is not None and found.ndim > 1:
        # DINOv2 with registers has a position of the class token, which timm has not.
        others = 1 if "register_tokens" in state else model.pos_embed.shape[1] - rows * columns
        return _Positions(found.shape[-2] - others, of_pairs=False)
    for key, value in model.state_dict().items():
        if key.endswith(TABLE) and key in state:
            others = len(value) - (2 * rows - 1) * (2 * columns - 1)
            return _Positions(len(state[key]) - others, of_pairs=True)
    return None
