"""Outputs of a whole model for one image, beside those with every token computed: maps, masks, boxes or classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tosa_cli.draw.draw_maps import AS_CONVERTED, DEPTH_COLORS, EVERY_TOKEN, FAR_APART, class_color
from tosa_cli.draw.panels import label, show

Form = Literal["depth", "map", "mask", "boxes", "classes"]

PANELS = 4
"""Panels that an output fills: what it is, both outputs, and how far apart they are."""

SURE = 0.3
"""Boxes with at least this score are drawn, and the best one."""

MOST_BOXES, MOST_CLASSES = 20, 5
"""So many boxes, and so many classes, are drawn of each model."""

COLORS = ("#7a7a7a", "#c23b6b")
"""Of what is with every token, and as converted."""


@dataclass(frozen=True)
class ComparedOutput:
    """An output of one image.

    Attributes:
        name: What the model calls it.
        form: What it is drawn as.
        dense: With every token computed: a map of numbers or of classes (rows, columns), boxes (Q, 4: centre, width,
            height, as shares of the image), or probabilities of classes (C,).
        converted: The same as converted.
        scores: Of boxes the scores (Q,) of both.
        labels: Names of classes.
    """

    name: str
    form: Form
    dense: Tensor
    converted: Tensor
    scores: tuple[Tensor, Tensor] | None = None
    labels: Mapping[int, str] | None = None


def compare_one(
    dense: Mapping[str, Tensor], converted: Mapping[str, Tensor], labels: Mapping[int, str] | None = None
) -> ComparedOutput | None:
    """The output of one image that people look at; None where there is none to be drawn, as of embeddings.

    Args:
        dense: Outputs with every token computed, by name; each of one image.
        converted: Outputs as converted.
        labels: Names of classes.
    """
    pairs = {
        name: (dense[name][0].float().cpu(), value[0].float().cpu()) for name, value in converted.items() if value.ndim
    }
    if "predicted_depth" in pairs:
        return ComparedOutput("predicted_depth", "depth", *pairs["predicted_depth"])
    if "heatmaps" in pairs:
        one, other = (each.amax(0) for each in pairs["heatmaps"])
        return ComparedOutput("heatmaps", "map", one, other)
    logits = pairs.get("logits")
    if "pred_boxes" in pairs and logits is not None:
        one, other = (each.sigmoid().amax(-1) for each in logits)
        return ComparedOutput("pred_boxes", "boxes", *pairs["pred_boxes"], scores=(one, other))
    if logits is None:
        return None
    if logits[0].ndim == 3:
        one, other = (each.argmax(0) for each in logits)
        return ComparedOutput("logits", "mask", one, other, labels=labels)
    if logits[0].ndim == 2 and min(logits[0].shape) > 1:
        one, other = (each.sigmoid() for each in logits)
        return ComparedOutput("logits", "map", one, other)
    if logits[0].ndim == 1:
        one, other = (each.softmax(0) for each in logits)
        return ComparedOutput("logits", "classes", one, other, labels=labels)
    return None


def draw_output(axes: Any, output: ComparedOutput, pixels: Tensor, ratio: float) -> None:
    """Draw an output of one image in a row.

    Args:
        axes: `PANELS` panels.
        output: The output.
        pixels: The image (height, width, 3) in 0..1.
        ratio: Height over width to draw it at.
    """
    label(axes[0], output.name.replace("_", " "))
    if output.form in ("depth", "map"):
        _draw_map(axes, output, ratio)
    elif output.form == "mask":
        _draw_mask(axes, output, pixels, ratio)
    elif output.form == "boxes":
        _draw_boxes(axes, output, pixels, ratio)
    else:
        _draw_classes(axes, output)


def _draw_map(axes: Any, output: ComparedOutput, ratio: float) -> None:
    both = (output.dense, output.converted)
    low, high = min(each.min().item() for each in both), max(each.max().item() for each in both)
    style = {"cmap": DEPTH_COLORS if output.form == "depth" else "viridis", "vmin": low, "vmax": max(high, low + 1e-6)}
    for panel, each, title in zip(axes[1:], both, (EVERY_TOKEN, AS_CONVERTED), strict=False):
        show(panel, each, f"{title}\n{each.min().item():.3g} to {each.max().item():.3g}", ratio, **style)
    apart = (output.converted - output.dense).abs()
    top = max(apart.quantile(FAR_APART).item() if apart.numel() < 1 << 24 else apart.max().item(), 1e-6)
    title = f"difference, black 0 to white {top:.2g}\nmean {apart.mean().item():.2g}"
    show(axes[3], apart, title, ratio, cmap="gray", vmin=0, vmax=top)


def _draw_mask(axes: Any, output: ComparedOutput, pixels: Tensor, ratio: float) -> None:
    count = int(max(output.dense.max(), output.converted.max())) + 1
    colors = torch.tensor([class_color(number) for number in range(count)])
    show(axes[1], colors[output.dense], EVERY_TOKEN, ratio)
    show(axes[2], colors[output.converted], AS_CONVERTED, ratio)
    equal = (output.dense == output.converted).float()
    title = f"equal for {equal.mean().item():.1%} of the pixels;\nwhite: another class"
    show(axes[3], 1 - equal, title, ratio, cmap="gray", vmin=0, vmax=1)


def _draw_boxes(axes: Any, output: ComparedOutput, pixels: Tensor, ratio: float) -> None:
    from matplotlib.patches import Rectangle

    assert output.scores is not None
    height, width = pixels.shape[:2]
    sides = zip((EVERY_TOKEN, AS_CONVERTED), (output.dense, output.converted), output.scores, COLORS, strict=True)
    for panel, (title, boxes, scores, color) in zip(axes[1:], sides, strict=False):
        order = scores.argsort(descending=True)[:MOST_BOXES].tolist()
        sure = [place for rank, place in enumerate(order) if not rank or scores[place] >= SURE]
        show(panel, pixels, f"{title}\n{len(sure)} boxes, the surest {scores[sure[0]].item():.2f}", ratio)
        for x, y, w, h in boxes[sure].tolist():
            corner = ((x - w / 2) * width, (y - h / 2) * height)
            panel.add_patch(Rectangle(corner, w * width, h * height, fill=False, edgecolor=color, linewidth=1.2))


def _draw_classes(axes: Any, output: ComparedOutput) -> None:
    best = output.dense.topk(min(MOST_CLASSES, len(output.dense))).indices.tolist()
    own = output.converted.topk(min(MOST_CLASSES, len(output.dense))).indices.tolist()
    shown = list(dict.fromkeys([*best, *own]))[::-1]
    panel, places = axes[1], range(len(shown))
    panel.axis("on")
    panel.set_title("probability", fontsize=8, pad=3)
    for shift, values, color, title in zip(
        (0.2, -0.2), (output.dense, output.converted), COLORS, ("every token", "converted"), strict=True
    ):
        panel.barh([place + shift for place in places], values[shown].tolist(), height=0.4, color=color, label=title)
    names = [(output.labels or {}).get(number, str(number)) for number in shown]
    panel.set_yticks(list(places), [name.partition(",")[0][:24] for name in names], fontsize=7)
    panel.tick_params(axis="x", labelsize=7)
    handles, titles = panel.get_legend_handles_labels()
    axes[2].legend(handles, titles, loc="center left", fontsize=7, frameon=False)
