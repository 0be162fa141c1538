"""The paper's Table 1 on Fashion-MNIST: ToSA models beside the equally finetuned dense model and their peers.

    python -m benchmarks.fashion.run_fashion [--work FOLDER] [--only PART ...] [--seeds SEED ...]
    python -m benchmarks.fashion.run_fashion --render

Data are fetched if they are not under `--work`. The teacher is benchmarks/results/fashion_teacher; to start with
another one, train it into WORK/teacher by benchmarks.fashion.teacher and move the results away. They are written to
benchmarks/results/fashion.json after each run; an interrupted one goes on where it stopped, in the middle of a
finetuning too. Several processes, each with OMP_NUM_THREADS=1, share the work if they are started at once. From that
file alone the script makes benchmarks/FASHION.md and its plots.
"""

import argparse
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.fashion.lab import FashionLab
from benchmarks.fashion.variants import LOW_MATCHED, LOW_RATE, Settings, Variant, tosa, variants
from benchmarks.lab import FIGURES, HERE, WORK, run_module

RESULTS = FIGURES / "fashion.json"
TEACHER = FIGURES / "fashion_teacher"
"""The teacher that the results were made with: with another one they could not go on."""
PARTS = ("teacher", "rates", "runs", "selectors", "speed", "pictures")
PICTURES = (tosa(LOW_RATE).name, f"previous {LOW_RATE}", LOW_MATCHED)
"""Models whose computed patches are drawn."""
SHOWN = 5
"""Test images in each picture."""


def main() -> None:
    """Measure what is not in the results yet, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where data, teacher and models go")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these parts only")
    parser.add_argument("--seeds", nargs="+", type=int, default=Settings.seeds, help="run these seeds only")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.render:
        args.work.mkdir(parents=True, exist_ok=True)
        with FileLock(args.work / "fetch.lock"):
            fetch(args.work)
        lab = FashionLab(args.work, RESULTS)
        for part in args.only:
            run_part(lab, part, args.seeds)
    from benchmarks.fashion.render import render

    render(json.loads(RESULTS.read_text(encoding="utf-8")), HERE)


def fetch(work: Path) -> None:
    """Fetch data and teacher, if they are not there; train a teacher if there is none at all."""
    data, teacher = work / "fashion", work / "teacher"
    if not data.exists():
        run_module("fashion.data", data)
    if (teacher / "training.json").exists():
        return
    if TEACHER.exists():
        shutil.copytree(TEACHER, teacher, dirs_exist_ok=True)
    else:
        run_module("fashion.teacher", teacher, "--data-dir", data, "--work", work / "state")


def run_part(lab: FashionLab, part: str, seeds: Any, chosen: list[Variant] | None = None) -> None:
    """Measure what is missing of a part.

    Args:
        lab: Where it is measured and written.
        part: One of `PARTS`.
        seeds: Seeds to run.
        chosen: Models to run; None takes all.
    """
    chosen = variants() if chosen is None else chosen
    if part == "teacher":
        lab.measure("teacher", "training", lab.teacher_report)
    elif part == "speed":
        lab.measure("speed", "float32", partial(lab.speed, chosen))
    elif part == "pictures":
        for variant in chosen:
            if variant.name in PICTURES:
                lab.measure("pictures", variant.name, partial(draw, lab, variant, seeds[0]))
    # First what no other process is at, then what the others have not finished yet.
    for wait in (False, True):
        if part == "rates":
            lab.try_rates(wait)
        for variant in chosen:
            for seed in seeds:
                name = f"{variant.name}, seed {seed}"
                if part == "runs":
                    lab.measure("runs", name, partial(lab.run, variant, seed), wait=wait)
                elif part == "selectors" and variant.is_distilled and variant.config.selection == "shared":
                    lab.measure("selectors", name, partial(lab.selectors, variant, seed), wait=wait)


def draw(lab: FashionLab, variant: Variant, seed: int) -> dict[str, Any]:
    """Draw which patches each layer of a finetuned model computes in a few test images."""
    from matplotlib.figure import Figure

    from tosa_cli.data.photos import to_pixels
    from tosa_cli.draw.selection_figure import draw_layer
    from tosa_cli.draw.selection_maps import read_selection

    model = lab.finetuned(variant, seed)
    batches = list(lab.test_images(SHOWN).batches(True))
    images = [image[None] for batch in batches for image in batch.images]
    maps = [read_selection(model, image) for image in images]
    columns = 1 + len(maps[0])
    figure = Figure(figsize=(1.5 * columns, 1.8 * len(images)), dpi=100, layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, image, layers in zip(axes, images, maps, strict=True):
        pixels = to_pixels(image, model)
        row[0].imshow(pixels.numpy())
        for cell, layer in zip(row[1:], layers, strict=True):
            draw_layer(cell, pixels, layer)
        for cell in row:
            cell.axis("off")
            cell.title.set_fontsize(6)
    path = lab.path.parent / f"fashion_{lab.slug(variant.name)}.png"
    figure.savefig(path)
    return {"file": path.name, "seed": seed}


if __name__ == "__main__":
    main()
