"""Throughput on a GPU: dense and converted models in turns in one process, bf16, random weights.

    python -m benchmarks.deploy.run_gpu [--models NAME ...] [--sizes PIXELS ...] [--modes MODE ...] [--batch N]
        [--rounds N]
    python -m benchmarks.deploy.run_gpu --render

Each model at each image size is measured eager, compiled, and compiled with CUDA graphs. The script writes
benchmarks/results/gpu.json after each row and goes on where it stopped, with rows that did not fit as well;
benchmarks/GPU.md is made from that file alone.
"""

import argparse
import copy
import gc
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.lab import FIVE, HERE
from benchmarks.writer import speedup, table, write_json

MODELS = ("deit_tiny_patch16_224", "deit_small_patch16_224", "vit_base_patch16_224")
SIZES = (224, 384, 518)
"""Pixels; patches of 16 leave 6 of the 518 out."""
BATCH_SIZES = {224: 256, 384: 64, 518: 32}
MODES = {
    "eager": {},
    "compiled": {"compiled": True},
    "CUDA graphs": {"compiled": True, "cuda_graphs": True},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper, 0.8": {"layers": FIVE, "keep_rate": 0.8, "query_rows": "all"},
    "paper, 0.4": {"layers": FIVE, "keep_rate": 0.4, "query_rows": "all"},
    "paper, 0.4, 16 query rows": {"layers": FIVE, "keep_rate": 0.4, "query_rows": 16},
    "matched-like": {
        "layers": tuple(range(2, 13)),
        "keep_rate": 0.72,
        "selector": "similarity",
        "bypass": "nearest+affine",
        "span": 2,
    },
}


def main() -> None:
    """Measure the rows that are not there yet, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="timm's names")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="image sizes in pixels")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="how the models run")
    parser.add_argument("--batch", type=int, help="images a batch; by default fewer of the larger ones")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each model")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of GPU.md and results/gpu.json")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # the CPU shows that the script runs
    args = parser.parse_args()
    path = args.out / "results" / "gpu.json"
    results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if not args.render:
        import torch

        from tosa_cli.measure.speed import device_name

        if args.device == "cuda" and not torch.cuda.is_available():
            sys.exit("There is no CUDA device here: run this where there is a GPU, or pass --render.")
        device = torch.device(args.device)
        rows = results.setdefault(device_name(device), {})
        for model in args.models:
            for size in args.sizes:
                for mode in args.modes:
                    name = f"{model} {size} {mode}"
                    if name not in rows or "error" in rows[name]:
                        batch = args.batch or BATCH_SIZES.get(size, 32)
                        rows[name] = measure(model, size, mode, batch, args.rounds, device)
                        write_json(path, results)
                        print(name, rows[name].get("error", "done"), flush=True)
    (args.out / "GPU.md").write_text(render(results), encoding="utf-8")


def measure(name: str, size: int, mode: str, batch: int, rounds: int, device: Any) -> dict[str, Any]:
    """Time a dense model and what it converts to, in turns; or say that it does not fit."""
    import torch

    try:
        return _measured(name, size, mode, batch, rounds, device)
    except torch.OutOfMemoryError:
        return {"error": f"{batch} images do not fit"}
    finally:
        # The next row starts with all of the memory, whether this one ended well or not.
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def _measured(name: str, size: int, mode: str, batch: int, rounds: int, device: Any) -> dict[str, Any]:
    import dataclasses

    import timm
    import torch

    from tosa_cli.config import TosaConfig
    from tosa_cli.measure.speed import time_in_turns
    from tosa_cli.model.flops import count_flops
    from tosa_cli.model.tosa_vit import TosaViT

    torch.manual_seed(0)
    dense: Any = timm.create_model(name, img_size=size)
    models = {"dense": dense}
    for label, settings in VARIANTS.items():
        models[label] = TosaViT(copy.deepcopy(dense), TosaConfig(**settings))
    reductions = {label: count_flops(model).reduction for label, model in models.items() if label != "dense"}
    models = {label: model.to(device, torch.bfloat16).eval() for label, model in models.items()}
    images = torch.randn(batch, 3, size, size, device=device, dtype=torch.bfloat16)
    with torch.inference_mode():
        for model in models.values():
            model(images)  # the libraries take their working memory, which is no model's
    report = dataclasses.asdict(time_in_turns(models, images, rounds=rounds, **MODES[mode]))  # type: ignore[arg-type]
    if mode != "eager":
        # It is measured before models are compiled, so it would be that of the mode eager.
        for timing in report["timings"].values():
            timing["peak_memory_mb"] = None
    return {"reductions": reductions, **report}


def render(results: dict[str, Any]) -> str:
    """The page."""
    parts = [
        "# Throughput on a GPU\n\nMade by `python -m benchmarks.deploy.run_gpu` from `results/gpu.json`; nothing here "
        "is typed by hand. Weights are random. The models of a row run in turns in one process; speed is against the "
        "dense model on fused attention, median (least to most) of the ratios turn by turn, and ideal is what the MACs "
        "alone would give. `paper` has layers 2,4,6,8,10 at a keep rate and reads all query rows unless it says 16; "
        "`matched-like` has layers 2 to 12, similarity, nearest+affine, keep rate 0.72 and span 2. `CUDA graphs` is "
        "torch.compile's mode `reduce-overhead`. Peak memory is what an eager forward pass takes beyond weights and "
        "input.",
    ]
    for device, rows in results.items():
        lines = []
        for name, row in rows.items():
            if "error" in row:
                lines.append([name, "", row["error"], *[""] * 4])
                continue
            conditions = row["conditions"]
            for label, timing in row["timings"].items():
                ratio = row["speedups"][label]
                speed = speedup(ratio)
                ideal = "" if label == "dense" else f"{1 / (1 - row['reductions'][label]):.2f}x"
                rate = conditions["batch_size"] / timing["median_s"]
                cells = [name, str(conditions["batch_size"]), label, f"{rate:,.0f}", speed, ideal]
                memory = timing["peak_memory_mb"]
                lines.append([*cells, "" if memory is None else f"{memory:.0f}"])
        found = next((row["conditions"] for row in rows.values() if "conditions" in row), None)
        told = f"{found['dtype']}, torch {found['torch']}, {found['rounds']} turns each.\n\n" if found else ""
        head = ["model, pixels, mode", "batch", "variant", "images/s", "speed", "ideal", "peak MiB"]
        parts.append(f"## {device}\n\n{told}" + table(head, lines))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
