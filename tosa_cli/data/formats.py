"""In which forms people have images with maps, and what is usual with each. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

DataFormat = Literal["folder", "nyu", "kitti"]


@dataclass(frozen=True)
class FormatDefaults:
    """What is usual with a data format.

    Attributes:
        depth_scale: Values of a 16-bit depth map for one metre.
        max_depth: Depths up to here count, in metres.
        crop: Part of a depth map that is evaluated: `none`, `eigen` or `garg`.
        full_size: Images keep their size: training takes crops of it, evaluation the whole. Otherwise they are brought
            to the model's size.
        bottom_crop: Size (height, width) to which an image is cut at its lower middle before all else.
        border: Part (left, top, right, bottom) of an image of 480x640 whose depth is learned: NYU's have a white frame.
    """

    depth_scale: float
    max_depth: float
    crop: Literal["none", "eigen", "garg"] = "none"
    full_size: bool = True
    bottom_crop: tuple[int, int] | None = None
    border: tuple[int, int, int, int] | None = None


FORMATS: dict[str, FormatDefaults] = {
    "folder": FormatDefaults(1000.0, 10.0, full_size=False),
    "nyu": FormatDefaults(1000.0, 10.0, "eigen", border=(43, 45, 608, 472)),
    "kitti": FormatDefaults(256.0, 80.0, "garg", bottom_crop=(352, 1216)),
}
