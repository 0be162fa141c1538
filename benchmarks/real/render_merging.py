"""Makes benchmarks/MERGING.md from the figures of `run_merging`."""

import itertools
import math
import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.real.depth_head import ROOMS
from benchmarks.real.lab import SMALL
from benchmarks.writer import speedup, table
from tosa_cli.progress import counted

TARGETS = {224: (0.25, 0.4, 0.5), 518: (0.3, 0.45)}
"""Shares of the MACs to save, by image size in pixels."""
CALIBRATION, HELD_OUT = 32, 95
DRAWS = {224: 3, 518: 3}
FASHION_DRAWS = 3
OURS = "calibrated"
MERGE = "merge"
CUT = "cut"
NAMES = {
    OURS: "`calibrated`",
    CUT: "as many tokens as `calibrated`, nothing chosen: a bound",
    "matched": "`matched`, 126 photos to fit",
    MERGE: "token merging, un-merged once",
    "merge-decreasing": "token merging, fewer a layer with the depth",
    "merge-unmerge": "token merging, un-merged a layer",
    "prune": "pruning (EViT)",
    "copy": "copying neighbours (IPCV)",
    "smaller": "a smaller input",
    "previous": "`previous` (A-MoD)",
    "random": "`random`",
}
BATCHES = (1, 8)


def key(size: int, target: float, *more: Any) -> str:
    """Name of a setting in the results."""
    return " ".join(map(str, (size, f"-{target:.0%}", *more)))


def render(results: dict[str, Any], fashion: dict[str, Any]) -> str:
    """The page, from the committed figures of photos and of Fashion-MNIST."""
    setting = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    parts = [
        "# Beside token merging, at equal MACs and on the clock",
        "Made by `python -m benchmarks.real.run_merging` from `results/merging.json`; nothing here is typed by hand. "
        f"DINOv2 ViT-S/14, no labels, no finetuning; {setting}.",
        "Every model gives all tokens at its end: merged tokens are un-merged, pruned ones stand for what they were "
        "fused from, those of a smaller input are resized. MACs are counted with all that choosing and matching take. "
        "Errors are 1 - cosine of final tokens to the dense model's, times 1000, on held-out photos: `mean` over them, "
        "`median`, and what nine of ten are below. `saliency` is the mean correlation of the maps of a trained head. "
        f"The keep rates of `calibrated` are found on {CALIBRATION} calibration photos, as many as `convert` takes: "
        f"mean ± standard deviation over {draws_told(results['quality'])}.",
        *depth_words(results),
        *sections(results),
        *fashion_sections(fashion),
    ]
    return "\n\n".join(parts) + "\n"


def draws_told(quality: dict[str, Any]) -> str:
    """How many draws of calibration photos were measured at each size, the fewest of its savings."""
    counts = {
        size: min(filter(None, (len(draws_of(quality, key(size, target, OURS))) for target in targets)), default=0)
        for size, targets in TARGETS.items()
    }
    first, *others = [(count, size) for size, count in counts.items() if count]
    told = [f"{counted(first[0], 'draw')} of them at {first[1]}", *(f"{count} at {size}" for count, size in others)]
    return " and ".join(told)


def depth_words(results: dict[str, Any]) -> Iterator[str]:
    """What the columns of the depth head are, if it was measured."""
    dense = results.get("depth", {}).get(f"{SMALL} dense")
    if dense:
        yield (
            f"`AbsRel` and `δ<1.25` compare the depths that a linear head reads with the true ones of {dense['rooms']} "
            f"rendered rooms, mean over the rooms; of the dense model's tokens they are {dense['abs_rel']:.4f} and "
            f"{dense['d1']:.4f}. `python -m benchmarks.real.depth_head` trained it, as DINOv2 is probed, on the dense "
            f"model's tokens of {ROOMS} other rooms; every model's are read by it unchanged, and keep rates and fits "
            f"are those of the photos."
        )


def with_depth(results: dict[str, Any]) -> dict[str, Any]:
    """Figures of every model with those of the depth head, where they were measured."""
    depth = results.get("depth", {})
    kept = ("abs_rel", "d1")
    return {
        name: {**found, **{part: depth[name][part] for part in kept if name in depth}}
        for name, found in results["quality"].items()
    }


def sections(results: dict[str, Any]) -> Iterator[str]:
    """A part for each image size and saving."""
    quality = with_depth(results)
    for size, targets in TARGETS.items():
        for target in targets:
            rows = {name: draws_of(quality, key(size, target, name)) for name in NAMES}
            rows = {name: found for name, found in rows.items() if found}
            if OURS not in rows or MERGE not in rows:
                continue
            yield f"## {size} pixels, {target:.0%} fewer MACs ({rows[OURS][0]['photos']} photos)"
            more = {"saliency": ("saliency", 1, 4)}
            if any("abs_rel" in one for found in rows.values() for one in found):
                more |= {"AbsRel": ("abs_rel", 1, 4), "δ<1.25": ("d1", 1, 4)}
            yield quality_table(rows, more)
            ratios = [mean(rows[OURS], part) / mean(rows[MERGE], part) for part in ("patch", "class")]
            medians = [
                mean(rows[OURS], f"{part}_median") / mean(rows[MERGE], f"{part}_median") for part in ("patch", "class")
            ]
            yield (
                f"Errors of `calibrated` as a share of token merging's, patch / class: {ratios[0]:.2f} / "
                f"{ratios[1]:.2f} by the mean, {medians[0]:.2f} / {medians[1]:.2f} by the median."
            )
            for batch in BATCHES:
                speed = results.get("speed", {}).get(key(size, target, "batch", batch))
                if speed:
                    yield speed_table(speed, size, batch)
    yield from equal_time(results)


def draws_of(quality: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The measurements of a model: one, or one a draw of calibration photos."""
    return [found for other, found in quality.items() if other == name or other.startswith(f"{name} ")]


def mean(found: list[dict[str, Any]], part: str) -> float:
    """Mean over draws."""
    return statistics.mean(one[part] for one in found)


def fashion_sections(results: dict[str, Any]) -> Iterator[str]:
    """A part for each saving on Fashion-MNIST."""
    dense = results["quality"]["dense"]
    setting = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    yield "## A classifier of other statistics"
    yield (
        "The Fashion-MNIST teacher of [FASHION.md](FASHION.md), a DeiT of width 64 at 56 pixels, as it is: nothing is "
        f"finetuned. Made by `python -m benchmarks.fashion.run_merging`, {setting}. Keep rates are found on 32 "
        f"training images without labels, {FASHION_DRAWS} draws; {dense['photos']} test images. The dense model's "
        f"top-1 is {dense['top1']:.1%}, `as dense` how often the class is the dense model's."
    )
    for target in sorted({name.split()[1] for name in results["quality"] if name != "dense"}):
        rows = {name: draws_of(results["quality"], f"56 {target} {name}") for name in NAMES}
        yield f"### {target.removeprefix('-')} fewer MACs"
        more = {"top-1": ("top1", 100, 2), "as dense": ("agreement", 100, 2)}
        yield quality_table({name: found for name, found in rows.items() if found}, more)


def quality_table(rows: dict[str, list[dict[str, Any]]], more: dict[str, tuple[str, float, int]]) -> str:
    """Errors of the models, and `more` columns: the figure, what it is multiplied by, and its digits."""

    def cell(found: list[dict[str, Any]], part: str, scale: float, digits: int) -> str:
        values = [one[part] * scale for one in found if part in one]
        if not values:
            return "-"
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{spread}"

    columns = ["patch", "patch_median", "patch_worst_tenth", "class", "class_median", "class_worst_tenth"]
    head = [
        "",
        "MACs",
        *(name.replace("_", ", ").replace("worst, tenth", "nine of ten") for name in columns),
        *more,
    ]
    return table(
        head,
        [
            [
                NAMES[name],
                f"-{mean(found, 'reduction'):.1%}",
                *(cell(found, column, 1000, 2) for column in columns),
                *(cell(found, *column) for column in more.values()),
            ]
            for name, found in rows.items()
        ],
    )


def speed_table(speed: dict[str, Any], size: int, batch: int) -> str:
    """Time of the models."""
    rows = [
        [NAMES.get(name, name), f"{row['median_s'] * 1e3:.1f}", speedup(row), f"{row['peak_memory_mb']:.0f}"]
        for name, row in speed["models"].items()
    ]
    head = [f"batch {batch} at {size}, eager, float32, {speed['threads']} threads", "ms", "speed", "peak MiB of a pass"]
    return table(head, rows)


def equal_time(results: dict[str, Any]) -> Iterator[str]:
    """What token merging's error is where it takes as long as `calibrated`, between the savings measured."""
    lines = []
    for batch in BATCHES:
        rows = []
        for target in TARGETS[224]:
            speed = results.get("speed", {}).get(key(224, target, "batch", batch))
            if speed:
                found = {name: draws_of(results["quality"], key(224, target, name)) for name in (OURS, MERGE)}
                times = {name: speed["models"][name]["speedup"] for name in found}
                rows.append(
                    (times, {name: {p: mean(each, p) for p in ("patch", "class")} for name, each in found.items()})
                )
        for times, errors in rows:
            ratios = []
            for part in ("patch", "class"):
                points = sorted((other[MERGE], math.log(found[MERGE][part])) for other, found in rows)
                at = interpolate(points, times[OURS])
                ratios.append("outside" if at is None else f"{errors[OURS][part] / math.exp(at):.2f}")
            lines.append([f"batch {batch}, {times[OURS]:.2f}x", *ratios])
    if lines:
        yield "## At equal time"
        yield (
            "Errors of `calibrated` at 224 as a share of token merging's at the same speed, whose error there lies on "
            "a line between the logarithms of the errors measured; `outside` is where it was not measured so fast or "
            "so slow."
        )
        yield table(["speed beside the dense model", "patch", "class"], lines)


def interpolate(points: list[tuple[float, float]], x: float) -> float | None:
    """The value at x on the line through points (x, y), which rise in x; None outside of them."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None
