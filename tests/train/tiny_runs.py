"""Real images in small, a ViT of 17 tokens, and training runs of a second."""

import copy
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from tests.model.tiny_models import make_tosa, make_vit
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import Augmentation, Images, images_to_read
from tosa_cli.fit.budget import measure_curves
from tosa_cli.fit.calibrate import CalibrationReport, calibrate
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.tasks.registry import TASKS
from tosa_cli.tasks.tokens import finetune_augmentation
from tosa_cli.train.config import DistillConfig, FinetuneConfig, TrainConfig
from tosa_cli.train.distill import DistillReport, distill, distill_augmentation
from tosa_cli.train.loop import TrainReport
from tosa_cli.train.processes import make_accelerator
from tosa_cli.train.weights import HeldOut, Watch

Tensors = dict[str, Tensor]


@functools.cache
def photos() -> list[np.ndarray]:
    """scikit-learn's two photos."""
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


def write_photos(folder: Path, count: int = 24, size: int = 40) -> Path:
    """Write different cut-outs of the photos as JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        photo = photos()[i % 2]
        top, left = (37 * i) % (photo.shape[0] - 100), (61 * i) % (photo.shape[1] - 100)
        cut = Image.fromarray(photo[top : top + 100, left : left + 100]).resize((size, size))
        cut.save(folder / f"{i:03d}.jpg", quality=90)
    return folder


def write_digits(folder: Path, count: int = 40) -> Path:
    """Write scikit-learn's digits as PNG, a folder a class; every class occurs."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i in range(count):
        path = folder / str(digits.target[i]) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[i] * (255 / 16)).astype("uint8")
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(path)
    return folder


@torch.no_grad()
def fit_head(model: Any, folder: Path) -> Any:
    """Give a classifier the head that tells a folder's classes apart best, by least squares: its features stay."""
    images = images_to_read(open_dataset(str(folder)), model, batch_size=64)
    batches = list(images.batches(True))
    pooled = torch.cat(
        [model.forward_head(model.forward_features(b.images), pre_logits=True) for b in batches]
    ).double()
    targets = torch.nn.functional.one_hot(torch.cat([batch.targets for batch in batches]), model.num_classes).double()
    mean = pooled.mean(0)
    centred = pooled - mean
    ridge = 1e-3 * centred.square().sum() / pooled.shape[1] * torch.eye(pooled.shape[1], dtype=torch.double)
    weight = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (targets - targets.mean(0)))
    model.head.weight.copy_(weight.T)
    model.head.bias.copy_(targets.mean(0) - mean @ weight)
    return model


def tiny_tosa(depth: int = 6, **settings: Any) -> TosaViT:
    """A ToSA model of 16 patches and a class token."""
    return make_tosa(make_vit("test_vit", img_size=32, patch_size=8, num_classes=10, depth=depth), **settings)


def short_tosa(**settings: Any) -> TosaViT:
    """A model of a standard layer and a ToSA layer: for what does not depend on how many there are."""
    return tiny_tosa(depth=2, layers=(2,), **settings)


def read(model: TosaViT, folder: Path, config: TrainConfig, augment: Augmentation | None) -> Images:
    return images_to_read(
        open_dataset(str(folder)),
        model,
        batch_size=config.batch_size,
        workers=config.workers,
        seed=config.seed,
        augment=augment,
        name=str(folder),
    )


def distill_config(**settings: Any) -> DistillConfig:
    return DistillConfig(**{"batch_size": 8, "workers": 0, "epochs": 2, "device": "cpu", **settings})


def train_and_fit(
    model: TosaViT,
    folder: Path,
    checkpoint: Path,
    resume: bool = False,
    progress: Any = None,
    watch: Watch | None = None,
    **settings: Any,
) -> DistillReport:
    config = distill_config(**settings)
    return distill(
        make_accelerator(config),
        model,
        read(model, folder, config, distill_augmentation(config)),
        read(model, folder, config, None),
        config,
        checkpoint=checkpoint,
        watch=watch,
        resume=resume,
        progress=progress,
    )


def run_distill(model: TosaViT, folder: Path, checkpoint: Path, **settings: Any) -> TrainReport:
    report = train_and_fit(model, folder, checkpoint, **settings)
    assert report.training is not None
    return report.training


def run_finetune(
    model: TosaViT, folder: Path, checkpoint: Path, resume: bool = False, progress: Any = None, **settings: Any
) -> TrainReport:
    defaults = {"batch_size": 8, "workers": 0, "epochs": 2, "lr": 1e-3, "device": "cpu", "hflip": 0.0}
    config = FinetuneConfig(**{**defaults, **settings})
    images = read(model, folder, config, finetune_augmentation(config))
    return TASKS["classification"].learn(
        make_accelerator(config), model, images, config, checkpoint=checkpoint, resume=resume, progress=progress
    )


def run_features(
    model: TosaViT,
    folder: Path,
    checkpoint: Path,
    *,
    resume: bool = False,
    progress: Any = None,
    scores: list[float] | None = None,
    **settings: Any,
) -> tuple[TrainReport, Watch]:
    """Finetune with the real measurement, or with scores as if measured."""
    defaults = {"batch_size": 8, "workers": 0, "epochs": 2, "lr": 1e-3, "device": "cpu", "eval_every": 2}
    config = FinetuneConfig(**{"objective": "features", **defaults, **settings})
    held_out = read(model, folder, config, None)
    teacher = copy.deepcopy(model.backbone)

    def measure() -> HeldOut:
        if scores is not None:
            return HeldOut(1, scores.pop(0), {})
        return TASKS["features"].held_out(model, teacher, held_out, torch.device("cpu"), config)

    watch = Watch(measure, config.eval_every, keep_best=True)
    images = read(model, folder, config, finetune_augmentation(config))
    report = TASKS["features"].learn(
        make_accelerator(config),
        model,
        images,
        config,
        checkpoint=checkpoint,
        teacher=teacher,
        watch=watch,
        resume=resume,
        progress=progress,
    )
    return report, watch


FITTED: tuple[dict[str, Any], ...] = (
    {"selector": "similarity", "bypass": "nearest+affine", "layers": (1, 2, 5)},
    {"selector": "probe", "bypass": "nearest+linear", "layers": (2, 3, 4, 6), "span": 2},
    {"selector": "previous", "bypass": "linear"},
    {"selector": "random", "bypass": "nearest+affine"},
)
"""Settings of models with something to fit in closed form."""


def fit_one(model: TosaViT, folder: Path, accelerator: Accelerator, strict: bool = False) -> CalibrationReport:
    """Fit on batches of 5 images, of which the last is not full."""
    config = DistillConfig(batch_size=5, workers=0)
    return calibrate(accelerator, model, read(model, folder, config, None), strict=strict)


def fit_all(folder: Path, accelerator: Accelerator) -> list[Any]:
    """Fit a model of each of the settings on 24 photos: errors and all weights, exactly, and the number of images."""
    found: list[Any] = []
    for settings in FITTED:
        model = tiny_tosa(**settings)
        report = fit_one(model, folder / "photos", accelerator)
        parts = {**weights(model, "selectors"), **weights(model, "bypasses")}
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in parts.values())).hexdigest()
        found.append([list(report.errors.values()), digest, report.images])
    return found


def curves_all(folder: Path, accelerator: Accelerator) -> list[Any]:
    """Measure error curves with each of the settings on 24 photos, in batches of which the last is not full."""
    found: list[Any] = []
    for settings in FITTED:
        model = tiny_tosa(**settings)
        images = read(model, folder / "photos", DistillConfig(batch_size=5, workers=0), None)
        curves = measure_curves(accelerator, model.backbone, model.config, images, keep_rates=(0.7, 0.4))
        found.append([[list(curve.layers), list(curve.errors)] for curve in curves])
    return found


def weights(model: TosaViT, part: str) -> Tensors:
    """A copy of the weights of `selectors` or `backbone`."""
    return {name: value.clone() for name, value in getattr(model, part).state_dict().items()}


def same(before: Tensors, after: Tensors) -> bool:
    return all(before[name].equal(after[name]) for name in before)


class StopAt:
    """Progress that interrupts the run, as Ctrl-C would, after some batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def start(self, total: int, done: int) -> None:
        pass

    def advance(self, num_images: int, text: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
