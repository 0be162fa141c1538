"""The figure of an image: what its ToSA layers computed, by which scores, and what came out (paper, Fig. 4)."""

import io
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tosa_cli.draw.draw_maps import SCALE_SHARES, draw_maps, num_panels
from tosa_cli.draw.outputs import PANELS, ComparedOutput, draw_output
from tosa_cli.draw.panels import label, show
from tosa_cli.draw.predicted_maps import PredictedMaps
from tosa_cli.draw.selection_maps import SelectionMap, TokenMaps
from tosa_cli.errors import InputError

MAX_COLUMNS = 5
"""Layers beside each other; more of them go below."""

MIN_COLUMNS = 3
"""Columns that the legend below the layers takes."""

PANEL_INCHES = 1.9
LONE_PANEL_INCHES = 3.0
"""The same where there are no layers to draw."""

WIDE_RATIO = 0.6
"""Height over width below which panels are drawn larger, as little would be seen in them."""

MAX_PANEL_HEIGHT = 2.0
"""Height of a panel over its width; those of images that are taller still are narrower."""

TITLE = 0.34
"""Height of a title of two lines, in inches."""

GAP = 0.08
"""Room around a panel without a title, in inches."""

SKIPPED_COLOR = (0.10, 0.11, 0.22)
SKIPPED_SHARE = 0.72
"""A skipped patch is so much of that color, and for the rest its own gray."""

EDGE_COLOR = "#ffd447"


def draw_selection(
    pixels: Tensor,
    maps: Sequence[SelectionMap],
    tokens: TokenMaps | None = None,
    predicted: PredictedMaps | ComparedOutput | None = None,
    *,
    title: str = "",
    footer: str = "",
    ratio: float | None = None,
    names: tuple[str, str] = ("dense", "converted"),
    dpi: int = 120,
) -> bytes:
    """Draw one image: computed and skipped patches of each layer, its scores below, the features and the prediction.

    Args:
        pixels: The image as the model sees it, (height, width, 3) in 0..1.
        maps: What each layer selected.
        tokens: Features of the dense and of the converted model; None leaves them out.
        predicted: Maps of a model with a decoder, or an output of a whole model; None leaves them out.
        title: Line above the picture.
        footer: Line below it, such as what the scores mean.
        ratio: Height over width to draw the image at; None is its own.
        names: What the dense and the converted model are called.
        dpi: Dots an inch; a panel is `PANEL_INCHES` wide.

    Returns:
        A PNG.

    Raises:
        InputError: If matplotlib is not installed.
    """
    figure_class = require_matplotlib()
    ratio = ratio or pixels.shape[0] / pixels.shape[1]
    bands = _bands(maps)
    beside = not bands and tokens is None
    columns = 1 + max((len(band) for band in bands), default=0)
    columns = max(
        columns,
        MIN_COLUMNS if bands else 1,
        4 if tokens is not None else 1,
        _panels(predicted) + beside,
    )
    shares = [1.0] * columns
    if isinstance(predicted, PredictedMaps) and beside:
        shares[1] = SCALE_SHARES[predicted.task]
    wider = min(2.0, math.sqrt(max(1.0, WIDE_RATIO / ratio))) * min(1.0, MAX_PANEL_HEIGHT / ratio)
    width = (PANEL_INCHES if bands else LONE_PANEL_INCHES) * wider
    panel = width * ratio
    heights = []
    for band in bands:
        heights += [panel + TITLE, panel + GAP] if _has_scores(band) else [panel + TITLE]
    heights += [panel + TITLE] * ((tokens is not None or not bands) + (predicted is not None and not beside))
    size = (sum(shares) * max(width, PANEL_INCHES), sum(heights) + (2.2 if bands else 0.8) * TITLE)
    figure: Any = figure_class(figsize=size, dpi=dpi, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights, width_ratios=shares)
    for each in axes.flat:
        each.axis("off")
        # Or the layout would measure ticks that are not drawn.
        each.xaxis.set_visible(False)
        each.yaxis.set_visible(False)
    show(axes[0, 0], pixels, "the image", ratio)
    row = 0
    for band in bands:
        for column, layer in enumerate(band, start=1):
            draw_layer(axes[row, column], pixels, layer, ratio)
        row += 1
        if _has_scores(band):
            for column, layer in enumerate(band, start=1):
                _draw_scores(axes[row, column], layer, ratio)
            label(axes[row, 0], "score of each patch:\ndark low, bright high")
            row += 1
    if tokens is not None:
        _draw_tokens(axes[row], tokens, ratio, names)
        row += 1
    if isinstance(predicted, ComparedOutput):
        draw_output(axes[row][int(beside) :], predicted, pixels, ratio)
    elif predicted is not None:
        draw_maps(axes[row][int(beside) :], predicted, pixels, ratio, narrow=beside)
    if title:
        # A name may hold dollars, and bytes that are no characters.
        figure.suptitle(os.fsencode(title).decode(errors="replace"), fontsize=10, parse_math=False)
    if maps:
        _legend(figure, footer, maps)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_layer(axes: Any, pixels: Tensor, layer: SelectionMap, ratio: float | None = None) -> None:
    """Draw the computed patches of a layer as they are, and the skipped ones dimmed, with a line between them."""
    height, width = pixels.shape[:2]
    kept = _stretch(layer.kept, height, width)[..., None]
    gray = pixels.mean(-1, keepdim=True).expand(-1, -1, 3)
    dimmed = (1 - SKIPPED_SHARE) * gray + SKIPPED_SHARE * torch.tensor(SKIPPED_COLOR)
    computed = round(layer.kept.sum().item())
    title = f"layer {layer.layer}, keep rate {_rate(layer.keep_rate)}\n{computed} of {layer.kept.numel()} patches"
    show(axes, kept * pixels + (1 - kept) * dimmed, title, ratio)
    _draw_edges(axes, layer.kept > 0, height, width)


def require_matplotlib() -> Any:
    """matplotlib's `Figure`, which needs no display.

    Raises:
        InputError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("Drawing pictures needs matplotlib: run `pip install 'tosa-cli[plot]'`.") from None
    return Figure


def _panels(predicted: PredictedMaps | ComparedOutput | None) -> int:
    if predicted is None:
        return 1
    return PANELS if isinstance(predicted, ComparedOutput) else num_panels(predicted)


def _bands(maps: Sequence[SelectionMap]) -> list[Sequence[SelectionMap]]:
    """Layers in rows of about equal length."""
    if not maps:
        return []
    length = math.ceil(len(maps) / math.ceil(len(maps) / MAX_COLUMNS))
    return [maps[start : start + length] for start in range(0, len(maps), length)]


def _has_scores(band: Sequence[SelectionMap]) -> bool:
    return any(layer.scores is not None for layer in band)


def _draw_scores(axes: Any, layer: SelectionMap, ratio: float) -> None:
    if layer.scores is None:
        return
    known = layer.scores[~layer.scores.isnan()]
    # A few patches stand far out in most layers; a scale that reached up to them would make all others one color.
    low, high = known.quantile(0.02).item(), known.quantile(0.98).item()
    show(axes, layer.scores, ratio=ratio, cmap="viridis", vmin=low, vmax=max(high, low + 1e-12))


def _draw_tokens(axes: Any, tokens: TokenMaps, ratio: float, names: tuple[str, str]) -> None:
    label(axes[0], "final patch tokens,\nfirst three principal\ncomponents as colors")
    show(axes[1], tokens.dense, names[0], ratio)
    show(axes[2], tokens.converted, names[1], ratio)
    low = min(0.9, tokens.cosine.min().item())
    means = f"patches {tokens.patch_cosine:.3f}"
    if tokens.class_cosine is not None:
        means += f", class {tokens.class_cosine:.3f}"
    title = f"cosine, black {low:.2f} to light 1\n{means}"
    show(axes[3], tokens.cosine, title, ratio, cmap="magma", vmin=low, vmax=1)


def _draw_edges(axes: Any, kept: Tensor, height: int, width: int) -> None:
    """Draw lines between kept and skipped patches, (rows, columns)."""
    from matplotlib.collections import LineCollection

    rows, columns = kept.shape
    across, down = kept[:, 1:] != kept[:, :-1], kept[1:] != kept[:-1]
    lines = [[(column + 1, row), (column + 1, row + 1)] for row, column in across.nonzero().tolist()]
    lines += [[(column, row + 1), (column + 1, row + 1)] for row, column in down.nonzero().tolist()]
    # matplotlib's first pixel is centered at 0.
    lines = [[(x * width / columns - 0.5, y * height / rows - 0.5) for x, y in line] for line in lines]
    axes.add_collection(LineCollection(lines, colors=EDGE_COLOR, linewidths=0.5))


def _legend(figure: Any, footer: str, maps: Sequence[SelectionMap]) -> None:
    from matplotlib.patches import Patch

    heads = any(((layer.kept > 0) & (layer.kept < 1)).any() for layer in maps)
    skipped = "skipped: bypasses the layer" + ("; in between: skipped by some heads" if heads else "")
    swatches = [
        Patch(facecolor="white", edgecolor="black", label="computed: as in the image"),
        Patch(facecolor=SKIPPED_COLOR, edgecolor=EDGE_COLOR, label=skipped),
    ]
    legend = figure.legend(
        handles=swatches, loc="outside lower center", ncols=2, fontsize=8, frameon=False, title=footer or None
    )
    legend.get_title().set_fontsize(7)


def _stretch(patches: Tensor, height: int, width: int) -> Tensor:
    """Patches (rows, columns) as pixels (height, width), each patch as large as any other."""
    rows = torch.arange(height) * patches.shape[0] // height
    columns = torch.arange(width) * patches.shape[1] // width
    return patches[rows][:, columns]


def _rate(rate: float) -> str:
    return f"{rate:.3f}".rstrip("0").rstrip(".")
