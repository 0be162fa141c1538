"""Pictures of what was measured. matplotlib is an extra and imported only here, when a picture is drawn."""

import io
import os
from pathlib import Path
from typing import Any

from tosa_cli.errors import InputError, OutputError
from tosa_cli.hub.writing import write_file
from tosa_cli.measure.sweep import SweepReport, SweepRow
from tosa_cli.progress import counted


def check_can_plot(path: Path, overwrite: bool) -> None:
    """Check before any long work that a picture can be drawn and written.

    Raises:
        InputError: If matplotlib is not installed.
        OutputError: If the file is no .png, exists already, or its folder does not exist or cannot be written to.
    """
    _new_figure()
    if path.suffix.lower() != ".png":
        raise OutputError(f"--plot writes PNG, but {path} does not end in .png: name a file such as speed.png.")
    if path.is_dir():
        raise OutputError(f"{path} is a folder, but --plot needs a file: name one such as {path / 'speed.png'}.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} already exists. Choose another name, or pass --overwrite.")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise OutputError(f"{path} cannot be written: {path.parent} is no folder that you can write to.")


def plot_sweep(report: SweepReport, path: Path) -> None:
    """Draw speedup against keep rate: a line a batch and image size with its spread, and the ideal, dashed.

    Args:
        report: What to draw.
        path: The PNG to write; an old one is replaced once the new one is whole.

    Raises:
        InputError: If matplotlib is not installed.
        OutputError: If the file cannot be written.
    """
    figure, axes = _new_figure()
    for i, ((height, width), rows_of_size) in enumerate(_by_size(report.rows).items()):
        rates = sorted({row.keep_rate: row.ideal_speedup for row in rows_of_size}.items())
        axes.plot(*zip(*rates, strict=True), "--", color=f"C{i}", alpha=0.6, label=f"{height}x{width}, ideal (MACs)")
    lines: dict[tuple[int, int, int], list[SweepRow]] = {}
    for row in report.rows:
        lines.setdefault((*row.img_size, row.batch_size), []).append(row)
    for i, ((height, width, batch_size), rows) in enumerate(lines.items()):
        rows = sorted(rows, key=lambda row: row.keep_rate)
        speed = [row.speedup for row in rows]
        spread = [
            [row.speedup - row.speedup_min for row in rows],
            [row.speedup_max - row.speedup for row in rows],
        ]
        axes.errorbar(
            [row.keep_rate for row in rows],
            speed,
            yerr=spread,
            marker="o",
            capsize=3,
            color=f"C{i + len(_by_size(report.rows))}",
            label=f"{height}x{width}, batch {batch_size}",
        )
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_xlabel("keep rate")
    axes.set_ylabel("speed against the dense model")
    how = "compiled" if report.compile else "eager"
    axes.set_title(
        f"{report.device}, {report.dtype}, {counted(report.threads, 'thread')}, torch {report.torch}, {how}; "
        f"median and spread of {counted(report.rounds, 'turn')}",
        fontsize=8,
    )
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_error_curves(curves: list[Any], path: Path) -> None:
    """Draw the error curve of each layer: what selecting tokens in it alone does to the final tokens.

    Args:
        curves: Of type `ErrorCurve`.
        path: The PNG to write; an old one is replaced once the new one is whole.

    Raises:
        InputError: If matplotlib is not installed.
        OutputError: If the file cannot be written.
    """
    figure, axes = _new_figure()
    for i, curve in enumerate(curves):
        shade = str(0.8 * i / max(1, len(curves) - 1))
        axes.semilogy(curve.keep_rates, curve.errors, marker="o", color=shade)
        axes.annotate(
            curve.name, (curve.keep_rates[-1], curve.errors[-1]), textcoords="offset points", xytext=(-12, -3)
        )
    axes.set_xlabel("keep rate of the layer")
    axes.set_ylabel("1 - cosine of final tokens to the dense model's")
    axes.set_title("Each layer alone; the numbers at the lines are the layers'", fontsize=10)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_file(path, content.getvalue())


def _by_size(rows: list[SweepRow]) -> dict[tuple[int, int], list[SweepRow]]:
    sizes: dict[tuple[int, int], list[SweepRow]] = {}
    for row in rows:
        sizes.setdefault(row.img_size, []).append(row)
    return sizes


def _new_figure() -> tuple[Any, Any]:
    """A figure and its axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("--plot needs matplotlib: run `pip install 'tosa-cli[plot]'`, or leave it out.") from None
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    return figure, figure.add_subplot()
