"""Panels of a picture: what all drawings share. Imports no matplotlib."""

from typing import Any

from torch import Tensor


def show(axes: Any, values: Tensor, title: str = "", ratio: float | None = None, **style: Any) -> Any:
    """Fill a panel.

    Args:
        axes: The panel.
        values: Colors (rows, columns, 3) in 0..1, or numbers (rows, columns).
        title: Line above it, or two.
        ratio: Height over width to draw it at; None draws squares.
        style: What else `imshow` is told, as `cmap`.

    Returns:
        What `imshow` gives, for a color bar.
    """
    rows, columns = values.shape[:2]
    aspect = "equal" if ratio is None else ratio * columns / rows
    if title:
        axes.set_title(title, fontsize=8, pad=3)
    return axes.imshow(values.numpy(), aspect=aspect, **{"interpolation": "nearest", **style})


def label(axes: Any, text: str, x: float = 0.98) -> None:
    """Write into an empty panel, up to `x` as a share of its width."""
    axes.text(x, 0.5, text, ha="right", va="center", fontsize=8, transform=axes.transAxes)
