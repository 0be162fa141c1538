"""Selector training for the runs of a whole model, and the fit of what has a closed form: all else is frozen."""

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tosa_cli.data.loading import Images
from tosa_cli.data.samples import Batch
from tosa_cli.errors import DataError
from tosa_cli.fit.calibrate import CalibrationReport
from tosa_cli.fit.whole import calibrate_runs
from tosa_cli.measure.selectors import SelectorQuality, SelectorReport, compare_maps, describe_undone
from tosa_cli.methods import SELECTORS
from tosa_cli.model.runs import Run, converted_runs
from tosa_cli.model.runs.calls import call_on
from tosa_cli.model.runs.maps import dense_logits
from tosa_cli.progress import Progress
from tosa_cli.train.config import DistillConfig
from tosa_cli.train.distill import DistillReport, check_trainable, fitted_parts, maps_loss, train_then_fit
from tosa_cli.train.loop import TrainReport, train
from tosa_cli.train.optimizer import make_optimizer
from tosa_cli.train.processes import make_accelerator
from tosa_cli.train.schedule import make_scheduler
from tosa_cli.train.weights import Watch
from tosa_cli.train.whole import fingerprint


class RunsObjective(nn.Module):
    """Selector training in a whole model: predict the maps of its own next layers, as `DistillObjective` does.

    Args:
        model: The converted model, or the part of it that takes images.
        batches: What the model is called with, where images do not say it: then it is given numbers of these.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any] | None = None) -> None:
        super().__init__()
        self.model = model
        self.batches = batches
        self.runs = trained_runs(model)
        model.requires_grad_(False)
        for run in self.runs:
            run.selectors.requires_grad_(True)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of images (B, C, height, width), or of the batch of a number (1,); `targets` are not read."""
        return _loss(self.model, self.runs, images if self.batches is None else self.batches[int(images)])

    def train(self, mode: bool = True) -> "RunsObjective":
        """Dropout and the like stay off: the maps are those of the pretrained model."""
        return super().train(False)


def _loss(model: nn.Module, runs: Sequence[Run], batch: Any) -> Tensor:
    """The loss of a model's runs on a batch that it is called with."""
    logits = dense_logits(call_on(model, batch), runs)
    return sum(maps_loss(*pair) for pair in zip(runs, logits, strict=True))  # type: ignore[return-value]


class _Numbers(Dataset[int]):
    """Numbers of batches, as a data set that the training loop reads."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> int:
        return number

    def set_epoch(self, epoch: int) -> None:
        """A batch is the same in every epoch."""

    def files(self) -> list[Path]:
        """None: what the batches were made of is not known."""
        return []


def trained_runs(model: nn.Module) -> list[Run]:
    """The runs of a model whose selectors are trained step by step."""
    runs = [found.run for found in converted_runs(model) if found.run is not None]
    return [run for run in runs if SELECTORS[run.config.selector].is_trained]


def distill_whole(
    accelerator: Accelerator,
    model: nn.Module,
    images: Images,
    calibration: Iterable[Any],
    config: DistillConfig,
    *,
    checkpoint: Path | None,
    watch: Watch | None,
    resume: bool = False,
    progress: Progress | None = None,
) -> DistillReport:
    """Train the selectors of a converted model in place, then fit its bypasses and probes, as `distill` does.

    Args:
        accelerator: From `make_accelerator`.
        model: The model, or the part of it that takes images, in evaluation mode; only what was added is changed.
        images: Training images, for a selector that trains step by step.
        calibration: What the model is called with on the same images, for what is fitted in closed form.
        config: The settings.
        checkpoint: Where the checkpoint is written.
        watch: Measures on held-out images, by which a fit is kept; None where nothing is fitted.
        resume: Continue from it.
        progress: Told about the advance.

    Raises:
        ConfigError: If there is nothing to train or to fit, or the optimizer or the schedule is unknown.
        DataError: If too many images cannot be read.
        TrainingError: If the loss or a fit is not finite.
    """
    model.to(accelerator.device)
    runs = [found.run for found in converted_runs(model) if found.run is not None]
    for run in runs:
        check_trainable(run)
    if watch is not None:
        watch.attach(accelerator, nn.ModuleList(map(fitted_parts, runs)), None, config.seed)
    train_selectors = partial(
        _train, accelerator, model, images, config, checkpoint=checkpoint, resume=resume, progress=progress
    )
    return train_then_fit(
        train_selectors if trained_runs(model) else None,
        (lambda: calibrate_runs(model, calibration, progress)[0]) if runs[0].config.is_fitted else None,
        watch,
    )


def calibrate_on(model: nn.Module, batches: Iterable[Any], config: DistillConfig) -> list[CalibrationReport]:
    """Train the selectors of a converted model in place where they are trained, and fit what is fitted.

    Args:
        model: The converted model; it stays where it is.
        batches: What it is called with: tensors, tuples or dictionaries. Each is a step of the training.
        config: The settings of the training.

    Returns:
        A report of each run. A warning tells of selectors that are of no use once they are trained.

    Raises:
        ConfigError: If the model is not converted, or a batch sends no image through its encoder.
        DataError: If there is no batch.
        TrainingError: If the loss or a fit is not finite.
    """
    if not trained_runs(model):
        return calibrate_runs(model, batches)
    batches = list(batches)
    if not batches:
        raise DataError("There is no batch to calibrate on: pass an iterable of what the model is called with.")
    numbers, mode, started = _Numbers(len(batches)), model.training, time.perf_counter()
    loader = DataLoader(numbers, batch_size=1, shuffle=True, collate_fn=_numbered)
    config = replace(config, batch_size=1, grad_accum_steps=min(config.grad_accum_steps, len(batches)))
    accelerator = make_accelerator(replace(config, device="cpu") if not next(model.parameters()).is_cuda else config)
    accelerator.device_placement = False
    model.eval()
    try:
        images = Images(loader, numbers, len(numbers), None, "the batches")
        before = _measured(model, batches[0])
        trained = _train(accelerator, model, images, config, batches=batches)
        after = _measured(model, batches[0])
    finally:
        model.train(mode)
    remedy = "Calibrate the model as it was before with a smaller lr, or on more batches."
    kl_before, kl_after = (sum(layer.kl for layer in layers) for layers in (before, after))
    level = [layer.layer for layer in after if layer.is_level]
    if undone := describe_undone(kl_before, kl_after, level, "the first batch", remedy):
        warnings.warn(undone, stacklevel=3)
    seconds = time.perf_counter() - started
    reports = calibrate_runs(model, batches)
    for found, report in zip(converted_runs(model), reports, strict=True):
        if found.run in trained_runs(model):
            report.updates, report.loss, report.seconds = trained.updates, trained.last_loss, report.seconds + seconds
    return reports


def _measured(model: nn.Module, batch: Any) -> list[SelectorQuality]:
    """How good the selectors of all runs are on a batch that the model is called with."""
    runs = trained_runs(model)
    with torch.no_grad(), _in_float32(runs):
        logits = dense_logits(call_on(model, batch), runs, "all")
        return [layer for run, maps in zip(runs, logits, strict=True) for layer in compare_maps(run, [maps]).layers]


def _numbered(numbers: list[int]) -> Batch:
    return Batch(torch.tensor(numbers), torch.tensor([-1]), [])


def _train(
    accelerator: Accelerator,
    model: nn.Module,
    images: Images,
    config: DistillConfig,
    *,
    batches: Sequence[Any] | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainReport:
    """Train the selectors; at the end all of the model requires a gradient or not as it did before."""
    before = fingerprint(model)
    with _in_float32(trained_runs(model)), _frozen_again(model):
        objective = RunsObjective(model, batches)
        return train(
            accelerator,
            objective,
            images,
            make_optimizer([each for each in objective.parameters() if each.requires_grad], config),
            config,
            checkpoint=checkpoint,
            fingerprint=before,
            resume=resume,
            make_scheduler=make_scheduler(config),
            progress=progress,
        )


@contextmanager
def _frozen_again(model: nn.Module) -> Iterator[None]:
    """Whatever requires a gradient within this context, behind it that does which did before."""
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])


@contextmanager
def _in_float32(runs: Sequence[Run]) -> Iterator[None]:
    """Within this context selectors are in float32: the steps of an optimizer are lost in half precision."""
    kinds = [next(run.selectors.parameters()).dtype for run in runs]
    for run in runs:
        run.selectors.float()
    try:
        yield
    finally:
        for run, kind in zip(runs, kinds, strict=True):
            run.selectors.to(kind)


@torch.no_grad()
def measure_runs(model: nn.Module, batches: Iterable[Tensor]) -> SelectorReport:
    """Compare what the selectors of a whole model predict with the maps of its own layers.

    Args:
        model: A converted model whose selectors are trained; of several runs the first is measured.
        batches: Images (B, C, height, width), one batch at least.
    """
    runs = trained_runs(model)
    return compare_maps(runs[0], (dense_logits(call_on(model, batch), runs, "all")[0] for batch in batches))
