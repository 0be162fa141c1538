"""Whole models on real images: a Depth Anything and a saliency model with a real DINOv2 ViT-S/14, dense and converted.

    python -m benchmarks.whole.run_whole [--work FOLDER] [--only quality speed saliency]
    python -m benchmarks.whole.run_whole --render

Encoder, photos and saliency head come from package registries, the depth head from `depth_model`. Models are converted
by `tosa convert` and `tosa_cli.convert`, as anyone would. It writes benchmarks/results/whole.json after each
measurement and goes on where it stopped; from that file alone it makes benchmarks/WHOLE.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lab import FIGURES, HERE, WORK, Lab
from benchmarks.real.lab import fetch
from benchmarks.whole.depth_model import SIZE, build, build_untrained, read_rooms
from benchmarks.whole.render_whole import render
from benchmarks.whole.saliency import run_saliency
from benchmarks.writer import machine

RESULTS = FIGURES / "whole.json"
PAGE = HERE / "WHOLE.md"
PARTS = ("rates", "quality", "speed", "saliency")
TARGETS = {"-30 %": 0.3, "-25 %": 0.25, "-40 %": 0.4}
DENSE, MEASURED = "dense", ("-25 %", "-40 %")
CALIBRATION, HELD_OUT = 64, 24
ROUNDS = 15


def main() -> None:
    """Measure what is not in the results yet, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where data and models go")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts only")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.render:
        lab = WholeLab(args.work)
        for part in args.only:
            run = {"rates": run_rates, "quality": run_quality, "speed": run_speed, "saliency": run_saliency}[part]
            run(lab)
    PAGE.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"Wrote {PAGE}")


class WholeLab(Lab):
    """Models, rooms, photos, and the results so far.

    Args:
        work: Folder for all of them but the results.
    """

    def __init__(self, work: Path) -> None:  # noqa: D107
        import transformers

        super().__init__(RESULTS)
        self.work = work
        self.checkpoint, self.photos = fetch(work)
        self.results["machine"] = {"size": SIZE, **machine(), "transformers": transformers.__version__}

    def depth(self, name: str, trained: bool = True) -> Any:
        """The depth model, dense or converted."""
        import transformers

        import tosa_cli

        source = build(self.work)[0] if trained else build_untrained(self.work)
        model = transformers.AutoModelForDepthEstimation.from_pretrained(source).eval()
        if name == DENSE:
            return model
        return tosa_cli.convert(model, tosa_cli.TosaConfig.from_dict(self.converted(name)["config"]))

    def converted(self, name: str) -> dict[str, Any]:
        """What `tosa convert` makes of the model: keep rates are those of the encoder, whatever the head is."""
        import torch

        folder = self.work / f"depth_anything_{round(100 * TARGETS[name])}"

        def run() -> dict[str, Any]:
            arguments = ["--preset", "calibrated", "--target-reduction", TARGETS[name], "-o", folder, "--overwrite"]
            arguments += ["--data-dir", self.photos / "calibration", "--max-samples", CALIBRATION, "--json"]
            command = [sys.executable, "-m", "tosa_cli", "convert", source, *arguments]
            done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout)
            keys = ("gmacs", "dense_gmacs", "reduction", "encoder_gmacs", "encoder_dense_gmacs", "params", "search")
            config = transformers.AutoConfig.from_pretrained(folder).backbone_config.tosa_config
            config = {key: config[key] for key in ("layers", "keep_rate", "selector", "bypass")}
            more = {"photos": CALIBRATION, "threads": torch.get_num_threads(), "config": config}
            return {**{key: found[key] for key in keys}, **more}

        import transformers

        source = build_untrained(self.work)
        self.measure("converted", name, run)
        found: dict[str, Any] = self.results["converted"][name]
        return found

    def processed(self, split: str, count: int) -> Any:
        """Photos of a split, evenly spread, one by one as the processor prepares them."""
        import transformers

        from tosa_cli.data.processed import ProcessedPhotos

        processor = transformers.AutoImageProcessor.from_pretrained(build_untrained(self.work))
        return ProcessedPhotos(self.photos / split, processor, batch_size=1, max_samples=count)


def run_rates(lab: WholeLab) -> None:
    """Find the keep rates for each target."""
    for name in TARGETS:
        lab.converted(name)


def run_quality(lab: WholeLab) -> None:
    """Depth of rooms against the truth, and of photos against the dense model, beside what the encoder loses."""
    for name in (DENSE, *MEASURED):
        lab.measure("rooms", name, partial(on_rooms, lab, name))
    for name in MEASURED:
        lab.measure("photos", name, partial(on_photos, lab, name))


def on_rooms(lab: WholeLab, name: str) -> dict[str, Any]:
    """Mean errors of the depth of held-out rooms: as it comes out, and by its form alone."""
    import torch
    import transformers

    from tosa_cli.measure.outputs import compare_depth

    model = lab.depth(name)
    folder, rooms = build(lab.work)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    figures: dict[str, list[float]] = {}
    with torch.inference_mode():
        for pixels, depth in read_rooms(processor, rooms, "test"):
            made = model(pixels).predicted_depth
            ratio = torch.maximum(made / depth, depth / made)
            found = {
                "abs_rel": ((made - depth).abs() / depth).mean(),
                "delta1": (ratio < 1.25).float().mean(),
                **{f"aligned_{key}": value for key, value in compare_depth(depth, made).items()},
            }
            for key, value in found.items():
                figures.setdefault(key, []).append(float(value))
    return {"samples": len(figures["abs_rel"]), **{key: statistics.mean(each) for key, each in figures.items()}}


def on_photos(lab: WholeLab, name: str) -> dict[str, Any]:
    """Depth of held-out photos against the dense model's, and each photo's loss beside its encoder's."""
    import torch
    from torch.nn import functional as F

    from tosa_cli.measure.outputs import compare_depth
    from tosa_cli.model.runs import dense

    model = lab.depth(name)
    rows = []
    with torch.inference_mode():
        for batch in lab.processed("held_out", HELD_OUT):
            pixels = batch["pixel_values"]
            with dense(model):
                expected, truth = model.backbone(pixels).feature_maps, model(pixels).predicted_depth
            made, depth = model.backbone(pixels).feature_maps, model(pixels).predicted_depth
            pairs = zip(expected, made, strict=True)
            cosines = [F.cosine_similarity(one, other, dim=-1)[:, 1:].mean() for one, other in pairs]
            found = {key: float(value) for key, value in compare_depth(truth, depth).items()}
            rows.append({**found, "cosine": float(cosines[-1]), "encoder_loss": float(1 - torch.stack(cosines).mean())})
    means = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
    worse = sum(1 - row["correlation"] > row["encoder_loss"] for row in rows)
    return {"samples": len(rows), **means, "worse_than_encoder": worse, "rows": rows}


def run_speed(lab: WholeLab) -> None:
    """Speed of the whole in turns with the dense model, eager and in ONNX Runtime: one image of its own size."""
    model = lab.depth(DENSE, trained=False)
    lab.measure("encoder_time", "depth", partial(encoder_time, model, model.backbone))
    for name in TARGETS:
        for runtime in ("eager", "onnxruntime"):
            lab.measure(
                "speed",
                f"{name}, {runtime}",
                lambda name=name, runtime=runtime: speed(lab.depth(name, trained=False), runtime),
            )


def encoder_time(model: Any, encoder: Any, size: int = SIZE) -> dict[str, Any]:
    """Time of a dense model for one image, eager, and of its encoder alone, in turns."""
    import torch

    from tosa_cli.measure.speed import time_in_turns

    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    timings = time_in_turns({"whole": model, "encoder": encoder}, images, rounds=ROUNDS).timings
    return {f"{name}_s": timing.median_s for name, timing in timings.items()}


def speed(model: Any, runtime: str, size: int = SIZE, ideal: float | None = None) -> dict[str, Any]:
    """Speed of one image of a converted model beside the dense one, which shares its weights."""
    import torch

    from tosa_cli.export.config import ExportConfig
    from tosa_cli.export.speed import compare_onnx_speed
    from tosa_cli.export.whole import write_whole
    from tosa_cli.measure.speed import compare_speed
    from tosa_cli.model.runs.flops import count_whole
    from tosa_cli.model.runs.insert import dense_copy

    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    if ideal is None:
        flops = count_whole(model)
        ideal = flops.dense_gmacs / flops.gmacs
    compare: Any = compare_speed
    if runtime != "eager":
        write = partial(write_whole, batch_size=1, opset=ExportConfig().opset, shape=(3, size, size))
        compare = partial(compare_onnx_speed, write=write)
    found: dict[str, Any] = compare(dense_copy(model), model, images, ideal_speedup=ideal, rounds=ROUNDS).to_dict()
    return found


if __name__ == "__main__":
    main()
