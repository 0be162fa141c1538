"""Train the teacher of the Fashion-MNIST experiment: a ViT in DeiT's shape, 12 layers and 197 tokens, 64 wide.

    python benchmarks/fashion_teacher.py OUT_FOLDER --data-dir FASHION [--work FOLDER]

FASHION is what fashion_data.py writes. Training has two phases: `DROPPED_EPOCHS` on a random half of the patches of
each image, which takes half the time, then `WHOLE_EPOCHS` on all of them. An interrupted run goes on where the last
epoch ended. OUT_FOLDER holds the model in timm's format, and `training.json` what was done and the test accuracy.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchDropout
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from tosa_cli.measure.accuracy import measure_accuracy
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.data import Augmentation, Images, images_to_read, open_dataset
from tosa_cli.train.loop import make_accelerator, train
from tosa_cli.train.schedule import make_scheduler

SHAPE: dict[str, Any] = {"img_size": 56, "patch_size": 4, "embed_dim": 64, "num_heads": 2, "num_classes": 10}
"""12 layers and an MLP of four times the width are DeiT-Tiny's own."""
AUGMENTATION = Augmentation(crop_scale=0.7, hflip=0.5)
BATCH_SIZE = 128
DROPPED_SHARE = 0.5
DROPPED_EPOCHS, WHOLE_EPOCHS = 6, 1
PEAK_LR, WHOLE_LR = 2e-3, 4e-4


class Classify(nn.Module):
    """A classifier and its loss."""

    def __init__(self, model: nn.Module) -> None:  # noqa: D107
        super().__init__()
        self.model = model
        self.loss = LabelSmoothingCrossEntropy(0.1)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of images (B, C, height, width) with class indices (B,)."""
        return self.loss(self.model(images), targets)


def make_model(seed: int) -> Any:
    """The teacher, untrained."""
    torch.manual_seed(seed)
    model: Any = timm.create_model("deit_tiny_patch16_224", pretrained=False, **SHAPE)
    model.pretrained_cfg.update(mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, license="apache-2.0")
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
        kept = torch.load(done, weights_only=True)
        model.load_state_dict(kept["model"])
        return kept["report"]
    images = images_to_read(
        open_dataset(data_dir, split="train"),
        model,
        batch_size=config.batch_size,
        workers=config.workers,
        seed=config.seed,
        augment=AUGMENTATION,
        name=data_dir,
    )
    optimizer = create_optimizer_v2(model, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
    started = time.perf_counter()
    found = train(
        make_accelerator(config),
        Classify(model).train(),
        images,
        optimizer,
        config,
        checkpoint=checkpoint,
        resume=checkpoint.exists(),
        make_scheduler=make_scheduler(config),
        progress=Log(),
    )
    report = {"updates": found.updates, "last_loss": found.last_loss, "seconds": time.perf_counter() - started}
    torch.save({"model": model.state_dict(), "report": report}, done)
    checkpoint.unlink(missing_ok=True)
    return report


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
        "warmup_epochs": 0.5,
        "workers": 1,
        "seed": seed,
        "amp": "bf16",
        "device": "cpu",
        "checkpoint_every": 200,
    }
    dropped = TrainConfig(epochs=DROPPED_EPOCHS, lr=PEAK_LR, min_lr=WHOLE_LR, **common)
    whole = TrainConfig(epochs=WHOLE_EPOCHS, lr=WHOLE_LR, **{**common, "warmup_epochs": 0.0, "seed": seed + 1})
    phases = []
    for name, config in (("dropped", dropped), ("whole", whole)):
        share = DROPPED_SHARE if name == "dropped" else 0.0
        model.patch_drop = PatchDropout(share, num_prefix_tokens=1) if share else nn.Identity()
        report = train_phase(model, data_dir, config, work / f"{name}.safetensors", work / f"{name}.pt")
        phases.append({"phase": name, "patches_dropped": share, **config.recorded(), **report})
    accuracy = measure_accuracy({"teacher": model}, test_images(data_dir, model)).models["teacher"]
    save_for_hf(model.eval(), str(folder), safe_serialization=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    result = {"shape": SHAPE, "parameters": parameters, "top1": accuracy.top1, "top5": accuracy.top5, "phases": phases}
    (folder / "training.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} %")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_folder", type=Path)
    parser.add_argument("--data-dir", required=True, help="what fashion_data.py wrote")
    parser.add_argument("--work", type=Path, default=Path("work"), help="where the state of training goes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    run(args.out_folder, args.data_dir, args.work, args.seed)


if __name__ == "__main__":
    main()
