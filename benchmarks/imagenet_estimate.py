"""What the ImageNet recipes need, as far as it can be measured without a GPU: the tables of docs/imagenet.md.

    python benchmarks/imagenet_estimate.py [--only PART ...]
    python benchmarks/imagenet_estimate.py --render

Measured are MACs and the bytes that a training step keeps for its backward pass, on the real architecture with random
weights, and how fast one process loads JPEGs of ImageNet's usual size with the recipe's augmentation. Time on a GPU is
arithmetic on top, with the assumptions written beside it. The figures go to benchmarks/results/imagenet_estimate.json,
the tables into the page, between its two markers.
"""

import argparse
import itertools
import json
import re
import statistics
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import timm
import torch
from run_real import machine
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tosa_cli.config import TosaConfig
from tosa_cli.measure.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.recipe import load_recipe
from tosa_cli.train.config import DistillConfig, FinetuneConfig
from tosa_cli.train.data import images_to_read, open_dataset
from tosa_cli.train.distill import distill_augmentation
from tosa_cli.train.finetune import finetune_augmentation
from tosa_cli.train.objectives import DistillObjective, FinetuneObjective

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "imagenet_estimate.json"
PAGE = HERE.parent / "docs" / "imagenet.md"
BEGIN, END = "<!-- tables: imagenet_estimate.py -->", "<!-- end of tables -->"

ARCHITECTURE = "deit_tiny_patch16_224"
IMAGES = 1_281_167
BATCH_SIZES = (4, 8)
"""What one image keeps is the difference of two batches: what does not grow with them is no image's."""
PEAK_TFLOPS = 312
"""NVIDIA A100, bf16 with dense matrices, as in its data sheet."""
SHARES = (0.05, 0.1, 0.2)
"""Shares of the peak that training reaches: assumed."""
LOADED, ROUNDS = 256, 5
JPEG_SIZE, JPEG_QUALITY = (500, 375), 98
"""At this quality a file is about as large as one of ImageNet, whose training images are 138 GB."""
PARTS = ("steps", "loading")
SETUPS = ((1, 8), (1, 32), (8, 64))
"""GPUs and cores that load."""
RUNS = (
    ("paper: distill, 5 epochs", "selectors, paper", "distill", 5),
    ("paper: finetune, 30 epochs", "paper, keep rate 0.8", "finetune", 30),
    ("calibrated: finetune, 30 epochs", "calibrated-like", "finetune", 30),
    ("the dense model so finetuned", "dense", "finetune", 30),
)
"""What, which figures of a step and of loading, and epochs."""

VARIANTS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "paper, keep rate 0.8": {"layers": (2, 4, 6, 8, 10), "query_rows": "all", "selector_kernel": 1},
    "calibrated-like": {
        "layers": tuple(range(2, 13)),
        "keep_rate": 0.72,
        "selector": "similarity",
        "bypass": "nearest+affine",
        "span": 2,
    },
}
"""The calibrated recipe chooses its layers on ImageNet; this is about what it chooses."""


def main() -> None:
    """Measure, and put the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these parts only")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.render:
        results: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        results["machine"] = machine()
        for part in args.only:
            results[part] = globals()[f"measure_{part}"]()
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text("utf-8"))
    PAGE.write_text(put_in(PAGE.read_text("utf-8"), render(results)), encoding="utf-8")


def put_in(page: str, tables: str) -> str:
    """The page with the tables between its markers."""
    return re.sub(f"(?s){BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{tables}\n{END}", page)


def measure_steps() -> dict[str, Any]:
    """MACs and kept bytes of one image in a training step, for each variant, and of training the paper's selectors."""
    found = {}
    for name, settings in VARIANTS.items():
        model = make_model(settings)
        loss = SoftTargetCrossEntropy()
        objective = DenseObjective(model, loss) if settings is None else FinetuneObjective(model, loss)
        found[name] = {**counts(model), **step(objective.train())}
        print(name, found[name], flush=True)
    found["selectors, paper"] = step(DistillObjective(make_model(VARIANTS["paper, keep rate 0.8"])).train())
    return found


def make_model(settings: dict[str, Any] | None) -> Any:
    """DeiT-Tiny with random weights, dense or converted."""
    torch.manual_seed(0)
    dense = timm.create_model(ARCHITECTURE)
    return dense if settings is None else TosaViT(dense, TosaConfig(**settings))


class DenseObjective(nn.Module):
    """What `FinetuneObjective` is for a dense model."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:  # noqa: D107
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of images (B, C, height, width) with class shares (B, num_classes)."""
        return self.loss(self.model(images), targets)


def counts(model: Any) -> dict[str, Any]:
    """MACs of one image forward, and the number of weights that finetuning trains."""
    frozen = sum(p.numel() for p in model.selector_parameters()) if isinstance(model, TosaViT) else 0
    return {"forward_gmacs": count_flops(model).gmacs, "trained": sum(p.numel() for p in model.parameters()) - frozen}


def step(objective: nn.Module) -> dict[str, float]:
    """One training step on random images.

    Returns:
        MACs of one image, forward and backward, by PyTorch's counter, and the megabytes that the forward pass keeps of
        it for the backward pass, under bf16 autocast and in float32.
    """
    images, targets = torch.randn(1, 3, 224, 224), torch.full((1, 1000), 1e-3)
    with FlopCounterMode(display=False) as counter:
        objective(images, targets).backward()
    found = {"step_gmacs": counter.get_total_flops() / 2e9}
    for name, enabled in (("bf16_mb", True), ("float32_mb", False)):
        few, many = (kept_bytes(objective, size, enabled) for size in BATCH_SIZES)
        found[name] = (many - few) / (BATCH_SIZES[1] - BATCH_SIZES[0]) / 1e6
    return found


class Kept:
    """A tensor that autograd keeps, for as long as it does."""

    def __init__(self, tensor: Tensor) -> None:  # noqa: D107
        self.tensor = tensor


def kept_bytes(objective: nn.Module, batch_size: int, autocast: bool) -> int:
    """Bytes of the tensors that the forward pass of a batch keeps for the backward pass, each counted once."""
    images, targets = torch.randn(batch_size, 3, 224, 224), torch.full((batch_size, 1000), 1e-3)
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def keep(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = objective(images, targets)
    storages = {kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage().nbytes() for kept in alive}
    del loss
    return sum(storages.values())


def measure_loading() -> dict[str, Any]:
    """Images a second of one worker, with the augmentation of each phase, on JPEGs cut from two photos."""
    recipe = load_recipe("deit_tiny_imagenet_paper").sections
    augmentations = {
        "finetune": finetune_augmentation(FinetuneConfig(**recipe["finetune"])),
        "distill": distill_augmentation(DistillConfig(**recipe["distill"])),
        "eval": None,
    }
    model = make_model(None)
    rates: dict[str, list[float]] = {name: [] for name in augmentations}
    with tempfile.TemporaryDirectory() as folder:
        mean_kb = write_jpegs(Path(folder), LOADED + 64)
        for _ in range(ROUNDS):
            for name, augment in augmentations.items():
                opened = open_dataset(folder)
                images = images_to_read(opened, model, batch_size=32, workers=1, augment=augment, name=folder)
                batches = iter(images.loader)
                next(batches), next(batches)  # the worker starts
                started = time.perf_counter()
                count = sum(len(batch.images) for batch in itertools.islice(batches, LOADED // 32))
                rates[name].append(count / (time.perf_counter() - started))
                del batches
    print(rates, flush=True)
    spread = {name: [min(values), max(values)] for name, values in rates.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"size": JPEG_SIZE, "mean_kb": mean_kb, "images": LOADED, "rounds": ROUNDS, **medians, "spread": spread}


def write_jpegs(folder: Path, count: int) -> float:
    """Cut photos into JPEGs, each another cut-out; returns their mean size in kilobytes."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    draw = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    sizes = []
    for number in range(count):
        photo = photos[number % len(photos)]
        width = int(draw.integers(400, photo.width + 1))
        height = width * JPEG_SIZE[1] // JPEG_SIZE[0]
        height = min(height, photo.height)
        left, top = draw.integers(0, photo.width - width + 1), draw.integers(0, photo.height - height + 1)
        path = folder / f"{number:04d}.jpg"
        photo.crop((left, top, left + width, top + height)).resize(JPEG_SIZE).save(path, quality=JPEG_QUALITY)
        sizes.append(path.stat().st_size)
    return sum(sizes) / len(sizes) / 1e3


def render(results: dict[str, Any]) -> str:
    """The tables, from the figures."""
    steps, loading = results["steps"], results["loading"]
    host = results["machine"]
    rows = []
    for name, found in steps.items():
        forward = f"{found['forward_gmacs']:.3f}" if "forward_gmacs" in found else ""
        kept = [f"{found[key]:.1f}" for key in ("bf16_mb", "float32_mb")]
        rows.append([name, forward, f"{found['step_gmacs']:.3f}", *kept, f"{256 * found['bf16_mb'] / 1e3:.1f}"])
    parts = [
        f"**Measured** ({host['cpu']}, torch {host['torch']}, timm {host['timm']}): one image of a training step of "
        "DeiT-Tiny at 224, and what the forward pass keeps of it.",
        _table(
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
        f"**Measured**: images a second that one worker on one core loads, {loading['size'][0]}x{loading['size'][1]} "
        f"JPEGs of {loading['mean_kb']:.0f} kB on average; {loading['rounds']} turns of {loading['images']} "
        f"images. An epoch is {IMAGES:,} images by that rate.",
        _table(
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
        _table(
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
        _table(
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


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


if __name__ == "__main__":
    main()
