"""How the choice of layers and keep rates is shown, by `convert --layers auto` and `inspect --data-dir`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tosa_cli.cli import console
from tosa_cli.config import TosaConfig
from tosa_cli.progress import counted

if TYPE_CHECKING:
    from tosa_cli.fit.budget import ErrorCurve
    from tosa_cli.fit.rates import RateSearch


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


def show_search(search: "RateSearch") -> None:
    """Show the keep rates that were found on the whole model, what they gain, and how sure what held is."""
    from tosa_cli.hub.measured import describe_held

    console.print_table(
        "Keep rates found on the whole model",
        ["layer", *map(str, search.keep_rates)],
        [["keep rate", *(f"{rate:.2f}" for rate in search.keep_rates.values())]],
    )
    console.say(
        f"1000 x (1 - cosine of the final tokens) is {1000 * search.error:.2f} on {counted(search.images, 'image')}, "
        f"and {1000 * search.steady_error:.2f} where every layer that chooses merges as many, which takes longer."
    )
    if search.held is not None:
        console.say(describe_held(search.held.to_dict()))
