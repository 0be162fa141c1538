"""Fits and chooses for whole models, on batches that the model takes as they are: any data, any preprocessing."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.config import Method, TosaConfig
from tosa_cli.errors import ConfigError, DataError
from tosa_cli.fit.batches import BatchTokens
from tosa_cli.fit.calibrate import CalibrationReport, fit
from tosa_cli.fit.drop import Agreement, MaxDrop
from tosa_cli.fit.nearness import FinalTokens
from tosa_cli.fit.rates import Judge, RateSearch, Wish, hold_on, search_on, wished
from tosa_cli.fit.schedules import BEGINS, Schedules
from tosa_cli.methods import SELECTORS
from tosa_cli.model.runs import ImageRun, converted_runs, insert_run
from tosa_cli.model.runs.calls import call_on
from tosa_cli.model.runs.find import check_runs
from tosa_cli.model.runs.flops import count_run
from tosa_cli.model.runs.insert import measure_patches, remove_run
from tosa_cli.progress import Progress


def calibrate_runs(
    model: nn.Module, batches: Iterable[Any], progress: Progress | None = None
) -> list[CalibrationReport]:
    """Fit the bypasses of a converted model in place, and its selectors where they are fitted; no labels are read.

    Args:
        model: The converted model.
        batches: What it is called with: tensors, tuples or dictionaries.
        progress: Told about the advance.

    Returns:
        A report of each run.

    Raises:
        ConfigError: If the model is not converted, or a batch sends no image through its encoder.
        DataError: If there is no batch.
        TrainingError: If a fit is not finite.
    """
    runs = converted_runs(model)
    if not runs:
        raise ConfigError("The model is not converted: convert it before it is calibrated.")
    if len(runs) > 1 or any(SELECTORS[found.run.config.selector].is_fitted for found in runs if found.run):
        batches = list(batches)  # they are read several times
    reports, mode = [], model.training
    model.eval()
    try:
        for found in runs:
            assert found.run is not None
            started, report = time.perf_counter(), CalibrationReport()
            if found.run.config.is_fitted:
                with BatchTokens(model, found, batches, progress) as kept:
                    report.errors, report.images = fit(kept), kept.num_images
            report.seconds = time.perf_counter() - started
            reports.append(report)
    finally:
        model.train(mode)
    return reports


class _RunSchedules(Schedules):
    """Schedules for a run, whose MACs are those of its layers."""

    def count(self, keep_rates: dict[int, float]) -> float:
        run: Any = self.backbone
        return count_run(run, self.config(keep_rates))


@torch.no_grad()
def choose_run_rates(
    model: nn.Module,
    batches: Iterable[Any],
    method: Method,
    *,
    target_reduction: float | None = None,
    min_cosine: float | None = None,
    max_drop: float | None = None,
    progress: Progress | None = None,
) -> tuple[TosaConfig, RateSearch]:
    """Find keep rates for a share of the MACs to save, or those that save most while something holds.

    Of several schedules the one is taken with which the tokens behind the encoder are nearest to the dense model's.

    Args:
        model: The model, not converted yet; it is as it was at the end.
        batches: What it is called with; a few tens of images are enough. Where something is to hold two of three are
            held out.
        method: A method that puts tokens into groups.
        target_reduction: Share of the MACs of the encoder's layers to save.
        min_cosine: Or the mean cosine of the tokens of the held-out batches that is to hold, of patch and class tokens.
        max_drop: Or how many points of the agreement of the outputs may be lost on these, below 100.
        progress: Told about the advance.

    Returns:
        The settings of the conversion, and how they were found.

    Raises:
        ConfigError: If the method puts tokens into no groups, the model is converted, not one of target, cosine and
            drop is given, as much cannot be saved, or what is asked for holds at no saving.
        UnsupportedModelError: If the model cannot be converted.
        DataError: If there is no batch; for a cosine, if there is none to hold out.
    """
    if not method.groups_tokens:
        raise ConfigError("Keep rates are found for tokens in groups: take the selector 'ward' and the bypass 'mean'.")
    if [target_reduction, min_cosine, max_drop].count(None) != 2:
        raise ConfigError(
            "Keep rates are found for a target_reduction, as 0.25, a min_cosine, as 0.99, or a max_drop, as 1.0: pass "
            "one."
        )
    wish = wished(min_cosine, max_drop)
    if converted_runs(model):
        raise ConfigError("The model is converted already: load its source, and find rates for that.")
    batches = list(batches)
    if not batches:
        raise DataError("There is no batch to measure on: pass an iterable of what the model is called with.")
    if wish is not None and len(batches) == 1:
        raise DataError(
            "What is to hold is measured on batches that are held out, but there is one batch: pass smaller ones, or "
            "more."
        )
    found, mode = check_runs(model)[0], model.training
    layers = found.eligible_layers
    model.eval()
    run = insert_run(found, method.at(layers, 1.0), measure_patches(found, call_on(model, batches[0])))
    try:
        schedules: Any = _RunSchedules(run, method, layers)  # type: ignore[arg-type]
        if wish is None:
            target = cast(float, target_reduction)
            schedules.check(target)
            with _measured(model, found, batches, progress, len(BEGINS) + 1) as tuning:
                search = search_on(tuning, schedules, target)
        else:
            others = [batch for place, batch in enumerate(batches) if place % 3]
            with (
                _measured(model, found, batches[::3], progress, 2 * len(BEGINS) + 1) as tuning,
                _judge(model, found, others, progress, wish) as judge,
            ):
                search = hold_on(tuning, judge, schedules, wish)
        return method.at(search.keep_rates, search.keep_rates.values()), search
    finally:
        remove_run(found)
        model.train(mode)


@contextmanager
def _measured(
    model: nn.Module, found: ImageRun, batches: list[Any], progress: Progress | None, passes: int
) -> Iterator[FinalTokens]:
    """The tokens behind a run, of batches that the dense model has read; `passes` are told to the progress bar."""
    with BatchTokens(model, found, batches, progress) as kept:
        kept.progress.start(len(batches) * (1 + passes), 0)
        final = FinalTokens(kept, _normalised, kept.model.class_token)
        final.read()
        yield final


@contextmanager
def _judge(
    model: nn.Module, found: ImageRun, batches: list[Any], progress: Progress | None, wish: Wish
) -> Iterator[Judge]:
    """What is measured on batches that are held out."""
    if isinstance(wish, MaxDrop):
        assert found.run is not None
        yield Agreement(model, found.run, batches, progress)
        return
    with _measured(model, found, batches, progress, 0) as final:
        yield final


def _normalised(tokens: Tensor) -> Tensor:
    """Tokens (B, N, D) normalised as a last norm would, without its weights: which norm comes is the model's matter."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:])
