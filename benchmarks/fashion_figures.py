"""Means, spreads and differences over the seeds of the Fashion-MNIST experiment, and its plot."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fashion_variants import LOW_RATE, PAPER_RATE, variants
from results_file import table

PLOT = "fashion_accuracy.png"
MARKERS = {"dense": "*", "tosa": "o", "calibrated": "s", "merge": "^", "prune": "v"}

Row = dict[str, Any]


def found(runs: dict[str, Row], name: str) -> dict[int, Row]:
    """The finished runs of a model, by seed."""
    return {run["seed"]: run for run in runs.values() if run["variant"] == name}


def spread(values: Sequence[float], sign: str = "", digits: int = 2) -> str:
    """Mean and standard deviation as text."""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def differences(rows: dict[int, Row], others: dict[int, Row], value: Callable[[Row], float]) -> list[float]:
    """Difference to another model, seed by seed, for the seeds that both have."""
    return [value(rows[seed]) - value(others[seed]) for seed in sorted(rows.keys() & others.keys())]


def top1(run: Row) -> float:
    """Top-1 after finetuning, in percent."""
    return run["top1"]


def comparisons(runs: dict[str, Row]) -> str:
    """The section with the differences between models."""
    rows = []
    for rate in (PAPER_RATE, LOW_RATE):
        tosa = f"ToSA {rate}, shared, all rows"
        low = "calibrated, -25.8%" if rate == LOW_RATE else f"calibrated, MACs of {rate}"
        pairs = [(tosa, other) for other in ("dense", f"random {rate}", f"previous {rate}")]
        pairs += [(tosa, f"{peer}, MACs of {rate}") for peer in ("merging", "pruning")]
        pairs += [(tosa, f"ToSA {rate}, {rest}") for rest in ("shared, 16 rows", "per-head, all rows")]
        pairs += [(low, other) for other in ("dense", tosa, f"merging, MACs of {rate}", f"pruning, MACs of {rate}")]
        for name, other in pairs:
            gained = differences(found(runs, name), found(runs, other), top1)
            if gained:
                names = [f"{each} ({_saved(runs, each)})" for each in (name, other)]
                each_seed = ", ".join(f"{gain:+.2f}" for gain in gained)
                rows.append([*names, spread(gained, "+"), each_seed, _verdict(gained)])
    if not rows:
        return ""
    return "\n\n".join(
        [
            "## Differences, seed by seed",
            "Top-1 of the first model less that of the second (MACs saved in brackets), both finetuned on the same "
            "images in the same order. Beyond the spread: the mean is farther from 0 than one standard deviation over "
            "the seeds. On so few seeds that is a hint, not a test.",
            table(["model", "against", "difference", "each seed", "beyond the spread"], rows),
        ]
    )


def _saved(runs: dict[str, Row], name: str) -> str:
    return f"{100 * next(iter(found(runs, name).values()))['reduction']:.1f} %"


def _verdict(values: list[float]) -> str:
    if len(values) < 2:
        return "one seed only"
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return ("ahead" if mean > 0 else "behind") if abs(mean) > deviation else "no"


def plotted(runs: dict[str, Row], folder: Path) -> str:
    """Draw accuracy against MACs, and the line of the page that shows it."""
    from matplotlib.figure import Figure

    if not runs:
        return ""
    folder.mkdir(exist_ok=True)
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for index, variant in enumerate(variants()):
        own = list(found(runs, variant.name).values())
        if not own:
            continue
        values = [run["top1"] for run in own]
        error = statistics.stdev(values) if len(values) > 1 else 0.0
        axes.errorbar(
            own[0]["gmacs"],
            statistics.mean(values),
            yerr=error,
            marker=MARKERS[variant.kind],
            color=f"C{index % 10}",
            markerfacecolor=f"C{index % 10}" if index < 10 else "none",
            linestyle="",
            capsize=3,
            label=variant.name,
        )
    axes.set_xlabel("GMACs for one image, all included")
    axes.set_ylabel("top-1 on the test images, %")
    axes.set_title("Fashion-MNIST, all models finetuned alike; mean and standard deviation over the seeds", fontsize=10)
    figure.legend(fontsize=6, loc="outside right upper")
    figure.savefig(folder / PLOT)
    return f"![Accuracy against GMACs](results/{PLOT})"
