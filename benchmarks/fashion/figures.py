"""Means, spreads and differences over the seeds of the Fashion-MNIST experiment, and its plot."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fashion.variants import KEEP_RATES, LOW_MATCHED, LOW_RATE, tosa, variants
from benchmarks.writer import table

PLOT, TEACHER_PLOT = "fashion_accuracy.png", "fashion_teacher.png"
MARKERS = {"dense": "*", "tosa": "o", "matched": "s", "merge": "^", "prune": "v"}

Row = dict[str, Any]


def best_rate(rates: dict[str, Row]) -> float:
    """The learning rate with which the dense model was best."""
    return max((row for row in rates.values() if row["variant"] == "dense"), key=lambda row: row["top1"])["lr"]


def found(runs: dict[str, Row], name: str) -> dict[int, Row]:
    """The finished runs of a model, by seed, the least first."""
    own = {run["seed"]: run for run in runs.values() if run["variant"] == name}
    return dict(sorted(own.items()))


def spread(values: Sequence[float], sign: str = "", digits: int = 2) -> str:
    """Mean and standard deviation as text."""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def cost(own: dict[int, Row]) -> tuple[str, str]:
    """GMACs, and the share of the dense MACs that is saved: of the seeds, which may differ in what they chose."""
    gmacs, saved = ([scale * run[key] for run in own.values()] for key, scale in (("gmacs", 1), ("reduction", 100)))
    return _varied(gmacs, 4), f"{_varied(saved, 1)} %"


def _varied(values: Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation where it is seen in so many digits."""
    return spread(values, digits=digits).removesuffix(f" ± {0:.{digits}f}")


def differences(rows: dict[int, Row], others: dict[int, Row], value: Callable[[Row], float]) -> list[float]:
    """Difference to another model, seed by seed, for the seeds that both have."""
    return [value(rows[seed]) - value(others[seed]) for seed in sorted(rows.keys() & others.keys())]


def top1(run: Row) -> float:
    """Top-1 after finetuning, in percent."""
    return run["top1"]


def comparisons(runs: dict[str, Row]) -> str:
    """The section with the differences between models."""
    rows = []
    for rate in KEEP_RATES:
        own = tosa(rate).name
        low = LOW_MATCHED if rate == LOW_RATE else f"matched, MACs of {rate}"
        pairs = [(own, other) for other in ("dense", f"random {rate}", f"previous {rate}")]
        pairs += [(own, f"{peer}, MACs of {rate}") for peer in ("merging", "pruning")]
        pairs += [(own, tosa(rate, **settings).name) for settings in ({"query_rows": 16}, {"selection": "per-head"})]
        pairs += [(low, other) for other in ("dense", own, f"merging, MACs of {rate}", f"pruning, MACs of {rate}")]
        for name, other in pairs:
            gained = differences(found(runs, name), found(runs, other), top1)
            if gained:
                names = [f"{each} ({cost(found(runs, each))[1]})" for each in (name, other)]
                each_seed = ", ".join(f"{gain:+.2f}" for gain in gained)
                rows.append([*names, spread(gained, "+"), each_seed, verdict(gained)])
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


def verdict(values: list[float]) -> str:
    """Whether a difference is `ahead` or `behind` by more than one standard deviation over the seeds, or `no`."""
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
        gmacs, values = ([run[key] for run in own] for key in ("gmacs", "top1"))
        errors = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in (gmacs, values)]
        axes.errorbar(
            statistics.mean(gmacs),
            statistics.mean(values),
            xerr=errors[0],
            yerr=errors[1],
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


def plotted_log(phases: Sequence[Row], folder: Path) -> str:
    """Draw the teacher's loss and learning rate by step, and the line of the page that shows it."""
    from matplotlib.figure import Figure

    if not any(phase["log"] for phase in phases):
        return ""
    folder.mkdir(exist_ok=True)
    figure = Figure(figsize=(9, 3), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    rates = axes.twinx()
    done = 0
    for index, phase in enumerate(phases):
        steps = [done + row["step"] for row in phase["log"]]
        label = f"loss, {phase['img_size']} x {phase['img_size']} pixels"
        axes.plot(steps, [row["loss"] for row in phase["log"]], ".-", color=f"C{index}", label=label)
        rates.plot(steps, [row["lr"] for row in phase["log"]], "--", color="grey")
        done += phase["updates"]
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    rates.set_ylabel("learning rate (dashed)")
    axes.legend(fontsize=8)
    figure.savefig(folder / TEACHER_PLOT)
    return f"![Loss and learning rate of the teacher](results/{TEACHER_PLOT})"
