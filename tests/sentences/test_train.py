"""What is said where training cannot begin, go on or end; a long table."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fit.fits import fit
from tests.fit.test_budget import SIMILARITY, backbone, curves
from tests.train.test_distill import BreakAfter
from tests.train.test_predictor import predictor
from tests.train.test_predictor import run as run_predictor
from tests.train.tiny_pairs import write_folder
from tests.train.tiny_runs import (
    StopAt,
    read,
    run_distill,
    run_features,
    run_finetune,
    tiny_tosa,
    write_digits,
    write_photos,
)
from tosa_cli.config import Method
from tosa_cli.data.labels import check_labels
from tosa_cli.fit.budget import allocate, measure_curves
from tosa_cli.measure.evaluation import measure_models
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.tasks.classification import AccuracyMeasure, Classification
from tosa_cli.tasks.features import Features
from tosa_cli.tasks.tokens import finetune_augmentation
from tosa_cli.train import checkpoint as checkpoints
from tosa_cli.train.config import FinetuneConfig, TrainConfig
from tosa_cli.train.processes import make_accelerator

from .folders import written
from .rows import Row, check, table

RUN = Path("run")


@pytest.fixture
def photos(place: Path) -> Path:
    return write_photos(place / "photos").relative_to(place)


@pytest.fixture
def digits(place: Path) -> Path:
    return write_digits(place / "digits", 60).relative_to(place)


def resumed(photos: Path, model: TosaViT | None = None, **settings: Any) -> None:
    """Resume a run that ended, with other settings or another model."""
    run_distill(tiny_tosa(), photos, RUN)
    run_distill(model or tiny_tosa(), photos, RUN, resume=True, **settings)


def resumed_with_less(photos: Path) -> None:
    run_distill(tiny_tosa(), photos, RUN)
    (photos / "000.jpg").unlink()
    run_distill(tiny_tosa(), photos, RUN, resume=True)


def resumed_elsewhere(photos: Path) -> None:
    run_distill(tiny_tosa(), photos, RUN, data_dir="photos", val_dir="")
    run_distill(tiny_tosa(), photos, RUN, resume=True, data_dir="others")


def resumed_from(photos: Path, content: bytes) -> None:
    """Resume from a file of something else."""
    written("run", content)
    run_distill(tiny_tosa(), photos, RUN, resume=True)


def resumed_from_weights(photos: Path) -> None:
    checkpoints.save_file({"weight": torch.zeros(2)}, RUN, metadata={"format": "pt"})
    run_distill(tiny_tosa(), photos, RUN, resume=True)


def resumed_on_a_full_disk(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    run_distill(tiny_tosa(), photos, RUN, epochs=1, checkpoint_every=1)
    monkeypatch.setattr(checkpoints, "save_file", full)
    run_distill(tiny_tosa(), photos, RUN, epochs=1, checkpoint_every=1)


def resumed_predictor() -> None:
    scenes = write_folder(Path("scenes"), 8)
    run_predictor(predictor(), scenes, RUN)
    run_predictor(predictor(keep_rate=0.8), scenes, RUN, resume=True)


class Interrupt(StopAt):
    """Progress that presses Ctrl-C after some batches."""

    def advance(self, num_images: int, text: str) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


def broken_at_once(photos: Path) -> None:
    model = tiny_tosa()
    with torch.no_grad():
        next(model.selector_parameters())[0, 0] = float("nan")
    run_distill(model, photos, RUN)


def broken_later(photos: Path, **settings: Any) -> None:
    model = tiny_tosa()
    run_distill(model, photos, RUN, progress=BreakAfter(3, model), **settings)


def labels_that_the_head_lacks(digits: Path, measured: bool) -> None:
    model, config = tiny_tosa(), FinetuneConfig(batch_size=20, workers=0, epochs=1, device="cpu")
    model.reset_classifier(4)
    images = read(model, digits, config, None)
    images.classes = None
    if measured:
        measure_models({"tosa": model}, images, AccuracyMeasure())
    Classification().learn(make_accelerator(config), model, images, config, checkpoint=RUN)


def without_a_teacher(photos: Path, itself: bool) -> None:
    model, config = tiny_tosa(), FinetuneConfig(objective="features", device="cpu", workers=0)
    images = read(model, photos, config, finetune_augmentation(config))
    teacher: Any = model.backbone if itself else None
    Features().learn(make_accelerator(config), model, images, config, checkpoint=RUN, teacher=teacher)


def fit_what_is_not_finite(photos: Path) -> None:
    model: Any = tiny_tosa(selector="similarity", bypass="nearest+linear")
    with torch.no_grad():
        model.blocks[2].mlp.fc2.bias[0] = float("inf")
    fit(model, photos)


def fit_broken(photos: Path, *names: str, strict: bool = False) -> None:
    """Fit to photos of which some are broken."""
    for name in names:
        (photos / name).write_bytes(b"not an image")
    fit(tiny_tosa(selector="similarity", bypass="linear"), photos, strict=strict)


TRAINING: list[Row] = [
    (
        "nothing to train",
        lambda photos: run_distill(tiny_tosa(selector="previous"), photos, RUN),
        "The selector 'previous' has nothing to train, and the bypass 'identity' nothing to fit: the model "
        "is ready to use. Convert with --selector attention or --bypass nearest+linear to distill.",
    ),
    (
        "nothing to train or fit",
        lambda photos: run_distill(tiny_tosa(selector="similarity", bypass="nearest"), photos, RUN),
        "The selector 'similarity' has nothing to train, and the bypass 'nearest' nothing to fit: the model "
        "is ready to use. Convert with --selector attention or --bypass nearest+linear to distill.",
    ),
    (
        "an unknown optimizer",
        lambda photos: run_distill(tiny_tosa(), photos, RUN, opt="nope"),
        "--opt 'nope' cannot be used (…): try adamw, sgd or lamb.",
    ),
    (
        "an unknown schedule",
        lambda photos: run_distill(tiny_tosa(), photos, RUN, sched="nope"),
        "--sched must be one of none, cosine, …; not 'nope'.",
    ),
    (
        "a schedule that needs a measure",
        lambda photos: run_distill(tiny_tosa(), photos, RUN, sched="plateau"),
        "--sched must be one of none, cosine, …; not 'plateau'.",
    ),
    (
        "an unknown tracker",
        lambda photos: run_distill(tiny_tosa(), photos, RUN, log_with="nope"),
        "Training cannot be set up like this: Unsupported logging capability: nope. …",
    ),
    (
        "too few images for a step",
        lambda photos: run_distill(tiny_tosa(), photos, RUN, batch_size=25),
        "24 images are too few for one step of 25 images in each of 1 processes, 1 times. Pass a smaller --batch-size.",
    ),
    (
        "a loss that is not finite",
        broken_at_once,
        "The loss became nan after 0 steps, and training stopped. Try a smaller --lr.",
    ),
    (
        "a loss that is not finite after a checkpoint",
        lambda photos: broken_later(photos, checkpoint_every=1),
        "The loss became nan after 3 steps, and training stopped. The last good checkpoint is run: go on "
        "from it with --resume and a smaller --lr.",
    ),
    (
        "a weight that is not finite at the end",
        lambda photos: broken_later(photos, epochs=1),
        "A weight is not finite after 3 steps, and nothing was written. Try a smaller --lr.",
    ),
    (
        "an odd batch for Mixup",
        lambda digits: run_finetune(tiny_tosa(), digits, RUN, mixup=0.8, batch_size=7),
        "Mixup and CutMix need an even batch size, not 7.",
    ),
    (
        "a label that the head does not have",
        lambda digits: labels_that_the_head_lacks(digits, measured=False),
        "digits has the label 6, but the model's head has 4 classes (0 to 3). Convert the source with "
        "--num-classes to give it another head.",
    ),
    (
        "a label that the head does not have, measured",
        lambda digits: labels_that_the_head_lacks(digits, measured=True),
        "digits has the label 6, but the model's head has 4 classes (0 to 3). Convert the source with "
        "--num-classes to give it another head.",
    ),
    (
        "photos without labels",
        lambda photos: check_labels(read(tiny_tosa(), photos, FinetuneConfig(workers=0), None), 10),
        "photos has no class folders, or one, but the model's head has 10 classes. Point --data-dir at one "
        "folder a class; distill, and eval with --task features, need no labels.",
    ),
    (
        "more layers to match than there are",
        lambda photos: run_features(tiny_tosa(), photos, RUN, feature_layers=6),
        "--feature-layers must be below 6, as the model has so many layers and the last is matched anyway; not 6.",
    ),
    (
        "features without a teacher",
        lambda photos: without_a_teacher(photos, itself=False),
        "The objective features needs a teacher: a copy of the dense model.",
    ),
    (
        "features with itself as the teacher",
        lambda photos: without_a_teacher(photos, itself=True),
        "The objective features needs a teacher: a copy of the dense model.",
    ),
    (
        "another batch size on resuming",
        lambda photos: resumed(photos, batch_size=4),
        "The run to resume had batch_size 8, now it is 4. Pass the same settings, or leave out --resume to start anew.",
    ),
    (
        "another seed on resuming",
        lambda photos: resumed(photos, seed=1),
        "The run to resume had seed 0, now it is 1. Pass the same settings, or leave out --resume to start anew.",
    ),
    (
        "other epochs on resuming",
        lambda photos: resumed(photos, epochs=3),
        "The run to resume had epochs 2, now it is 3. Pass the same settings, or leave out --resume to start anew.",
    ),
    (
        "another optimizer on resuming",
        lambda photos: resumed(photos, opt="sgd"),
        "The run to resume had opt adamw, now it is sgd. Pass the same settings, or leave out --resume to start anew.",
    ),
    (
        "less images on resuming",
        resumed_with_less,
        "The run to resume had num_images 24, now it is 23. Pass the same settings, or leave out --resume to "
        "start anew.",
    ),
    (
        "another folder on resuming",
        resumed_elsewhere,
        "The run to resume had data_dir …/photos, now it is …/others. Pass the same settings, or leave out "
        "--resume to start anew.",
    ),
    (
        "another keep rate on resuming",
        lambda photos: resumed(photos, tiny_tosa(keep_rate=0.8)),
        "run belongs to another model. Leave out --resume to start anew.",
    ),
    (
        "other layers on resuming",
        lambda photos: resumed(photos, tiny_tosa(layers=(2, 4))),
        "run belongs to another model. Leave out --resume to start anew.",
    ),
    (
        "another encoder on resuming",
        resumed_predictor,
        "run belongs to another model. Leave out --resume to start anew.",
    ),
    (
        "nothing to resume",
        lambda photos: run_distill(tiny_tosa(), photos, RUN, resume=True),
        "There is nothing to resume: run does not exist. Leave out --resume to start anew.",
    ),
    (
        "an empty file to resume",
        lambda photos: resumed_from(photos, b""),
        "run is not a checkpoint of tosa (…). Delete it and start anew.",
    ),
    (
        "a foreign file to resume",
        lambda photos: resumed_from(photos, b"not a checkpoint"),
        "run is not a checkpoint of tosa (…). Delete it and start anew.",
    ),
    ("weights to resume", resumed_from_weights, "run is not a checkpoint of tosa (…). Delete it and start anew."),
    (
        "a full disk in training",
        resumed_on_a_full_disk,
        "The checkpoint run could not be written ([Errno …] No space left on device). Free space and add --resume.",
    ),
    (
        "an interruption",
        lambda photos: run_distill(tiny_tosa(), photos, RUN, progress=StopAt(4)),
        "Interrupted. The last checkpoint is run: run the same command with --resume to go on.",
    ),
    (
        "Ctrl-C",
        lambda photos: run_distill(tiny_tosa(), photos, RUN, progress=Interrupt(3)),
        "Interrupted. The last checkpoint is run: run the same command with --resume to go on.",
    ),
    (
        "an interruption before the first step",
        lambda photos: run_distill(tiny_tosa(), photos, RUN, progress=StopAt(1)),
        "Interrupted before the first checkpoint; the model is as it was.",
    ),
    (
        "a fit that is not finite",
        fit_what_is_not_finite,
        "The fit of layer 4 is not finite: its tokens are not, or there are too few images. Use more images, "
        "or check the model.",
    ),
    (
        "a broken photo in a strict fit",
        lambda photos: fit_broken(photos, "020.jpg", strict=True),
        "photos/020.jpg (not an image, or broken) cannot be read. Remove it, or leave out --strict to skip "
        "such images.",
    ),
    (
        "photos all broken",
        lambda photos: fit_broken(photos, *(path.name for path in photos.iterdir())),
        "None of the images of photos can be read, the first is photos/000.jpg (not an image, or broken). "
        "Check the data.",
    ),
    (
        "a reduction of all",
        lambda: allocate(backbone(), SIMILARITY, curves(1, 1, 1, 1, 1, 1), 1.0),
        "The target reduction is 1.0, but must be between 0 and 1, as in 0.25.",
    ),
    (
        "a reduction that no allocation reaches",
        lambda: allocate(backbone(), SIMILARITY, curves(1, 1, 1, 1, 1, 1), 0.9),
        "The target reduction 90.0% cannot be reached: the layers save at most 63.3% at the keep rates that "
        "were measured. Ask for less.",
    ),
    (
        "curves of a selector that is not trained",
        lambda photos: measure_curves(
            make_accelerator(TrainConfig(device="cpu")),
            backbone(),
            Method(selector="attention"),
            read(tiny_tosa(), photos, TrainConfig(workers=0), None),
        ),
        "The selector 'attention' says nothing before it is trained, so what each layer can spare cannot be "
        "measured with it: use --selector similarity, or name the layers as in --layers 2,4,6,8,10.",
    ),
]
"""What training and fitting refuse, and what they end with."""


@table(TRAINING)
def test_what_is_said(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    check(request, fails, sentence)
