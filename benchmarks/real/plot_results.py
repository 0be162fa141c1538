"""The plots of benchmarks/RESULTS.md: error against MACs, and against measured speed."""

from pathlib import Path
from typing import Any

from benchmarks.real.render_grid import BYPASSES, SHOWN


def plot(results: dict[str, Any], folder: Path) -> None:
    """Write the plots into a folder."""
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
