"""Reading depth maps and masks, and telling a wrong one."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tosa_cli.data.images import SIXTEEN_BIT_MODES
from tosa_cli.errors import DataError
from tosa_cli.task import IGNORED_LABEL


def check_map(name: str, image: Image.Image, values: np.ndarray) -> None:
    """Check that a map is as large as its image.

    Raises:
        DataError: If it is not.
    """
    width, height = image.size
    if values.shape != (height, width):
        shape = "x".join(map(str, values.shape))
        raise DataError(f"{name} is {height}x{width} pixels, but its map {shape}: they must be of one size.")


def check_depth_unit(name: str, depth: np.ndarray, min_depth: float, max_depth: float) -> None:
    """Check that a depth map is in the unit that it is read in.

    Args:
        name: What to call it.
        depth: Depth in metres (height, width), 0 where nothing was measured.
        min_depth: Smallest depth that counts.
        max_depth: Largest depth that counts.

    Raises:
        DataError: If something was measured, but next to none of it lies in the range.
    """
    measured = depth[depth > 0]
    if not measured.size:
        return
    if ((measured > min_depth) & (measured < max_depth)).mean() < 0.01:
        raise DataError(
            f"The depth map of {name} runs from {measured.min():.4g} to {measured.max():.4g} m, with next to nothing "
            f"between {min_depth:g} and {max_depth:g} m: pass the values of one metre with --depth-scale, or another "
            f"--max-depth."
        )


def read_depth(path: Path, scale: float) -> np.ndarray:
    """Read a depth map.

    Args:
        path: A PNG of 16 bits, or a `.npy` of floating-point metres.
        scale: Values of the PNG for one metre.

    Returns:
        Depth in metres (height, width), 0 where nothing was measured or the value is not finite.

    Raises:
        DataError: If it is of another type, or a depth is below zero.
    """
    if path.suffix == ".npy":
        values = np.load(path, allow_pickle=False)
        if not np.issubdtype(values.dtype, np.floating):
            raise DataError(
                f"{path} holds {values.dtype}, but a .npy depth map holds floating-point metres: convert it, or save "
                f"it as a 16-bit PNG and pass --depth-scale."
            )
        depth = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    else:
        with Image.open(path) as opened:
            if opened.mode not in SIXTEEN_BIT_MODES:
                raise DataError(
                    f"{path} is an image of mode {opened.mode}, but a depth map is a greyscale PNG of 16 bits, or a "
                    f".npy in metres: a picture made of the depth to look at cannot be learned from."
                )
            depth = np.asarray(opened).astype(np.float32) / scale
    if depth.ndim != 2:
        raise DataError(f"{path} has the shape {depth.shape}, but a depth map is (height, width).")
    if depth.min() < 0:
        raise DataError(f"{path} has depths below zero (down to {depth.min():.4g}): a depth is in metres from 0 up.")
    return depth


def read_mask(path: Path, ignore_index: int | None = None) -> np.ndarray:
    """Read class indices (height, width) from a PNG of 8 bits.

    Args:
        path: The PNG.
        ignore_index: Value that is no class, besides 255, which it becomes.

    Raises:
        DataError: If it is of another type.
    """
    with Image.open(path) as opened:
        if opened.mode not in ("L", "P"):
            raise DataError(
                f"{path} is an image of mode {opened.mode}, but a mask is a PNG of 8 bits (greyscale or palette) "
                f"whose values are class indices."
            )
        labels = np.asarray(opened).astype(np.int64)
    return labels if ignore_index is None else np.where(labels == ignore_index, IGNORED_LABEL, labels)


Crop = Literal["none", "eigen", "garg"]


EIGEN_CROP = (45, 471, 41, 601)
"""Rows and columns of a 480x640 map of NYU Depth v2 that are measured (Eigen et al. 2014): top, bottom, left, right."""


GARG_CROP = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
"""The same for KITTI as shares of height and width (Garg et al. 2016)."""


def measured_pixels(depth: Tensor, min_depth: float, max_depth: float, crop: Crop = "none") -> Tensor:
    """Which pixels of a depth map count.

    Args:
        depth: True depth in metres (height, width); 0 where nothing was measured.
        min_depth: Depths from here up count, in metres.
        max_depth: Depths up to here count, in metres: the cap.
        crop: `eigen` for NYU Depth v2, `garg` for KITTI, or `none`.

    Returns:
        A mask (height, width).
    """
    valid = (depth > min_depth) & (depth < max_depth)
    if crop == "none":
        return valid
    height, width = depth.shape
    if crop == "eigen":
        # The crop is of maps of 480x640; of other sizes, the same shares.
        rows, columns = height / 480, width / 640
        top, bottom, left, right = (
            round(edge * scale) for edge, scale in zip(EIGEN_CROP, (rows, rows, columns, columns), strict=True)
        )
    else:
        top, bottom, left, right = (
            int(share * size) for share, size in zip(GARG_CROP, (height, height, width, width), strict=True)
        )
    inside = torch.zeros_like(valid)
    inside[top:bottom, left:right] = True
    return valid & inside
