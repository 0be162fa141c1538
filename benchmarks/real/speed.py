"""The parts of run_results that take time: speed in turns with the dense model, and where the time goes."""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any

from benchmarks.lab import FIVE
from benchmarks.real.lab import ELEVEN, RealLab, chosen
from benchmarks.real.render_grid import BYPASSES, SELECTORS

ROUNDS = 15
"""Turns of each model: the machine is noisy."""


KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
"""Tells glibc to keep memory that was freed, as other allocators do; it is read when a process starts."""


def run_speed_kept(lab: RealLab) -> None:
    """Speed as `run_speed` measures it, in a process that keeps the memory that it freed."""
    if os.environ.items() >= KEEP_MEMORY.items():
        run_speed(lab, "speed_kept")
        return
    command = [sys.executable, sys.argv[0], "--work", lab.work, "--only", "speed_kept"]
    subprocess.run(command, env={**os.environ, **KEEP_MEMORY}, check=True)
    lab.results = json.loads(lab.path.read_text(encoding="utf-8"))


def run_speed(lab: RealLab, part: str = "speed") -> None:
    """Speed in turns with the fused dense model, and peak memory."""
    import timm
    import torch

    from tosa_cli.config import TosaConfig
    from tosa_cli.measure.speed import compare_speed
    from tosa_cli.model.flops import count_flops
    from tosa_cli.model.tosa_vit import TosaViT

    def one(name: str, size: int, batch: int, config: Any, dtype: Any, compiled: bool) -> dict[str, Any]:
        torch.manual_seed(0)
        dense = timm.create_model(name, img_size=size).eval()
        # Both share the weights: where copies happen to lie in memory makes 10 % and more.
        model = TosaViT(dense, config).eval()
        flops = count_flops(model)
        images = torch.randn(batch, 3, size, size, dtype=dtype)
        ideal = flops.dense_gmacs / flops.gmacs
        report = compare_speed(
            dense.to(dtype), model.to(dtype), images, ideal_speedup=ideal, rounds=ROUNDS, compiled=compiled
        )
        return {"reduction": flops.reduction, **report.to_dict()}

    small, tiny = "vit_small_patch14_dinov2", "deit_tiny_patch16_224"
    matched = chosen(lab, 0.25)
    paper = partial(TosaConfig, layers=FIVE, selector="attention")
    eleven = partial(TosaConfig, layers=ELEVEN, selector="similarity")
    five = TosaConfig(layers=FIVE, selector="similarity", bypass="nearest+linear")
    float32, bfloat16 = torch.float32, torch.bfloat16
    cases = [
        ("matched -25%", small, 224, 8, matched, float32, False),
        ("matched -25%", tiny, 224, 16, matched, float32, False),
        ("matched -40%", small, 224, 8, chosen(lab, 0.4), float32, False),
        ("matched -40%", tiny, 224, 16, chosen(lab, 0.4), float32, False),
        ("matched -25%, span 1", small, 224, 8, chosen(lab, 0.25, span=1), float32, False),
        ("matched -25%, span 1", tiny, 224, 16, chosen(lab, 0.25, span=1), float32, False),
        ("matched -25%", small, 224, 8, matched, bfloat16, False),
        ("matched -25%", small, 224, 8, matched, float32, True),
        ("matched -25%", tiny, 224, 16, matched, float32, True),
        ("five layers at 0.8", small, 224, 8, five, float32, False),
        ("eleven at 0.72, affine", small, 518, 2, eleven(keep_rate=0.72, bypass="nearest+affine"), float32, False),
        ("eleven at 0.6, affine", small, 518, 2, eleven(keep_rate=0.6, bypass="nearest+affine"), float32, False),
        ("matched -25%", small, 518, 2, matched, float32, False),
        ("paper at 0.4", tiny, 224, 16, paper(keep_rate=0.4), float32, False),
        ("paper at 0.8", tiny, 224, 16, paper(keep_rate=0.8), float32, False),
        ("paper at 0.8", small, 224, 8, paper(keep_rate=0.8), float32, False),
    ]
    for what, name, size, batch, config, dtype, compiled in cases:
        how = f"{str(dtype).removeprefix('torch.')}, {'compiled' if compiled else 'eager'}"
        key = f"{what}, {name} at {size}, batch {batch}, {how}"
        lab.measure(part, key, partial(one, name, size, batch, config, dtype, compiled))


def run_grid_speed(lab: RealLab) -> None:
    """Speed of every selector with every bypass at 0.8 on five layers, all in turns in one process."""
    import timm
    import torch

    from tosa_cli.config import TosaConfig
    from tosa_cli.measure.speed import time_in_turns
    from tosa_cli.model.flops import count_flops
    from tosa_cli.model.tosa_vit import TosaViT

    def one() -> dict[str, Any]:
        torch.manual_seed(0)
        dense = timm.create_model("vit_small_patch14_dinov2", img_size=224).eval()
        models: dict[str, Any] = {"dense": dense}
        for bypass, selector in itertools.product(BYPASSES, SELECTORS):
            config: Any = TosaConfig(layers=FIVE, selector=selector, bypass=bypass)
            # All share the weights of the one backbone: only how it is run differs.
            models[f"{selector} {bypass} 0.8"] = TosaViT(dense, config).eval()
        report = time_in_turns(models, torch.randn(8, 3, 224, 224), rounds=7, seconds=0.0)
        speedups = {name: vars(found) for name, found in report.speedups.items() if name != "dense"}
        ideal = {name: 1 / (1 - count_flops(models[name]).reduction) for name in speedups}
        return {"speedups": speedups, "ideal": ideal, "dense_median_s": report.timings["dense"].median_s}

    lab.measure("grid_speed", "0.8", one)


PROFILED = (("ViT-S/14, batch 8", "vit_small_patch14_dinov2", 8), ("DeiT-Tiny, batch 16", "deit_tiny_patch16_224", 16))
"""Models whose operations are timed: what to call them, name and batch size."""

GROUPS = {
    "matrix products of the layers": ("aten::addmm", "aten::mm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "norms, activation, LayerScale, residuals": ("aten::native_layer_norm", "aten::gelu", "aten::mul", "aten::add"),
    "matching": (
        "aten::baddbmm",
        "aten::topk",
        "aten::sort",
        "aten::amin",
        "aten::min",
        "aten::clamp_min",
        "aten::scatter",
    ),
    "gathering and putting back": ("aten::index_select", "aten::index_copy_", "aten::_embedding_bag_forward_only"),
    "patch embedding": ("aten::mkldnn_convolution",),
    "copies": ("aten::copy_", "aten::cat"),
}


def run_profile(lab: RealLab) -> None:
    """Where the time of a forward pass goes, by kind of operation."""
    import timm
    import torch

    from tosa_cli.model.tosa_vit import TosaViT

    def one(name: str, batch: int, converted: bool) -> dict[str, Any]:
        model = timm.create_model(name, img_size=224).eval()
        if converted:
            model = TosaViT(model, chosen(lab, 0.25)).eval()
        images = torch.randn(batch, 3, 224, 224)
        with torch.inference_mode():
            for _ in range(3):
                model(images)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                for _ in range(10):
                    model(images)
        times = {event.key: event.self_cpu_time_total / 1e4 for event in profile.key_averages()}
        total = sum(times.values())
        groups = {group: sum(times.get(name, 0.0) for name in names) for group, names in GROUPS.items()}
        return {"total_ms": total, "groups_ms": {**groups, "all else": total - sum(groups.values())}}

    for what, name, batch in PROFILED:
        for setting, converted in (("dense", False), ("matched -25%", True)):
            lab.measure("profile", f"{what}: {setting}", partial(one, name, batch, converted))


def run_attention(lab: RealLab) -> None:
    """Time of fused attention by the number of tokens."""
    import torch
    from torch.nn import functional as F

    def one() -> dict[str, Any]:
        milliseconds = {}
        for tokens in (257, 240, 224, 208, 200, 192, 176, 160, 144, 128, 112, 96):
            query = torch.randn(8, 6, tokens, 64)
            seconds = []
            with torch.inference_mode():
                for _ in range(ROUNDS):
                    started = time.perf_counter()
                    F.scaled_dot_product_attention(query, query, query)
                    seconds.append(time.perf_counter() - started)
            milliseconds[tokens] = 1e3 * statistics.median(seconds)
        return {"milliseconds": milliseconds, "threads": torch.get_num_threads()}

    lab.measure("attention", "batch 8, 6 heads of 64", one)
