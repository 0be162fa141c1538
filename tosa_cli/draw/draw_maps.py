"""Draws the maps of a model with a decoder: depth on one scale of metres, or classes in one set of colors."""

import colorsys
from typing import Any

import torch
from torch import Tensor

from tosa_cli.draw.panels import label, show
from tosa_cli.draw.predicted_maps import PredictedMaps, class_shares

EVERY_TOKEN = "every token in every layer"
AS_CONVERTED = "as converted"
"""What both encoders are called."""

DEPTH = "predicted depth in metres"
DEPTH_COLORS = "magma_r"
"""Near is bright, as in what is published about depth."""

SCALE_SHARES = {"depth": 0.22, "segmentation": 0.42}
"""Width of a panel for the scale alone, as a share of one for a map, by task."""

FAR_APART = 0.98
"""Quantile of the difference that is drawn the brightest: edges are far apart in few pixels."""

LABEL_END = 0.68
"""Where the words beside a color bar end, as a share of their panel."""

MAX_CLASSES = 8
"""Classes that are named beside a mask, the largest."""

GOLDEN_RATIO = 0.618033988749895


def num_panels(maps: PredictedMaps) -> int:
    """How many panels `draw_maps` fills."""
    return 2 if maps.dense is None else 4


def draw_maps(axes: Any, maps: PredictedMaps, pixels: Tensor, ratio: float, narrow: bool = False) -> None:
    """Draw the maps of one image in a row: their scale, both maps and how far apart they are.

    Args:
        axes: The panels, as many as `num_panels` says.
        maps: The maps (height, width).
        pixels: The image (height, width, 3) in 0..1.
        ratio: Height over width to draw it at.
        narrow: Whether the panel of the scale has no room for words.
    """
    if maps.task == "depth":
        _draw_depth(axes, maps, ratio, narrow)
    else:
        _draw_classes(axes, maps, pixels, ratio)


def class_color(number: int) -> tuple[float, float, float]:
    """Color of a class: neighbors in number are far apart in hue, and a number has one color in every picture."""
    return colorsys.hsv_to_rgb(number * GOLDEN_RATIO % 1, 0.75 if number % 2 else 0.55, 0.75 if number % 3 else 0.95)


def _draw_depth(axes: Any, maps: PredictedMaps, ratio: float, narrow: bool) -> None:
    shown = [maps.converted] if maps.dense is None else [maps.dense, maps.converted]
    low, high = min(each.min().item() for each in shown), max(each.max().item() for each in shown)
    titles = [EVERY_TOKEN, AS_CONVERTED] if maps.dense is not None else [DEPTH if narrow else "predicted"]
    style = {"cmap": DEPTH_COLORS, "vmin": low, "vmax": max(high, low + 1e-6)}
    for panel, each, title in zip(axes[1:], shown, titles, strict=False):
        extent = f"{each.min().item():.2f} to {each.max().item():.2f} m"
        image = show(panel, each, f"{title}\n{extent}", ratio, **style)
    _color_bar(axes[1], image)
    if not narrow:
        label(axes[0], DEPTH.replace(" in", "\nin"), x=LABEL_END)
    apart, mean = maps.disagreement, maps.depth_difference
    if apart is not None:
        top = max(apart.quantile(FAR_APART).item(), 1e-4)
        title = f"difference, black 0 to white {_percent(top)}\nmean {_percent(mean or 0.0)} of the depth"
        show(axes[3], apart, title, ratio, cmap="gray", vmin=0, vmax=top)


def _draw_classes(axes: Any, maps: PredictedMaps, pixels: Tensor, ratio: float) -> None:
    count = int(max(each.max() for each in (maps.converted, maps.dense) if each is not None)) + 1
    colors = torch.tensor([class_color(number) for number in range(count)])
    gray = pixels.mean(-1, keepdim=True)

    def painted(classes: Tensor) -> Tensor:
        return colors[classes] * (0.45 + 0.55 * gray)

    if maps.dense is None:
        show(axes[1], painted(maps.converted), "predicted", ratio)
    else:
        show(axes[1], painted(maps.dense), EVERY_TOKEN, ratio)
        show(axes[2], painted(maps.converted), AS_CONVERTED, ratio)
    _name_classes(axes[0], maps)
    apart = maps.disagreement
    if apart is not None:
        title = f"equal for {_percent(maps.equal_pixels or 0.0)} of the pixels;\nwhite: another class"
        show(axes[3], torch.maximum(apart[..., None], 0.35 * gray).expand(-1, -1, 3), title, ratio)


def _color_bar(axes: Any, image: Any) -> None:
    """Put the scale of a map to its left, as high as the map is, outside of its panel."""
    place = axes.inset_axes((-0.1, 0, 0.06, 1))
    place.set_in_layout(False)
    bar = axes.figure.colorbar(image, cax=place)
    bar.ax.yaxis.set_ticks_position("left")
    bar.ax.tick_params(labelsize=7, length=2, pad=2)
    bar.ax.invert_yaxis()  # what is near is below in most images
    bar.outline.set_linewidth(0.5)


def _name_classes(axes: Any, maps: PredictedMaps) -> None:
    from matplotlib.patches import Patch

    shares = class_shares(maps.converted)
    before = {} if maps.dense is None else class_shares(maps.dense)
    numbers = sorted({*shares, *before}, key=lambda number: -max(shares.get(number, 0), before.get(number, 0)))
    swatches = []
    for number in numbers[:MAX_CLASSES]:
        own, every = f"{shares.get(number, 0):.0%}", f"{before.get(number, 0):.0%}, "
        text = f"{number}: {own if maps.dense is None else every + own}"
        swatches.append(Patch(facecolor=class_color(number), label=text))
    title = "share of each\npredicted class" + (":\nevery token, converted" if maps.dense is not None else "")
    if len(numbers) > MAX_CLASSES:
        title += f"\n(and {len(numbers) - MAX_CLASSES} more)"
    legend = axes.legend(handles=swatches, loc="center right", fontsize=7, frameon=False, title=title)
    legend.get_title().set(fontsize=8, ha="right", multialignment="right")


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.2%}"
