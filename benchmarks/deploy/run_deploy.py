"""The preset `calibrated` in the runtimes people deploy: quality and time of the same file, dense and converted.

    python -m benchmarks.deploy.run_deploy [--work FOLDER] [--only across 224 518 base growth]
    python -m benchmarks.deploy.run_deploy --render

Each model is written once for each batch size and run by each runtime; dense and converted are timed in turns in one
process, which wants the machine alone. Needs the extras `benchmarks` and `openvino`, and `nncf` for its row. It writes
benchmarks/results/deploy.json after each measurement and goes on where it stopped; from that file it makes
benchmarks/DEPLOY.md.
"""

import argparse
import copy
import importlib.util
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.deploy.render_deploy import (
    ACROSS,
    COMPILED,
    CUT,
    DENSE,
    GROWTH,
    NNCF,
    RUNTIMES,
    SAVINGS,
    SMALLER,
    render,
)
from benchmarks.lab import FIGURES, HERE, WORK, Lab
from benchmarks.real.lab import fetch
from benchmarks.real.run_merging import MergingLab
from benchmarks.real.run_saliency import HELD_OUT
from benchmarks.writer import machine
from tosa_cli.config import CALIBRATED

RESULTS = FIGURES / "deploy.json"
PAGE = HERE / "DEPLOY.md"
BASE = "vit_base_patch14_dinov2"
PARTS = ("across", "224", "518", "base", "growth")
ROUNDS, SECONDS = 15, 0.2
OPSET = 20


def main() -> None:
    """Measure what is not in the results yet, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoint, photos and files go")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts of the page")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.render:
        fetch(args.work)
        lab = DeployLab(args.work)
        for part in args.only:
            {"across": run_across, "224": run_small, "518": run_large, "base": run_base, "growth": run_growth}[part](
                lab
            )
    PAGE.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"Wrote {PAGE}")


class DeployLab(Lab):
    """The results so far, the models, and the files that they are written to."""

    def __init__(self, work: Path) -> None:  # noqa: D107
        super().__init__(RESULTS)
        self.real = MergingLab(work)
        self.real.num_held_out = HELD_OUT  # every runtime reads them
        self.folder = work / "deploy"
        self.folder.mkdir(exist_ok=True)
        self.machine = machine() | versions()
        self.results.setdefault("machine", self.machine)

    def models(self, size: int) -> dict[str, Any]:
        """The dense DINOv2 ViT-S/14, what it converts to, and what is compared with its first saving."""
        from benchmarks.real.cut import CutTokens
        from tosa_cli.peers.compare import build_peers

        dense, first = self.real.source(size).eval(), SAVINGS[size][0]
        models = {DENSE: dense} | {f"-{saving:.0%}": self.real.ours(size, saving, 0) for saving in SAVINGS[size]}
        models[CUT] = CutTokens(dense, self.real.rates(size, first, 0)).eval()
        models[SMALLER] = build_peers(dense, first)[0]["smaller"].model.eval()
        return models

    def batches(self, model: Any, size: int, batch: int) -> list[Any]:
        """Calibration photos in batches, for the ranges of activations."""
        photos = self.real.photos("calibration", model, 32, 0)
        return [images for b in photos.batches(True) for images in b.images.split(batch) if len(images) == batch]

    def forget_earlier(self, table: str) -> None:
        """A table that is about to be measured is no longer of keep rates of before."""
        self.results["earlier"] = [name for name in self.results.get("earlier", []) if name != table]


def versions() -> dict[str, str]:
    """The runtimes, and what of the instructions that they like the CPU has."""
    import onnxruntime

    from tosa_cli.export.openvino_file import openvino_name

    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    has = [name for name in ("avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags]
    return {"onnxruntime": onnxruntime.__version__, "runtime": openvino_name(), "instructions": " ".join(has) or "avx2"}


def loaders(
    models: dict[str, Any], folder: Path, size: int, batch: int, photos: list[Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each runtime with the models in it: modules that give the final tokens of images (batch, 3, size, size)."""
    import torch

    from benchmarks.deploy.tokens import Tokens
    from tosa_cli.export.onnx_file import OnnxModule, write_onnx
    from tosa_cli.export.openvino_file import OpenVinoModule
    from tosa_cli.export.quantize import quantize_file

    images = torch.zeros(batch, 3, size, size)
    files: dict[str, dict[str, Path]] = {"float32": {}, "int8": {}, "static": {}, "nncf": {}}
    for name, model in models.items():
        stem = f"{size}_{batch}_{name.replace(' ', '_')}"
        files["float32"][name] = folder / f"{stem}.onnx"
        write_onnx(
            model, files["float32"][name], ["last_hidden_state"], images=images, dynamic_batch=False, opset=OPSET
        )
        if photos:
            files["int8"][name], files["static"][name] = folder / f"{stem}_int8.onnx", folder / f"{stem}_static.onnx"
            quantize_file(files["float32"][name], files["int8"][name])
            quantize_file(files["float32"][name], files["static"][name], photos)
        if NNCF in runtimes(size, bool(photos)):
            files["nncf"][name] = folder / f"{stem}_nncf.xml"
            quantize_by_nncf(files["float32"][name], files["nncf"][name], photos)

    half = {name: copy.deepcopy(model).bfloat16() for name, model in models.items()}
    opened = {
        "PyTorch float32": lambda name: Tokens(models[name]),
        "PyTorch bfloat16": lambda name: Tokens(half[name], torch.bfloat16),
        COMPILED: lambda name: Tokens(models[name]),
        "ONNX Runtime float32": lambda name: Tokens(OnnxModule(files["float32"][name])),
        "ONNX Runtime int8": lambda name: Tokens(OnnxModule(files["int8"][name])),
        "ONNX Runtime int8, static": lambda name: Tokens(OnnxModule(files["static"][name])),
        "OpenVINO float32": lambda name: Tokens(OpenVinoModule(files["float32"][name], "float32")),
        "OpenVINO bfloat16": lambda name: Tokens(OpenVinoModule(files["float32"][name], "bfloat16")),
        "OpenVINO int8, static": lambda name: Tokens(OpenVinoModule(files["static"][name], "float32")),
        NNCF: lambda name: Tokens(OpenVinoModule(files["nncf"][name], "float32")),
    }
    for runtime in runtimes(size, bool(photos)):
        yield runtime, {name: opened[runtime](name) for name in models}


def quantize_by_nncf(path: Path, target: Path, photos: list[Any]) -> None:
    """Quantise a file for OpenVINO; products of activations with each other, the distances too, stay float."""
    import nncf
    import openvino

    model = openvino.Core().read_model(path)
    products = []
    for node in model.get_ordered_ops():
        sources = {source.get_node().get_type_name() for source in node.input_values()}
        if node.get_type_name() == "MatMul" and "Constant" not in sources:
            products.append(node.get_friendly_name())
    data = nncf.Dataset([images.numpy() for images in photos])
    kept = nncf.IgnoredScope(names=products)
    quantized = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, ignored_scope=kept)
    openvino.save_model(quantized, target, compress_to_fp16=False)


def runtimes(size: int, real: bool) -> list[str]:
    """What runs models of a size: int8 wants real weights, NNCF its package, and compiling is for the small ones."""
    return [
        name
        for name in RUNTIMES
        if (real or "int8" not in name)
        and (name != COMPILED or (real and size == 224))
        and (name != NNCF or importlib.util.find_spec("nncf"))
    ]


def rows_of(turns: Any) -> dict[str, dict[str, Any]]:
    """Times and speeds of models that were timed in turns, by name."""
    return {name: {**vars(timing), **vars(turns.speedups[name])} for name, timing in turns.timings.items()}


def run_models(lab: DeployLab, models: dict[str, Any], size: int, batch: int, name: str, real: bool) -> None:
    """Quality where the weights are real and the batch is 1, and times, in each runtime."""
    import torch

    from tosa_cli.measure.speed import time_in_turns
    from tosa_cli.model.flops import count_flops

    reductions = {
        kind: 0.0 if kind in (DENSE, CUT, SMALLER) else count_flops(model).reduction for kind, model in models.items()
    }
    wanted = {f"{name} {batch} {runtime}" for runtime in runtimes(size, real)}
    if wanted <= set(lab.results.get("rows", {})):
        return
    lab.forget_earlier(f"{name} {batch}")
    photos = lab.batches(models[DENSE], size, batch) if real else []
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    for runtime, opened in loaders(models, lab.folder, size, batch, photos):

        def one(runtime: str = runtime, opened: dict[str, Any] = opened) -> dict[str, Any]:
            turns = time_in_turns(opened, images, rounds=ROUNDS, seconds=SECONDS, compiled=runtime == COMPILED)
            rows = rows_of(turns)
            for kind, row in rows.items():
                row["reduction"] = reductions[kind]
                if real and batch == 1 and runtime != COMPILED and kind not in (CUT, SMALLER):
                    row["quality"] = lab.real.near(opened[kind], size)
            return {"threads": torch.get_num_threads(), "machine": lab.machine, "models": rows}

        lab.measure("rows", f"{name} {batch} {runtime}", one)


def run_across(lab: DeployLab) -> None:
    """Dense and converted in several runtimes, all in turns: one image of 224 pixels."""
    import torch

    from tosa_cli.measure.speed import time_in_turns

    def one() -> dict[str, Any]:
        models = {kind: model for kind, model in lab.models(224).items() if kind not in (CUT, SMALLER)}
        opened = {
            f"{runtime}, {kind}": module
            for runtime, found in loaders(models, lab.folder, 224, 1, lab.batches(models[DENSE], 224, 1))
            for kind, module in found.items()
            if runtime in ACROSS
        }
        images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        turns = time_in_turns(opened, images, rounds=2 * ROUNDS, seconds=SECONDS)
        return rows_of(turns)

    if not lab.results.get("across"):
        lab.forget_earlier("across")
    lab.measure("across", "224 1", one)


def run_small(lab: DeployLab) -> None:
    """DINOv2 ViT-S/14 at 224 pixels, one image and eight."""
    for batch in (1, 8):
        run_models(lab, lab.models(224), 224, batch, "224", real=True)


def run_large(lab: DeployLab) -> None:
    """DINOv2 ViT-S/14 at 518 pixels, one image."""
    run_models(lab, lab.models(518), 518, 1, "518", real=True)


def run_base(lab: DeployLab) -> None:
    """A ViT-B/14 with random weights at 224 pixels, one image: the keep rates of ViT-S/14."""
    import timm
    import torch

    from tosa_cli.model.convert import insert_selectors

    torch.manual_seed(0)
    models: dict[str, Any] = {DENSE: timm.create_model(BASE, img_size=224, num_classes=0).eval()}
    for saving in SAVINGS[224]:
        rates = lab.real.rates(224, saving, 0)
        config = CALIBRATED.at(rates, rates.values())
        models[f"-{saving:.0%}"] = insert_selectors(copy.deepcopy(models[DENSE]), config).eval()
    run_models(lab, models, 224, 1, "base", real=False)


def run_growth(lab: DeployLab) -> None:
    """How speed and the share of matching grow with the image, at a quarter of the MACs less; one image, PyTorch."""
    import torch

    from tosa_cli.fit.schedules import Schedules
    from tosa_cli.measure.speed import time_in_turns
    from tosa_cli.model.convert import insert_selectors
    from tosa_cli.model.flops import count_flops

    def one(size: int) -> dict[str, Any]:
        dense = lab.real.source(size).eval()
        schedules = Schedules(dense, CALIBRATED)
        rates = [*schedules.able(0.25).values()][1]  # what is found for most draws at 224
        model = insert_selectors(lab.real.source(size), schedules.config(rates)).eval()
        flops = count_flops(model)
        images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        turns = time_in_turns({"dense": dense, "tosa": model}, images, rounds=5 if size > 600 else ROUNDS, seconds=0.1)
        return {
            "tokens": (size // 14) ** 2 + 1,
            "dense_ms": turns.timings["dense"].median_s * 1e3,
            "selection_share": flops.selector_gmacs / flops.gmacs,
            "ideal": 1 / (1 - flops.reduction),
            **vars(turns.speedups["tosa"]),
        }

    if not lab.results.get("growth"):
        lab.forget_earlier("growth")
    for size in GROWTH:
        lab.measure("growth", str(size), partial(one, size))


if __name__ == "__main__":
    main()
