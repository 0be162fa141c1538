"""How error curves are shown, by `convert --layers auto` and `inspect --data-dir`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tosa_cli.cli import console
from tosa_cli.config import TosaConfig

if TYPE_CHECKING:
    from tosa_cli.fit.budget import ErrorCurve


def show_curves(curves: "Sequence[ErrorCurve]", config: TosaConfig | None = None) -> None:
    """Show the curves, and what was chosen from them."""
    chosen = config.keep_rates if config is not None else {}
    rows = []
    for curve in curves:
        row = [curve.name, *(f"{error * 1000:.2f}" for error in curve.errors)]
        if config is not None:
            row.append(str(chosen.get(curve.layers[0], "-")))
        rows.append(row)
    console.print_table(
        "1000 x (1 - cosine of the final tokens), each layer alone, by keep rate",
        ["layer", *(str(rate) for rate in curves[0].keep_rates), *(["chosen"] if config is not None else [])],
        rows,
    )
