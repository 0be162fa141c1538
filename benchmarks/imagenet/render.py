"""Makes the tables of docs/imagenet.md from benchmarks/results/imagenet_estimate.json, and the arithmetic in them."""

import re
from typing import Any

from benchmarks.writer import table

BEGIN, END = "<!-- tables: benchmarks.imagenet.estimate -->", "<!-- end of tables -->"
IMAGES = 1_281_167
PEAK_TFLOPS = 312
"""NVIDIA A100, bf16 with dense matrices, as in its data sheet."""
SHARES = (0.05, 0.1, 0.2)
"""Shares of the peak that training reaches: assumed."""
SETUPS = ((1, 8), (1, 32), (8, 64))
"""GPUs and cores that load."""
RUNS = (
    ("paper: distill, 5 epochs", "selectors, paper", "distill", 5),
    ("paper: finetune, 30 epochs", "paper, keep rate 0.8", "finetune", 30),
    ("matched: finetune, 30 epochs", "matched-like", "finetune", 30),
    ("the dense model so finetuned", "dense", "finetune", 30),
)
"""What, which figures of a step and of loading, and epochs."""


def put_in(page: str, tables: str) -> str:
    """The page with the tables between its markers."""
    return re.sub(f"(?s){BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{tables}\n{END}", page)


def render(results: dict[str, Any]) -> str:
    """The tables, from the figures."""
    steps, loading = results["steps"], results["loading"]
    rows = []
    for name, found in steps.items():
        forward = f"{found['forward_gmacs']:.3f}" if "forward_gmacs" in found else ""
        kept = [f"{found[key]:.1f}" for key in ("bf16_mb", "float32_mb")]
        rows.append([name, forward, f"{found['step_gmacs']:.3f}", *kept, f"{256 * found['bf16_mb'] / 1e3:.1f}"])
    parts = [
        f"**Measured** ({_host(results, 'steps')}): one image of a training step of DeiT-Tiny at 224, and what the "
        "forward pass keeps of it.",
        table(
            [
                "",
                "GMACs forward",
                "forward and backward",
                "MB kept, bf16",
                "MB kept, float32",
                "GB of 256 images, bf16",
            ],
            rows,
        ),
        f"**Measured** ({_host(results, 'loading')}): images a second that one worker on one core loads, "
        f"{loading['size'][0]}x{loading['size'][1]} JPEGs of {loading['mean_kb']:.0f} kB on average; "
        f"{loading['rounds']} turns of {loading['images']} images. An epoch is {IMAGES:,} images by that rate.",
        table(
            ["", "images/s, median (least to most)", "an epoch, 8 cores", "an epoch, 64 cores"],
            [
                [
                    name,
                    f"{loading[key]:.0f} ({loading['spread'][key][0]:.0f} to {loading['spread'][key][1]:.0f})",
                    *(_duration(IMAGES / loading[key] / cores) for cores in (8, 64)),
                ]
                for name, key in (
                    ("finetuning's augmentation", "finetune"),
                    ("distillation's", "distill"),
                    ("evaluation's", "eval"),
                )
            ],
        ),
        f"**Estimated**: an epoch of finetuning on one A100 if nothing but the GPU took time. FLOPs of a step are "
        f"twice its MACs, times {IMAGES:,} images, by {PEAK_TFLOPS} TFLOPS (its bf16 peak) times the share of it that "
        "is reached, which is assumed.",
        table(
            ["", "PFLOPs", *(f"at {share:.0%}" for share in SHARES)],
            [
                [
                    name,
                    f"{epoch_flops(found) / 1e15:.1f}",
                    *(
                        f"{_duration(epoch_flops(found) / PEAK_TFLOPS / 1e12 / share)}, "
                        f"{PEAK_TFLOPS * 1e12 * share / epoch_flops(found) * IMAGES:,.0f} images/s"
                        for share in SHARES
                    ),
                ]
                for name, found in steps.items()
            ],
        ),
    ]
    parts += [
        f"**Estimated**: whole runs of the recipes, each epoch as long as the slower of the two: loading at the "
        f"measured rates, and A100s that reach {SHARES[-1]:.0%} to {SHARES[0]:.0%} of their peak. Validation and start "
        "are not in it.",
        table(
            ["", *(f"{gpus} GPU{'s' * (gpus > 1)}, {cores} cores" for gpus, cores in SETUPS)],
            [
                [name, *(whole_run(results, variant, rate, epochs, *setup) for setup in SETUPS)]
                for name, variant, rate, epochs in RUNS
            ],
        ),
    ]
    return "\n\n".join(parts)


def whole_run(results: dict[str, Any], variant: str, rate: str, epochs: int, gpus: int, cores: int) -> str:
    """How long so many epochs take, as text: least and most."""
    loading = IMAGES / results["loading"][rate] / cores
    computing = [epoch_flops(results["steps"][variant]) / PEAK_TFLOPS / 1e12 / share / gpus for share in SHARES]
    least, most = (_duration(epochs * max(loading, seconds)) for seconds in (computing[-1], computing[0]))
    return least if least == most else f"{least} to {most}"


def epoch_flops(found: dict[str, float]) -> float:
    """FLOPs of an epoch."""
    return 2e9 * found["step_gmacs"] * IMAGES


def _host(results: dict[str, Any], part: str) -> str:
    host = results["machine"][part]
    return f"{host['cpu']}, torch {host['torch']}, timm {host['timm']}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
