"""`tosa bench --sweep`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tosa_cli.cli import console
from tosa_cli.cli.timing import Setup, say_conditions, spread
from tosa_cli.data.images import ImgSize
from tosa_cli.draw.plot import check_can_plot, plot_sweep
from tosa_cli.measure.sweep import SweepRow, sweep_speed, sweep_variants, whole_variants
from tosa_cli.progress import counted


def bench_sweep(
    setup: Setup,
    keep_rates: Sequence[float],
    batch_sizes: Sequence[int],
    img_sizes: Sequence[ImgSize],
    plot: Path | None,
    overwrite: bool,
) -> None:
    """Time every combination of keep rate, batch size and image size against the dense model.

    Args:
        setup: What is measured and how.
        keep_rates: Keep rates, each for all ToSA layers.
        batch_sizes: Images a batch.
        img_sizes: Image sizes; None is the model's own, the only one of a whole model.
        plot: A PNG to draw; None draws none.
        overwrite: Whether the PNG may replace another.

    Raises:
        ConfigError: If another size is asked for of a whole model.
        InputError: If a plot is asked for and matplotlib is not installed.
        OutputError: If the plot cannot be written.
    """
    if plot is not None:
        check_can_plot(plot, overwrite)
    whole = setup.load_whole()[0] if setup.is_whole else None
    groups = len(batch_sizes) * len(img_sizes)
    combinations = counted(groups * len(keep_rates), "combination")
    console.say(f"Timing {counted(setup.rounds, 'turn')} of each model, {combinations} ...")
    with console.progress("Timing") as bar:
        bar.start(groups * (len(keep_rates) + 1) * setup.rounds, 0)
        how: dict[str, Any] = {"rounds": setup.rounds, "compiled": setup.compile, "advance": bar.advance}
        if whole is None:
            report = sweep_speed(setup.load, keep_rates=keep_rates, batch_sizes=batch_sizes, img_sizes=img_sizes, **how)
        else:
            report = sweep_variants([whole_variants(whole, keep_rates)], batch_sizes, **how)
    if plot is not None:
        plot_sweep(report, plot)
    if setup.json:
        console.print_json({"model": setup.name, **report.to_dict()})
    else:
        console.print_table(
            f"{setup.name}, in turns with the dense model",
            ["rate", "size", "batch", "dense ms", "tosa ms", "spread ms", "speed", "ideal", "share"],
            [_row(row) for row in report.rows],
        )
        console.say("share: the speed reached, of the ideal one that the MACs alone would give.")
        say_conditions(report)
    if plot is not None:
        console.say(f"Wrote {plot}.")


def _row(row: SweepRow) -> list[str]:
    return [
        f"{row.keep_rate:g}",
        f"{row.img_size[0]}x{row.img_size[1]}",
        str(row.batch_size),
        f"{row.dense.median_s * 1e3:.1f}",
        f"{row.tosa.median_s * 1e3:.1f}",
        spread(row.tosa),
        f"{row.speedup:.2f}x",
        f"{row.ideal_speedup:.2f}x",
        f"{row.share_of_ideal:.0%}",
    ]
