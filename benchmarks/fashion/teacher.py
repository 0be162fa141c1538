"""Train the teacher of the Fashion-MNIST experiment: a ViT in DeiT's shape, 12 layers and 197 tokens, 64 wide.

    python -m benchmarks.fashion.teacher OUT_FOLDER --data-dir FASHION [--work FOLDER]

FASHION is what benchmarks.fashion.data writes. Training has two phases: `SMALL_EPOCHS` on images of half the size,
which have a quarter of the patches and take about a third of the time, then `FULL_EPOCHS` at full size. An interrupted
run goes on where the last checkpoint was written. OUT_FOLDER holds the model in timm's format, and `training.json` the
seed, what was done, the log of the training and the test accuracy.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate.tracking import GeneralTracker
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from torch import nn

from benchmarks.writer import whole_file, write_json
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import Augmentation, Images, images_to_read
from tosa_cli.measure.evaluation import measure_models
from tosa_cli.tasks.classification import AccuracyMeasure, FinetuneObjective
from tosa_cli.train.checkpoint import read_checkpoint
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.loop import train
from tosa_cli.train.processes import make_accelerator
from tosa_cli.train.schedule import make_scheduler

SHAPE: dict[str, Any] = {"img_size": 56, "patch_size": 4, "embed_dim": 64, "num_heads": 2, "num_classes": 10}
"""12 layers and an MLP of four times the width are DeiT-Tiny's own."""
AUGMENTATION = Augmentation(crop_scale=0.7, hflip=0.5)
BATCH_SIZE = 128
SMALL_SIZE, FULL_SIZE = 28, SHAPE["img_size"]
SMALL_EPOCHS, FULL_EPOCHS = 10, 1
PEAK_LR, FULL_LR = 2e-3, 8e-4
LOG_EVERY = 100
"""Optimizer steps between lines of the log."""


def make_model(seed: int) -> Any:
    """The teacher, untrained."""
    torch.manual_seed(seed)
    model: Any = timm.create_model("deit_tiny_patch16_224", pretrained=False, **SHAPE)
    model.pretrained_cfg.update(tag="", mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, license="apache-2.0")
    return model


def test_images(data_dir: str, model: nn.Module) -> Images:
    """The test images, in order."""
    opened = open_dataset(data_dir, split="validation")
    return images_to_read(opened, model, batch_size=100, workers=1, name=f"{data_dir}/validation")


def train_phase(model: Any, data_dir: str, config: TrainConfig, checkpoint: Path, done: Path) -> dict[str, Any]:
    """Train a phase to its end, from where it stopped if it did; `done` keeps its result.

    Returns:
        What was done, as plain JSON values.
    """
    if done.exists():
        model.load_state_dict(load_file(done))
        with safe_open(done, framework="pt") as kept:
            return json.loads(kept.metadata()["report"])
    images = images_to_read(
        open_dataset(data_dir, split="train"),
        model,
        batch_size=config.batch_size,
        workers=config.workers,
        seed=config.seed,
        augment=AUGMENTATION,
        name=data_dir,
    )
    resumed = checkpoint.exists()
    seconds = read_checkpoint(checkpoint).seconds if resumed else 0.0
    history = History(checkpoint.with_suffix(".log.json"), config.batch_size, resumed)
    accelerator = make_accelerator(config)
    accelerator.trackers = [history]
    optimizer = create_optimizer_v2(model, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
    started = time.perf_counter()
    found = train(
        accelerator,
        FinetuneObjective(model, LabelSmoothingCrossEntropy(0.1)).train(),
        images,
        optimizer,
        config,
        checkpoint=checkpoint,
        resume=resumed,
        make_scheduler=make_scheduler(config),
        progress=Log(),
    )
    seconds += time.perf_counter() - started
    report = {"updates": found.updates, "last_loss": found.last_loss, "seconds": seconds, "log": history.rows}
    state = {name: value.detach().contiguous().clone() for name, value in model.state_dict().items()}
    with whole_file(done) as temporary:
        # The report is in the same file: there is no state of one without the other.
        save_file(state, temporary, metadata={"report": json.dumps(report)})
    for path in (checkpoint, history.path):
        path.unlink(missing_ok=True)
    return report


class History(GeneralTracker):
    """Keeps mean loss, learning rate and images a second of every `LOG_EVERY` steps, those before a resume too.

    Args:
        path: File that keeps them until the phase is finished.
        batch_size: Images a step.
        resumed: Go on with what is in the file.
    """

    name = "history"
    requires_logging_directory = False

    def __init__(self, path: Path, batch_size: int, resumed: bool) -> None:  # noqa: D107
        super().__init__()
        self.path, self.batch_size = path, batch_size
        self.rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if resumed and path.exists() else []
        self._losses: list[float] = []
        self._started = time.perf_counter()

    @property
    def tracker(self) -> list[dict[str, Any]]:
        """What was kept so far."""
        return self.rows

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Take in the loss and the learning rate of a step."""
        assert step is not None
        self._losses.append(values["loss"])
        if step % LOG_EVERY:
            return
        now, count = time.perf_counter(), len(self._losses)
        row = {"step": step, "loss": sum(self._losses) / count, "lr": values["lr"]}
        row["images_per_second"] = count * self.batch_size / (now - self._started)
        # A resumed run does the steps behind its checkpoint again.
        self.rows = [*(kept for kept in self.rows if kept["step"] < step), row]
        self._losses, self._started = [], now
        write_json(self.path, self.rows)


class Log:
    """Prints a line now and then."""

    def start(self, total: int, done: int) -> None:
        """A run of `total` batches starts, of which `done` are behind it."""
        self.total, self.done, self.images, self.started = total, done, 0, time.perf_counter()

    def advance(self, num_images: int, text: str) -> None:
        """One more batch is done."""
        self.done += 1
        self.images += num_images
        if self.done % 50 == 0:
            rate = self.images / (time.perf_counter() - self.started)
            print(f"{self.done} of {self.total} steps, {rate:.0f} images/s, {text}", flush=True)


def run(folder: Path, data_dir: str, work: Path, seed: int) -> None:
    """Train the teacher and write it."""
    work.mkdir(parents=True, exist_ok=True)
    model = make_model(seed)
    common: dict[str, Any] = {
        "data_dir": data_dir,
        "batch_size": BATCH_SIZE,
        "weight_decay": 0.05,
        "workers": 1,
        "seed": seed,
        "amp": "bf16",
        "device": "cpu",
        "checkpoint_every": 200,
    }
    small = TrainConfig(epochs=SMALL_EPOCHS, lr=PEAK_LR, min_lr=FULL_LR, warmup_epochs=0.5, **common)
    full = TrainConfig(epochs=FULL_EPOCHS, lr=FULL_LR, min_lr=1e-6, warmup_epochs=0.05, **common)
    phases = []
    for name, size, config in (("small", SMALL_SIZE, small), ("full", FULL_SIZE, full)):
        model.set_input_size(img_size=size)
        report = train_phase(model, data_dir, config, work / f"{name}.safetensors", work / f"{name}.done.safetensors")
        phases.append({"phase": name, "img_size": size, **config.recorded(), **report, "data_dir": "Fashion-MNIST"})
    accuracy = measure_models({"teacher": model}, test_images(data_dir, model), AccuracyMeasure()).models["teacher"]
    save_for_hf(model.eval(), str(folder), safe_serialization=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    result = {"shape": SHAPE, "parameters": parameters, "seed": seed, "top1": accuracy.top1, "top5": accuracy.top5}
    write_json(folder / "training.json", {**result, "phases": phases})
    print(f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} %")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_folder", type=Path)
    parser.add_argument("--data-dir", required=True, help="what benchmarks.fashion.data wrote")
    parser.add_argument("--work", type=Path, default=Path("work"), help="where the state of training goes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    run(args.out_folder, args.data_dir, args.work, args.seed)


if __name__ == "__main__":
    main()
