"""What the ImageNet recipes need, as far as it can be measured without a GPU: the tables of docs/imagenet.md.

    python -m benchmarks.imagenet.estimate [--only PART ...]
    python -m benchmarks.imagenet.estimate --render

Measured are MACs and the bytes that a training step keeps for its backward pass, on the real architecture with random
weights, and how fast one process loads JPEGs of ImageNet's usual size with the recipe's augmentation. Time on a GPU is
arithmetic on top, with the assumptions written beside it. The figures go to benchmarks/results/imagenet_estimate.json,
the tables into the page, between its two markers.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import timm
import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.deploy import run_gpu
from benchmarks.imagenet.render import put_in, render
from benchmarks.lab import FIGURES, HERE
from benchmarks.writer import machine, write_json
from tosa_cli.config import TosaConfig
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import images_to_read
from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.recipe import load_recipe
from tosa_cli.tasks.classification import FinetuneObjective
from tosa_cli.tasks.tokens import finetune_augmentation
from tosa_cli.train.config import DistillConfig, FinetuneConfig
from tosa_cli.train.distill import DistillObjective, distill_augmentation

RESULTS = FIGURES / "imagenet_estimate.json"
PAGE = HERE.parent / "docs" / "imagenet.md"

ARCHITECTURE = "deit_tiny_patch16_224"
BATCH_SIZES = (4, 8)
"""What one image keeps is the difference of two batches: what does not grow with them is no image's."""
LOADED, ROUNDS = 256, 5
JPEG_SIZE, JPEG_QUALITY = (500, 375), 98
"""At this quality a file is about as large as one of ImageNet, whose training images are 138 GB."""
PARTS = ("steps", "loading")

VARIANTS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "paper, keep rate 0.8": run_gpu.VARIANTS["paper, 0.8"],
    "matched-like": run_gpu.VARIANTS["matched-like"],
}
"""The matched recipe chooses its layers on ImageNet; this is about what it chooses."""


def main() -> None:
    """Measure, and put the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these parts only")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.render:
        results: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        for part in args.only:
            results[part] = globals()[f"measure_{part}"]()
            results.setdefault("machine", {})[part] = machine()
            write_json(RESULTS, results)
    results = json.loads(RESULTS.read_text("utf-8"))
    PAGE.write_text(put_in(PAGE.read_text("utf-8"), render(results)), encoding="utf-8")


def measure_steps() -> dict[str, Any]:
    """MACs and kept bytes of one image in a training step, for each variant, and of training the paper's selectors."""
    found = {}
    for name, settings in VARIANTS.items():
        model = make_model(settings)
        loss = SoftTargetCrossEntropy()
        found[name] = {**counts(model), **step(FinetuneObjective(model, loss).train())}
        print(name, found[name], flush=True)
    found["selectors, paper"] = step(DistillObjective(make_model(VARIANTS["paper, keep rate 0.8"])).train())
    return found


def make_model(settings: dict[str, Any] | None) -> Any:
    """DeiT-Tiny with random weights, dense or converted."""
    torch.manual_seed(0)
    dense = timm.create_model(ARCHITECTURE)
    return dense if settings is None else TosaViT(dense, TosaConfig(**settings))


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


if __name__ == "__main__":
    main()
